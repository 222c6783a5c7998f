import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

import transfervae as tv
from tests.samples import make_vae, random_images
from transfervae.errors import InvalidOptionError
from transfervae.evaluation import disentanglement, nearest_images, outliers, probe


def clusters(distance: float, count: int = 60) -> tuple[Tensor, list[int]]:
    generator = torch.Generator().manual_seed(0)
    labels = [place % 3 for place in range(count)]
    centres = distance * torch.eye(3, 5)
    return centres[labels] + torch.randn(count, 5, generator=generator), labels


def test_clusters_that_are_apart_are_told_apart_and_noise_is_not() -> None:
    apart = probe(*clusters(20.0))
    assert apart == (1.0, 1.0, 1 / 3, 60)
    noise = probe(*clusters(0.0))
    assert noise.linear < 0.55
    assert noise.nearest < 0.55


def test_the_nearest_neighbour_is_that_of_scikit_learn() -> None:
    points, labels = clusters(2.0)
    hits = 0
    for place in range(len(points)):
        others = [other for other in range(len(points)) if other != place]
        model = KNeighborsClassifier(1).fit(points[others].numpy(), np.array(labels)[others])
        hits += int(model.predict(points[place : place + 1].numpy())[0] == labels[place])
    assert probe(points, labels).nearest == pytest.approx(hits / len(points))


def test_classes_of_one_image_are_left_out() -> None:
    points, labels = clusters(20.0)
    found = probe(torch.cat([points, torch.zeros(1, 5)]), [*labels, 3])
    assert found.images == 60
    with pytest.raises(InvalidOptionError, match="two classes"):
        probe(points[:3], [0, 0, 1])
    with pytest.raises(InvalidOptionError, match="3 vectors and 2 labels"):
        probe(points[:3], [0, 1])


def test_the_nearest_image_of_an_image_is_itself() -> None:
    points = torch.randn(10, 2, 3)
    places = nearest_images(points, points, count=3)
    assert places[:, 0].tolist() == list(range(10))
    distances = (points[0] - points).flatten(1).norm(dim=1)
    assert places[0].tolist() == distances.argsort()[:3].tolist()
    assert nearest_images(points, points, count=99).shape == (10, 10)


def test_outliers_are_far_from_the_prior() -> None:
    vae = make_vae(latent_dim=5)
    mean = torch.zeros(6, 5)
    mean[4] = 9.0
    mean[2] = 3.0
    places, values = outliers(vae, tv.DiagonalGaussian(mean, torch.zeros(6, 5)), count=2)
    assert places.tolist() == [4, 2]
    assert values[0] < values[1]


def test_outliers_of_deterministic_heads_are_in_scaled_space() -> None:
    vae = make_vae(head="deterministic", latent_dim=None).eval()
    images = random_images(count=4)
    with pytest.raises(InvalidOptionError, match="no scaling"):
        outliers(vae, vae.encode(images))
    vae.fit_scaling([images])
    places, _ = outliers(vae, vae.encode(images), count=1)
    expected = vae.encode(images, scaled=True).mode().flatten(1).square().sum(dim=1).argmax()
    assert places[0] == expected


def test_vectors_that_cannot_be_compared_are_refused() -> None:
    points, labels = clusters(2.0)
    spoilt = points.clone()
    spoilt[0, 0] = float("nan")
    for call in (
        lambda: probe(spoilt, labels),
        lambda: nearest_images(spoilt, points[:1]),
        lambda: disentanglement(spoilt, torch.randn(len(points), 2)),
    ):
        with pytest.raises(InvalidOptionError, match="finite"):
            call()
    with pytest.raises(InvalidOptionError, match="5 numbers and queries of 3"):
        nearest_images(points, points[:1, :3])
