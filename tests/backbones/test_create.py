from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.samples import random_images
from transfervae import create_backbone
from transfervae.backbones import families, resolve_backbone_name, vgg
from transfervae.backbones.feature_spec import FeatureSpec
from transfervae.errors import CheckpointError, InvalidOptionError, UnknownNameError, WeightsUnavailableError


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
        assert backbone.provenance.weights == str(path)
        assert torch.equal(backbone(random_images()), source(random_images()))


@pytest.mark.parametrize("name", ["vgg19", "packaged", "timm:test_resnet"])
def test_a_weights_file_that_is_missing_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"missing\.pth"):
        create_backbone(name, weights=tmp_path / "missing.pth")


def test_the_table_of_backbones_is_read_only() -> None:
    table: Any = families.FAMILIES
    with pytest.raises(TypeError):
        table["mine"] = families.FAMILIES["vgg19"]


def test_packaged_has_the_network_s_name_as_an_alias() -> None:
    alias, packaged = (create_backbone(name, node=1) for name in ("efficientnet_lite0", "packaged"))
    assert alias.provenance.name == "packaged"
    assert alias.fingerprint == packaged.fingerprint


def test_auto_is_vgg19_or_what_needs_no_download(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise WeightsUnavailableError("nowhere to be had")

    for module in (families, vgg):
        monkeypatch.setattr(module, "fetch_vgg19_weights", refuse)
    assert resolve_backbone_name("auto") == ("packaged", "nowhere to be had")
    assert resolve_backbone_name("auto", None) == ("vgg19", "")
    assert resolve_backbone_name("vgg19") == ("vgg19", "")
    assert create_backbone("auto").provenance.name == "packaged"
    assert create_backbone("auto", node="block1_pool", weights="none").provenance.name == "vgg19"


@pytest.mark.parametrize(
    ("name", "text", "node"),
    [
        ("timm:test_resnet", "3", 3),
        ("timm:test_resnet", "-1", 4),
        ("timm:test_resnet", "1, 2", (1, 2)),
        ("vgg19", "block1_pool,block1_conv1", ("block1_pool", "block1_conv1")),
    ],
)
def test_nodes_grids_and_weights_may_be_text(name: str, text: str, node: object) -> None:
    backbone = create_backbone(name, node=text, grid="3x2", weights="none")
    assert backbone.provenance.node == node
    assert backbone.feature_shape(32)[1:] == (3, 2)
    assert backbone.provenance.weights is None


def test_auto_reads_vgg19_s_weights_once(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = vgg.build_vgg19(FeatureSpec(("block1_pool",))).state_dict()
    fetched: list[dict[str, Tensor]] = []

    def fetch() -> dict[str, Tensor]:
        fetched.append({f"features.{name}": value for name, value in layers.items()})
        return fetched[-1]

    for module in (families, vgg):
        monkeypatch.setattr(module, "fetch_vgg19_weights", fetch)
    backbone = create_backbone("auto", node="block1_pool")
    assert (backbone.provenance.name, backbone.provenance.weights) == ("vgg19", "default")
    assert len(fetched) == 1


@pytest.mark.parametrize("node", ["1,,2", ",", "1,layer1"])
def test_text_that_names_no_nodes_is_refused(node: str) -> None:
    with pytest.raises(InvalidOptionError, match="node"):
        create_backbone("timm:test_resnet", node=node, weights=None)


def test_every_family_describes_its_names() -> None:
    for family in families.FAMILIES.values():
        for name in list(family.names())[:1]:
            assert family.describe is not None
            assert family.describe(name, None).name == name
