import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

import transfervae as tv
from tests.integration.command import assert_one_line_error, assert_succeeds, run
from transfervae.backbones import (
    BackboneDescription,
    LicenseWarning,
    NodeDescription,
    backbone_names,
    describe_backbone,
    is_backbone,
    license_remark,
    list_backbones,
)
from transfervae.backbones.catalogue import from_row, read_catalogue, to_row
from transfervae.backbones.licenses import PERMISSIVE, REMARKS, warn_of_license
from transfervae.errors import ImageSizeError, UnknownNameError, UnsupportedBackboneError

SAMPLE = (
    "test_vit",
    "test_resnet",
    "test_coatnet",
    "test_mambaout",
    "resnet50",
    "vit_small_patch14_dinov2",
    "swin_tiny_patch4_window7_224",
    "convnextv2_atto",
    "efficientvit_b0",
    "levit_128s",
    "mixer_s32_224",
    "crossvit_tiny_240",
    "xcit_nano_12_p16_224",
    "tf_efficientnet_lite0",
)
NON_COMMERCIAL = "convnextv2_atto"
each_name = pytest.mark.parametrize("name", SAMPLE)

CREATE_WITH_DEFAULT_WEIGHTS = f"""
import transfervae as tv
backbone = tv.create_backbone("timm:{NON_COMMERCIAL}")
print(backbone.license, backbone.provenance.weights)
"""


def published(name: str) -> Any:
    return timm.get_pretrained_cfg(name)


@each_name
def test_the_table_says_what_the_network_gives(name: str) -> None:
    assert read_catalogue()[f"timm:{name}"] == describe_backbone(f"timm:{name}")


def test_every_network_of_the_timm_that_the_table_was_made_with_has_a_row() -> None:
    path = Path(tv.__file__).parent / "backbones" / "catalogue.json"
    made_with = json.loads(path.read_text())["timm"]
    missing = {f"timm:{name}" for name in timm.list_models()} - read_catalogue().keys()
    assert missing == set() or made_with != timm.__version__
    assert len(read_catalogue()) > 1000


@each_name
def test_a_row_holds_all_of_a_description(name: str) -> None:
    described = describe_backbone(f"timm:{name}")
    assert from_row(json.loads(json.dumps(to_row(described)))) == described


@pytest.mark.parametrize(
    ("name", "size"),
    [("vgg19", (64, 96)), ("packaged", (64, 96)), ("timm:test_convnext", (64, 96)), ("timm:test_coatnet", (64, 96))],
)
def test_what_is_described_is_what_a_backbone_gives(name: str, size: tuple[int, int]) -> None:
    described = describe_backbone(name, image_size=size)
    assert described.image_size == size
    for entry in described.nodes:
        backbone = tv.create_backbone(name, node=entry.node, image_size=size, weights=None)
        assert backbone.feature_shape(size) == (entry.channels, *entry.grid)
    default = tv.create_backbone(name, image_size=size, weights=None)
    assert default.provenance.node == described.default_node
    assert sum(parameter.numel() for parameter in default.parameters()) == described.parameters
    assert default.feature_shape(size) == (described.default.channels, *described.default.grid)


def test_a_description_in_figures() -> None:
    assert describe_backbone("timm:test_vit", image_size=(96, 128)) == BackboneDescription(
        name="timm:test_vit",
        image_size=(96, 128),
        nodes=tuple(NodeDescription(node, 64, (6, 8)) for node in range(6)),
        default_node=5,
        parameters=306_112,
        license="apache-2.0",
    )
    vgg19 = describe_backbone("vgg19", image_size=64)
    assert len(vgg19.nodes) == 21
    assert vgg19.nodes[0] == NodeDescription("block1_conv1", 64, (64, 64))
    assert vgg19.default == NodeDescription("block5_pool", 512, (2, 2))
    assert vgg19.stride == 32
    assert vgg19.parameters == 20_024_384


def test_names_are_taken_with_and_without_prefix_and_tag() -> None:
    assert describe_backbone("test_vit") == describe_backbone("timm:test_vit")
    assert describe_backbone("timm:test_vit.r160_in1k").name == "timm:test_vit.r160_in1k"
    for name in ("vgg19", "packaged", "efficientnet_lite0", "timm:test_vit", "test_vit", "timm:test_vit.r160_in1k"):
        assert is_backbone(name)
    for name in ("vgg20", "timm:", "timm:test_vi", "*", ""):
        assert not is_backbone(name)
    for name in ("timm:test_vi", "timm:test_vit.r160", "vgg20"):
        with pytest.raises(UnknownNameError, match="Did you mean"):
            describe_backbone(name)
    with pytest.raises(UnknownNameError, match="Unknown timm network ''"):
        describe_backbone("timm:")


def test_an_alias_is_described_as_what_it_stands_for() -> None:
    assert describe_backbone("efficientnet_lite0") == describe_backbone("packaged")


@pytest.mark.parametrize("name", ["auto", "diffusers_rae", "keras_vgg19"])
def test_a_name_that_does_not_tell_what_the_network_is_is_not_described(name: str) -> None:
    assert not is_backbone(name)
    with pytest.raises(UnsupportedBackboneError, match=f"'{name}' alone does not tell"):
        describe_backbone(name)


@pytest.mark.parametrize(
    ("name", "size", "words"),
    [
        ("timm:test_vit", (33, 48), "33x48 images; the nearest sizes that it takes: 32x48, 48x48"),
        ("timm:test_convnext", (8, 40), "8x40 images"),
        ("vgg19", (20, 64), "20x64 images; .*: 32x64, 32x32"),
        ("packaged", (0, 8), "0"),
    ],
)
def test_sizes_that_cannot_be_described_are_refused_with_the_nearest(
    name: str, size: tuple[int, int], words: str
) -> None:
    with pytest.raises(ImageSizeError, match=words):
        describe_backbone(name, image_size=size)


def test_backbones_are_listed_by_pattern() -> None:
    assert {entry.name for entry in list_backbones("test_vit*")} == {
        f"timm:{name}" for name in timm.list_models("test_vit*")
    }
    assert [entry.name for entry in list_backbones("timm:test_resnet")] == ["timm:test_resnet"]
    assert [entry.name for entry in list_backbones("est_resne")] == ["timm:test_resnet"]
    assert [entry.name for entry in list_backbones("vgg1?")][:1] == ["vgg19"]
    assert [entry.name for entry in list_backbones("packag[ef]d")] == ["packaged"]
    assert not list(list_backbones("nothing like it"))


def test_names_are_those_of_timm_and_our_own() -> None:
    names = backbone_names()
    assert names[:2] == ["vgg19", "packaged"]
    assert names[2:] == [f"timm:{name}" for name in timm.list_models()]
    assert all(map(is_backbone, names))


@pytest.mark.parametrize(
    ("license_name", "remark"),
    [
        (None, ""),
        *((name, "") for name in sorted(PERMISSIVE)),
        ("cc-by-nc-4.0", "non-commercial"),
        ("apple-amlr", "non-commercial"),
        ("unknown", "unknown"),
        ("dinov3-license", "own terms"),
        ("gemma", "own terms"),
    ],
)
def test_what_a_licence_allows_is_told_and_warned_of(license_name: str | None, remark: str) -> None:
    assert license_remark(license_name) == remark
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_license("mine", license_name)
    assert len(caught) == bool(remark)
    for entry in caught:
        assert entry.category is LicenseWarning
        what = "unknown" if remark == "unknown" else f"{license_name} ({remark})"
        assert str(entry.message) == f"The licence of mine's weights is {what}; read it first."


def test_every_licence_that_says_non_commercial_is_remarked() -> None:
    licences = {str(published(name).license or "") for name in timm.list_pretrained()}
    forbidding = {name for name in licences if "-nc" in name or "noncommercial" in name.replace("-", "")}
    assert forbidding
    assert {name for name in forbidding if license_remark(name) != "non-commercial"} == set()
    assert not PERMISSIVE & REMARKS.keys()


@pytest.mark.parametrize(
    ("name", "license_name"), [("convnextv2_atto", "cc-by-nc-4.0"), ("test_vit", "apache-2.0"), ("fastvit_t8", None)]
)
def test_published_weights_are_warned_of_on_creation_and_others_are_not(
    name: str, license_name: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("transfervae.backbones._timm._loading_options", lambda *_, **__: {})
    license_name = license_name or str(published(name).license or "unknown")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        backbone = tv.create_backbone(f"timm:{name}")
        tv.create_backbone(f"timm:{name}", weights=None)
        own = tv.create_backbone(f"timm:{name}", weights=tmp_path / "own.pth")
    assert [entry.category for entry in caught] == [LicenseWarning] * bool(license_remark(license_name))
    assert backbone.license == license_name
    assert own.license is None


def test_the_warning_points_at_the_caller_and_cached_weights_need_no_network(tmp_path: Path) -> None:
    config = published(NON_COMMERCIAL)
    torch.manual_seed(0)
    folder = tmp_path / f"models--{config.hf_hub_id.replace('/', '--')}"
    (snapshot := folder / "snapshots" / "revision").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("revision")
    save_file(timm.create_model(NON_COMMERCIAL).state_dict(), snapshot / "model.safetensors")
    process = subprocess.run(
        [sys.executable, "-c", CREATE_WITH_DEFAULT_WEIGHTS],
        env={**os.environ, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert process.stdout.split() == ["cc-by-nc-4.0", "default"]
    warning = f"LicenseWarning: The licence of timm:{NON_COMMERCIAL}'s weights is cc-by-nc-4.0 (non-commercial)"
    assert f"<string>:3: {warning}" in process.stderr


def test_the_command_lists_all_backbones() -> None:
    shown = assert_succeeds(run("backbones"))
    assert f"{len(timm.list_models()) + 2} backbones" in shown
    names = ""
    for name, width, *_ in (line.split("│")[1:-1] for line in shown.splitlines() if "│" in line):
        names += f" {name.strip()}" if width.strip() else name.strip()  # long names take two lines
    assert names.split() == backbone_names()
    assert "cc-by-nc-4.0 (non-commercial)" in shown


def test_the_command_lists_those_of_a_pattern() -> None:
    shown = assert_succeeds(run("backbones", "test_*net"))
    names = timm.list_models("test_*net")
    assert f"{len(names)} backbones, at their default nodes" in shown
    assert all(f"timm:{name}" in shown for name in names)


def test_the_command_shows_the_nodes_of_one_at_a_size() -> None:
    shown = assert_succeeds(run("backbones", "timm:test_convnext", "--image-size", "96x128"))
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines() if "│" in line]
    assert rows == [["0", "24", "24x32"], ["1", "32", "12x16"], ["2", "48", "6x8"], ["3 (default)", "64", "3x4"]]
    assert "timm:test_convnext, 96x128 images" in shown
    assert "licence of the default weights: apache-2.0" in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("timm:resnt50",), ("timm:resnt50", "Did you mean 'timm:resnet50'")),
        (("timm:test_vit", "--image-size", "33"), ("33x33", "32x32")),
    ],
)
def test_the_command_refuses_in_one_line(arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    assert_one_line_error(run("backbones", *arguments), *words)
