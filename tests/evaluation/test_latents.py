import importlib
import warnings
from functools import partial
from types import ModuleType

import numpy as np
import pytest
import sklearn.ensemble
import torch
from torch import Tensor

import transfervae as tv
from tests.samples import make_vae
from transfervae import DiagonalGaussian
from transfervae.data import SelectedImages
from transfervae.errors import InvalidOptionError
from transfervae.evaluation import disentanglement, measure_latents, mutual_information
from transfervae.evaluation.latents import as_vectors, known_factors

FACES = tv.ToyFaces(24, 32, dtype=torch.uint8)


@pytest.fixture(scope="module")
def disent() -> dict[str, ModuleType]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what it has not installed
        return {name: importlib.import_module(f"disent.metrics._{name}") for name in ("dci", "mig")}


def latents_and_factors(count: int = 300) -> tuple[Tensor, Tensor]:
    """Latents of which some stand for one factor, some for two, and one for none."""
    generator = torch.Generator().manual_seed(0)
    factors = torch.randint(0, 4, (count, 3), generator=generator)
    noise = torch.randn(count, 5, generator=generator)
    first, second, third = factors.T
    signal = torch.stack([2 * first, first + second, second, 3 * third, 0 * third], dim=1)
    return signal + 0.3 * noise, factors


def test_dci_is_that_of_disent(disent: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    trees = partial(sklearn.ensemble.GradientBoostingClassifier, random_state=0)  # which decides between equal splits
    monkeypatch.setattr(sklearn.ensemble, "GradientBoostingClassifier", trees)
    latents, factors = latents_and_factors()
    order = torch.randperm(len(latents), generator=torch.Generator().manual_seed(0))
    held_out, learned = order[:60], order[60:]
    parts = [values[part].double().numpy().T for part in (learned, held_out) for values in (latents, factors)]
    expected = disent["dci"]._compute_dci(*parts)
    found = disentanglement(latents, factors)
    assert found.disentanglement == pytest.approx(expected["dci.disentanglement"], abs=1e-6)
    assert found.completeness == pytest.approx(expected["dci.completeness"], abs=1e-6)
    assert found.informativeness == pytest.approx(expected["dci.informativeness_test"], abs=1e-6)


def test_mig_is_that_of_disent(disent: dict[str, ModuleType]) -> None:
    latents, factors = latents_and_factors()
    expected = disent["mig"]._compute_mig(latents.double().numpy().T, factors.numpy().T)
    assert disentanglement(latents, factors).mig == pytest.approx(expected["mig.discrete_score"], abs=1e-9)


def test_latents_that_are_the_factors_score_best_and_noise_worst() -> None:
    generator = torch.Generator().manual_seed(0)
    factors = torch.rand(300, 3, generator=generator)
    best = disentanglement(3 * factors, factors)
    assert min(best[:3]) > 0.99
    assert best.mig > 0.7
    mixed = disentanglement(factors @ torch.randn(3, 3, generator=generator), factors)
    noise = disentanglement(torch.randn(300, 3, generator=generator), factors)
    for name in ("disentanglement", "completeness", "informativeness", "mig"):
        assert getattr(best, name) > getattr(mixed, name) > getattr(noise, name)
    assert noise.informativeness < 0.1


def test_scores_need_something_to_score() -> None:
    latents = torch.randn(20, 3)
    varying = torch.randn(20, 1)
    constant = torch.cat([varying, torch.ones(20, 1)], dim=1)
    assert disentanglement(latents, constant).mig == disentanglement(latents, varying).mig
    with pytest.raises(InvalidOptionError, match="a factor that varies"):
        disentanglement(latents, torch.ones(20, 2))
    with pytest.raises(InvalidOptionError, match="10 images"):
        disentanglement(latents[:9], varying[:9])
    with pytest.raises(InvalidOptionError, match=r"d at least 2.*got \[20, 1\] and \[20, 1\]"):
        disentanglement(latents[:, :1], varying)


@pytest.mark.parametrize("noise", [0.3, 1.0, 3.0])
def test_mutual_information_is_that_of_a_gaussian_channel(noise: float) -> None:
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(3000, 2, generator=generator)
    posterior = DiagonalGaussian(means, torch.full_like(means, 2 * np.log(noise)))
    expected = 2 * 0.5 * np.log(1 + 1 / noise**2)
    assert mutual_information(posterior) == pytest.approx(expected, abs=0.06)


def test_mutual_information_is_bounded_by_the_number_of_images_and_0_for_noise() -> None:
    means = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    sharp = DiagonalGaussian(means, torch.full_like(means, -20.0))
    assert mutual_information(sharp) == pytest.approx(np.log(50), rel=1e-6)
    same = DiagonalGaussian(torch.zeros_like(means), torch.zeros_like(means))
    assert mutual_information(same) == pytest.approx(0, abs=1e-9)


def test_large_maps_are_averaged_until_they_fit() -> None:
    small, large = torch.rand(2, 16, 8, 8), torch.rand(2, 512, 14, 14)
    assert torch.equal(as_vectors(small), small.flatten(1))
    assert as_vectors(large).shape[1] <= 4096
    torch.testing.assert_close(as_vectors(large).unflatten(1, (512, -1)).mean(2), large.mean((2, 3)))


def test_the_factors_of_selected_faces_are_theirs() -> None:
    every = known_factors(FACES)
    some = known_factors(SelectedImages(FACES, [5, 2]))
    assert every is not None
    assert some is not None
    assert torch.equal(some, every[[5, 2]])
    assert some[0, 0].item() == pytest.approx(FACES.factors(5).skin_tone)


def test_latents_of_drawn_faces_are_scored_against_their_factors() -> None:
    measured = measure_latents(make_vae("resnet"), FACES, batch_size=7)
    names = {"mutual_information", "dci_disentanglement", "dci_completeness", "dci_informativeness", "mig"}
    assert measured.figures.keys() == names
    assert measured.remarks == ["Classes were not probed: the images have none."]
    again = measure_latents(make_vae("resnet"), FACES, batch_size=24)
    assert measured.figures == pytest.approx(again.figures, rel=1e-4)


def test_a_report_tells_classes_from_latents_and_from_features() -> None:
    class Labelled(torch.utils.data.Dataset[tuple[Tensor, int]]):
        def __len__(self) -> int:
            return 24

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            return FACES[index] // 2 + 40 * (index % 3), index % 3

    report = tv.evaluate(make_vae("resnet"), Labelled(), metrics=["rmse"], latents=True, likelihood_draws=3)
    assert report.figures["features_nearest_class"] > report.figures["chance"] == pytest.approx(1 / 3)
    assert {"nearest_class", "linear_probe", "features_linear_probe", "mutual_information", "nll"} <= set(
        report.figures
    )
    assert report.protocol["likelihood_draws"] == 3
