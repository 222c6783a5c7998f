import pytest
import torch
from torch import Tensor, nn

import transfervae as tv
from tests.samples import make_backbone
from transfervae import FrozenBackbone
from transfervae.backbones._folding import fold_normalisation
from transfervae.objectives import FeatureDiscriminator, FeatureError


def with_statistics(backbone: FrozenBackbone) -> FrozenBackbone:
    """Normalisation as after a training: random weights have the identity's."""
    generator = torch.Generator().manual_seed(0)
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value in (module.running_mean, module.bias):
                assert value is not None
                value.data.copy_(torch.randn(value.shape, generator=generator))
            for value in (module.running_var, module.weight):
                assert value is not None
                value.data.copy_(0.5 + torch.rand(value.shape, generator=generator))
    return backbone


def normalisations(module: nn.Module) -> int:
    return sum(isinstance(part, nn.BatchNorm2d) for part in module.modules())


@pytest.mark.parametrize("name", ["timm:test_resnet", "timm:test_efficientnet", "packaged"])
def test_features_are_the_same_without_normalisation(name: str) -> None:
    weights = "default" if name == "packaged" else None
    backbone = tv.create_backbone(name, node=[0, 1, 2], weights=weights)
    if name != "packaged":
        with_statistics(backbone)
    before, fingerprint = normalisations(backbone), backbone.fingerprint
    folded = fold_normalisation(backbone)
    assert before > 0
    assert normalisations(folded) == 0
    assert (normalisations(backbone), backbone.fingerprint) == (before, fingerprint)
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    for one, other in zip(backbone.maps(images), folded.maps(images), strict=True):
        assert (one - other).abs().max() < 1e-4 * one.abs().max()
    assert not any(parameter.requires_grad for parameter in folded.parameters())


class ReadTwice(nn.Module):
    """A convolution whose output is normalised, and read as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, kernel_size=3, padding=1)
        self.normalisation = nn.BatchNorm2d(4)

    def forward(self, images: Tensor) -> Tensor:
        read: Tensor = self.convolution(images)
        added: Tensor = self.normalisation(read).relu() + read
        return added


def test_a_convolution_that_is_read_elsewhere_keeps_its_normalisation() -> None:
    backbone = FrozenBackbone.from_module(ReadTwice(), mean=(0.5,) * 3, std=(0.5,) * 3)
    assert fold_normalisation(with_statistics(backbone)) is backbone


def test_networks_without_normalisation_by_batch_stay_themselves() -> None:
    backbone = make_backbone("vit")
    assert fold_normalisation(backbone) is backbone


def test_terms_read_folded_networks() -> None:
    backbone = make_backbone("resnet")
    term = FeatureError()
    term.attach(backbone)
    judge = FeatureDiscriminator()
    judge.attach(backbone)
    for owner in (term, judge):
        assert owner._network is not None
        assert normalisations(owner._network.on(torch.device("cpu"))) == 0
    assert normalisations(backbone) > 0
