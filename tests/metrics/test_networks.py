"""Metrics that compare features of networks, against the libraries that published figures come from."""

import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
import torch_fidelity
import torchvision
from torch import Tensor
from torch.utils.data import TensorDataset
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torchmetrics.functional.image.lpips import _NoTrainLpips
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

import transfervae as tv
from tests.samples import make_vae, random_images
from transfervae import DiagonalGaussian, VAEOutput
from transfervae.errors import (
    CheckpointError,
    InvalidOptionError,
    WeightsMismatchError,
    WeightsUnavailableError,
)
from transfervae.metrics import FID, KID, LPIPS, FeatureDistance, KernelDistance, PooledFeatures
from transfervae.objectives.perceptual import SMALLEST_SIDES

COUNT = 7


def output_of(reconstruction: Tensor) -> VAEOutput:
    zeros = torch.zeros(len(reconstruction), 2)
    return VAEOutput(reconstruction, DiagonalGaussian(zeros, zeros), zeros)


def smooth_images(count: int, size: int, seed: int = 0) -> Tensor:
    """Images of broad stripes and noise, on the 8-bit grid."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    images = torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear")
    images = (images + 0.05 * torch.randn(count, 3, size, size, generator=generator)).clamp(0, 1)
    return (images * 255).round() / 255


@pytest.fixture(scope="module")
def squeeze(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a classifier as torchvision publishes them, but random, under the name that its cache looks for."""
    folder = tmp_path_factory.mktemp("hub") / "checkpoints"
    folder.mkdir()
    torch.manual_seed(0)
    path = folder / "squeezenet1_1-b8a52dc0.pth"
    torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), path)
    return path


@pytest.mark.parametrize("count", [1, 5])
def test_lpips_is_that_of_torchmetrics(count: int, squeeze: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(squeeze.parents[1]))
    images, other = smooth_images(count, 48), smooth_images(count, 48, seed=1)
    reference = LearnedPerceptualImagePatchSimilarity("squeeze", normalize=True)
    reference.update(other, images)
    for weights in ("default", squeeze):
        metric = LPIPS(network="squeeze", weights=weights).train()
        metric.update(output_of(other), images)
        assert metric.compute().item() == pytest.approx(reference.compute().item(), rel=1e-6)
    metric.reset()
    metric.update(output_of(images), images)
    assert metric.compute().item() == 0


def test_lpips_says_what_it_cannot_do(squeeze: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metric = LPIPS(network="squeeze", weights=squeeze)
    small = torch.rand(2, 3, 16, 16)
    with pytest.raises(InvalidOptionError, match="at least 17 pixels a side, got 16x16"):
        metric.update(output_of(small), small)
    with pytest.raises(WeightsMismatchError, match="LPIPS's alex"):
        LPIPS(network="alex", weights=squeeze)
    with pytest.raises(CheckpointError, match="no weights file"):
        LPIPS(network="vgg", weights=tmp_path / "nothing.pth")
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    with pytest.raises(WeightsUnavailableError, match=r"vgg16-397923af\.pth.*Put the file there.*as weights"):
        LPIPS(network="vgg")


def refuse(*_: Any, **__: Any) -> None:
    raise urllib.error.URLError("no network")


@pytest.mark.parametrize("network", SMALLEST_SIDES)
def test_the_smallest_images_are_those_that_the_networks_take(network: Any) -> None:
    distance = _NoTrainLpips(net=network, pnet_rand=True)
    smallest = torch.rand(1, 3, SMALLEST_SIDES[network], SMALLEST_SIDES[network])
    distance(smallest, smallest)
    with pytest.raises(RuntimeError, match="too small"):
        distance(smallest[..., 1:], smallest[..., 1:])


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights for torch-fidelity's Inception, with activations that stay of one size."""
    from torch_fidelity import feature_extractor_inceptionv3 as module

    original = module.load_state_dict_from_url
    module.load_state_dict_from_url = lambda *_, **__: None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        torch.manual_seed(0)
        network = module.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    module.load_state_dict_from_url = original
    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    path = tmp_path_factory.mktemp("inception") / "inception.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_kid_is_that_of_torch_fidelity(inception: Path) -> None:
    images, other = smooth_images(COUNT, 40), smooth_images(COUNT, 40, seed=1)
    sets = [TensorDataset((part * 255).round().to(torch.uint8)) for part in (other, images)]
    expected = torch_fidelity.calculate_metrics(
        input1=Images(sets[0]),
        input2=Images(sets[1]),
        kid=True,
        kid_subset_size=COUNT,
        kid_subsets=1,
        cuda=False,
        cache=False,
        verbose=False,
        feature_extractor_weights_path=str(inception),
    )
    metric = KID(weights=inception)
    for part in (slice(0, 3), slice(3, COUNT)):
        metric.update(output_of(other[part]), images[part])
    assert metric.compute().item() == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-3)


def test_frechet_distances_are_those_of_torch_fidelity() -> None:
    images, other = smooth_images(400, 32), smooth_images(400, 32, seed=1)
    metric = FeatureDistance(extractor="packaged", node=1)
    for part in (slice(0, 150), slice(150, 400)):
        metric.update(output_of(other[part]), images[part])
    network = PooledFeatures("packaged", 1, "default")
    statistics = [fid_features_to_statistics(network(batch)) for batch in (images, other)]
    expected = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert metric.compute().item() == pytest.approx(expected, rel=1e-3)


class Images(torch.utils.data.Dataset[Tensor]):
    """Items as torch-fidelity takes them."""

    def __init__(self, images: TensorDataset) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        image: Tensor = self.images[index][0]
        return image


def test_a_file_of_another_network_is_no_inception(squeeze: Path) -> None:
    with pytest.raises(WeightsMismatchError, match="do not fit Inception"):
        FID(weights=squeeze)


def test_weights_of_inception_that_cannot_be_fetched_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    with pytest.raises(WeightsUnavailableError, match=r"Inception's weights \(weights-inception.*weights: FILE"):
        KID()


@pytest.mark.parametrize("kind", [FeatureDistance, KernelDistance])
def test_distances_grow_with_the_noise_and_vanish_for_equal_sets(kind: Any) -> None:
    images = smooth_images(40, 32)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(2))
    distances = []
    for scale in (0.0, 0.05, 0.1, 0.2, 0.4):
        metric = kind(extractor="packaged", node=1)
        metric.update(output_of((images + scale * noise).clamp(0, 1)), images)
        distances.append(metric.compute().item())
    if kind is FeatureDistance:  # the other is unbiased, and below 0 for equal sets
        assert abs(distances[0]) < 1e-3
    assert distances == sorted(distances)


def test_reports_name_the_networks_that_figures_depend_on(squeeze: Path, inception: Path) -> None:
    vae = make_vae("resnet").eval()
    images = random_images("resnet", count=4)
    metrics: list[Any] = [tv.Spec("lpips", network="squeeze", weights=squeeze), tv.Spec("kid", weights=inception), "kd"]
    report = tv.evaluate(vae, images, metrics=metrics)
    assert {"lpips", "kid", "kd"} <= report.figures.keys()
    hashes = report.protocol["extractors"]
    assert {name.partition(" ")[0] for name in hashes} == {"LPIPS", "Inception", "packaged"}
    assert all(len(value) == 64 for value in hashes.values())
