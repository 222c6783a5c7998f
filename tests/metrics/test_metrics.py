from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from tests.strategies import SEEDS
from transfervae import DiagonalGaussian, PointPosterior, VAEOutput, create_backbone
from transfervae.errors import InvalidOptionError, UnknownNameError
from transfervae.metrics import RMSE, baseline_of, make_metrics, mean_image
from transfervae.metrics.latents import ACTIVE_NATS

NAMES = ("rmse", "kl", "active_units", "l1", "chroma", "rate", "information")


def splits(count: int, cuts: list[int]) -> list[slice]:
    edges = [0, *sorted({cut % count for cut in cuts} - {0}), count]
    return [slice(first, last) for first, last in pairwise(edges)]


def random_output(count: int, dims: int, seed: int) -> tuple[VAEOutput, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.logspace(-2, 0.5, dims)
    offset = 3 * torch.randn(dims, generator=generator)
    mean = offset + scale * torch.randn(count, dims, generator=generator)
    posterior = DiagonalGaussian(mean, torch.randn(count, dims, generator=generator))
    images, reconstruction = torch.rand(2, count, 3, 4, 5, generator=generator)
    return VAEOutput(reconstruction, posterior, mean), images


def batch_of(output: VAEOutput, part: slice) -> VAEOutput:
    posterior = DiagonalGaussian(output.posterior.mean[part], output.posterior.variance[part].log())
    return VAEOutput(output.reconstruction[part], posterior, output.latent[part])


def naive(output: VAEOutput, images: Tensor) -> dict[str, float]:
    mean, variance = (values.double().numpy() for values in (output.posterior.mean, output.posterior.variance))
    errors = (output.reconstruction.double() - images.double()).numpy().reshape(len(images), -1)
    nats = 0.5 * np.log(1 + np.var(mean, axis=0) / np.mean(variance, axis=0))
    kl = np.mean(np.sum(0.5 * (mean**2 + variance - 1 - np.log(variance)), axis=1)).item()
    pairs = zip(images.double().numpy(), output.reconstruction.double().numpy(), strict=True)
    chroma = [np.abs((rgb2ycbcr(one, channel_axis=0) - rgb2ycbcr(other, channel_axis=0))[1:]) for one, other in pairs]
    return {
        "rmse": np.mean(np.sqrt(np.mean(errors**2, axis=1) + 1e-8)).item(),
        "kl": kl,
        "active_units": int(np.sum(nats >= ACTIVE_NATS)),
        "l1": np.mean(np.abs(errors)).item(),
        "chroma": np.mean(chroma).item() / 224,  # scikit-image's reach from 16 to 240
        "rate": kl / np.log(2) / images[0, 0].numel(),
        "information": np.sum(nats).item(),
    }


@given(count=st.integers(1, 30), dims=st.integers(1, 8), seed=SEEDS, cuts=st.lists(st.integers(0, 100), max_size=5))
def test_figures_agree_with_float64_however_the_data_are_split(
    count: int, dims: int, seed: int, cuts: list[int]
) -> None:
    output, images = random_output(count, dims, seed)
    metrics = make_metrics(NAMES)
    for part in splits(count, cuts):
        metrics.update(batch_of(output, part), images[part])
    figures = {name: value.item() for name, value in metrics.compute().items()}
    assert figures == pytest.approx(naive(output, images), rel=1e-4)


def test_map_latents_are_counted_by_their_values() -> None:
    mean = torch.zeros(4, 2, 3, 3)
    mean[::2, 0, 1, 1] = 5.0
    posterior = DiagonalGaussian(mean, torch.zeros_like(mean))
    metrics = make_metrics(NAMES)
    metrics.update(VAEOutput(torch.zeros(4, 3, 2, 2), posterior, mean), torch.zeros(4, 3, 2, 2))
    assert metrics.compute()["active_units"].item() == 1


def test_points_have_no_kl() -> None:
    mean = torch.zeros(4, 2, 3, 3)
    mean[::2, 0, 1, 1] = 5.0
    metrics = make_metrics(NAMES)
    metrics.update(VAEOutput(torch.zeros(4, 3, 2, 2), PointPosterior(mean, 0.8), mean), torch.zeros(4, 3, 2, 2))
    figures = metrics.compute()
    assert figures["kl"].item() == 0
    assert figures["active_units"].item() == 1


def test_reset_starts_empty_again() -> None:
    output, images = random_output(5, 3, seed=0)
    metrics = make_metrics(NAMES)
    metrics.update(batch_of(output, slice(0, 4)), images[:4] * 0)
    metrics.reset()
    metrics.update(output, images)
    assert metrics.compute()["rmse"].item() == pytest.approx(naive(output, images)["rmse"], rel=1e-5)


@given(training=st.integers(1, 9), val=st.integers(1, 9), seed=SEEDS, cuts=st.lists(st.integers(0, 20)))
def test_the_mean_image_s_error_agrees_with_float64_however_the_data_are_split(
    training: int, val: int, seed: int, cuts: list[int]
) -> None:
    generator = torch.Generator().manual_seed(seed)
    seen, unseen = (torch.rand(count, 3, 4, 5, generator=generator) for count in (training, val))
    mean = mean_image(seen[part] for part in splits(training, cuts))
    value = baseline_of(mean, (unseen[part] for part in splits(val, cuts))).rmse
    errors = (unseen.double().numpy() - seen.double().numpy().mean(axis=0)).reshape(val, -1)
    assert value == pytest.approx(np.mean(np.sqrt(np.mean(errors**2, axis=1) + 1e-8)), rel=1e-5)


@given(count=st.integers(1, 6), seed=SEEDS)
def test_psnr_and_ssim_are_means_over_images(count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    images, noise = torch.rand(2, count, 3, 12, 14, generator=generator)
    reconstruction = images + 0.3 * (noise - images)
    zeros = torch.zeros(count, 2)
    metrics = make_metrics(("psnr", "ssim"))
    for part in splits(count, [2, 3]):
        metrics.update(
            VAEOutput(reconstruction[part], DiagonalGaussian(zeros[part], zeros[part]), zeros[part]), images[part]
        )
    figures = metrics.compute()
    pairs = list(zip(images.double().numpy(), reconstruction.double().numpy(), strict=True))
    psnr = np.mean([peak_signal_noise_ratio(one, other, data_range=1.0) for one, other in pairs])
    assert figures["psnr"].item() == pytest.approx(psnr, rel=1e-6)
    options = {"data_range": 1.0, "channel_axis": 0, "gaussian_weights": True, "sigma": 1.5}
    ssim = [structural_similarity(one, other, use_sample_covariance=False, **options) for one, other in pairs]
    assert figures["ssim"].item() == pytest.approx(np.mean(ssim), abs=1e-6)


def test_similarity_at_several_scales_is_1_for_equal_images_and_falls_with_the_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 180, 176, generator=generator)
    noise = torch.randn(images.shape, generator=generator)
    values = []
    for scale in (0.0, 0.1, 0.3):
        metric = make_metrics(("ms_ssim",))
        metric.update(output_for((images + scale * noise).clamp(0, 1)), images)
        values.append(metric.compute()["ms_ssim"].item())
    assert values[0] == pytest.approx(1)
    assert values == sorted(values, reverse=True)
    with pytest.raises(InvalidOptionError, match="at least 176 pixels a side, got 175x176"):
        make_metrics(("ms_ssim",)).update(output_for(images[..., :175, :]), images[..., :175, :])


@pytest.mark.usefixtures("without_shape_checks")
def test_metrics_may_be_ones_own_and_keep_their_order() -> None:
    own = RMSE()
    assert list(make_metrics(("kl", "rmse"))) == ["kl", "rmse"]
    assert list(make_metrics({"mine": own})) == ["mine"]
    with pytest.raises(UnknownNameError, match="Did you mean 'psnr'"):
        make_metrics(("pnsr",))
    with pytest.raises(InvalidOptionError, match="twice"):
        make_metrics(("rmse", own))
    with pytest.raises(InvalidOptionError, match=r"torchmetrics\.Metric"):
        make_metrics({"mine": 5})  # type: ignore[dict-item]


def output_for(reconstruction: Tensor) -> VAEOutput:
    zeros = torch.zeros(len(reconstruction), 2)
    return VAEOutput(reconstruction, DiagonalGaussian(zeros, zeros), zeros)


def distances(images: Tensor, reconstruction: Tensor) -> dict[str, float]:
    metrics = make_metrics([{"name": name, "extractor": "timm:test_resnet", "weights": None} for name in ("fd", "kd")])
    for part in splits(len(images), [7, 20]):
        metrics.update(output_for(reconstruction[part]), images[part])
    return {name: value.item() for name, value in metrics.compute().items()}


def test_distances_of_features_agree_with_numpy() -> None:
    generator = torch.Generator().manual_seed(0)
    images, noise = torch.rand(2, 150, 3, 32, 32, generator=generator)
    reconstruction = 0.7 * images + 0.3 * noise.mean(dim=(2, 3), keepdim=True)
    figures = distances(images, reconstruction)
    network = create_backbone("timm:test_resnet", weights=None)
    with torch.no_grad():
        one, two = (network(batch).mean(dim=(2, 3)).double().numpy() for batch in (images, reconstruction))
    root = np.sqrt(np.linalg.eigvals(np.cov(one.T) @ np.cov(two.T)).astype(complex)).real.sum()
    frechet = np.sum((one.mean(0) - two.mean(0)) ** 2) + np.trace(np.cov(one.T) + np.cov(two.T)) - 2 * root
    assert figures["fd"] == pytest.approx(frechet, rel=1e-3)

    def kernel(left: Any, right: Any) -> Any:
        return (left @ right.T / left.shape[1] + 1) ** 3

    count = len(one)
    inner = [kernel(part, part) for part in (one, two)]
    within = sum((values.sum() - np.trace(values)) / (count * (count - 1)) for values in inner)
    assert figures["kd"] == pytest.approx(within - 2 * kernel(one, two).mean(), rel=1e-3)  # a subset is the whole set


def test_distances_grow_with_the_noise_and_are_0_for_the_same_images() -> None:
    generator = torch.Generator().manual_seed(0)
    images, noise = torch.rand(2, 60, 3, 32, 32, generator=generator)
    figures = [distances(images, images + level * (noise - images)) for level in (0.0, 0.2, 0.5, 1.0)]
    assert figures[0]["fd"] < 1e-3
    for one, other in pairwise(figures[:3]):
        assert one["fd"] < other["fd"]


def test_a_distance_needs_two_images() -> None:
    with pytest.raises(InvalidOptionError, match="at least two images"):
        distances(torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32))
