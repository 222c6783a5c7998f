from pathlib import Path
from typing import Any

import pytest
import torch

from tests.samples import random_images
from transfervae import create_backbone
from transfervae.backbones.create import BACKBONES
from transfervae.errors import CheckpointError, UnknownNameError


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("vgg91", "Did you mean 'vgg19'"),
        ("package", "Did you mean 'packaged'"),
        ("nothing like it", r"Known: vgg19, packaged, .*timm:NAME"),
        ("resnet18", "use 'timm:resnet18'"),
        ("VGG19", "Unknown backbone 'VGG19'"),
        ("", "Known: vgg19"),
    ],
)
def test_an_unknown_name_is_refused_with_advice(name: str, advice: str) -> None:
    with pytest.raises(UnknownNameError, match=advice):
        create_backbone(name, weights=None)


def test_random_weights_are_the_same_in_every_call_whatever_the_global_seed() -> None:
    fingerprints = set()
    for seed in range(3):
        torch.manual_seed(seed)
        fingerprints.add(create_backbone("vgg19", node="block1_pool", weights=None).fingerprint)
    assert len(fingerprints) == 1


def test_weights_may_be_a_path_or_its_text(tmp_path: Path) -> None:
    source = create_backbone("vgg19", node="block1_pool", weights=None)
    path = tmp_path / "weights.pth"
    torch.save(source.network.state_dict(), path)
    for weights in (path, str(path)):
        backbone = create_backbone("vgg19", node="block1_pool", weights=weights)
        assert backbone.source.weights == str(path)
        assert torch.equal(backbone(random_images()), source(random_images()))


@pytest.mark.parametrize("name", ["vgg19", "packaged", "timm:test_resnet"])
def test_a_weights_file_that_is_missing_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"missing\.pth"):
        create_backbone(name, weights=tmp_path / "missing.pth")


def test_the_table_of_backbones_is_read_only() -> None:
    table: Any = BACKBONES
    with pytest.raises(TypeError):
        table["mine"] = BACKBONES["vgg19"]
