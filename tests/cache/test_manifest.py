import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.cache.small import MEAN, STD, tiny_backbone
from tests.strategies import features
from transfervae.cache import DTYPES, Manifest
from transfervae.cache.manifest import SHARD_BYTES, backbone_identity, choose_rows, preprocessing_of
from transfervae.errors import CacheError, CacheMismatchError

PRECISION = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
"""The largest relative errors that `DTYPES` documents."""

RANGE = {"float16": (6.1e-5, 65504.0), "bfloat16": (1.2e-38, 3.38e38)}


def manifest(**changes: Any) -> Manifest:
    backbone = tiny_backbone()
    whole = Manifest(
        backbone=backbone.config,
        preprocessing=preprocessing_of(backbone),
        image_size=(8, 8),
        feature_shape=(4, 4, 4),
        dtype="float16",
        flips=False,
        data={"kind": "folder", "items": 10},
        rows=10,
        rows_per_shard=4,
        computed_in="float32",
    )
    return replace(whole, **changes)


@pytest.mark.parametrize("dtype", DTYPES)
@given(values=features(), power=st.integers(-30, 30))
def test_rounding_stays_within_the_documented_error(dtype: str, values: Tensor, power: int) -> None:
    values = values * 2.0**power
    low, high = RANGE[dtype]
    inside = values[(values.abs() >= low) & (values.abs() <= high)].double()
    stored = inside.float().to(DTYPES[dtype]).double()
    assert ((stored - inside).abs() <= PRECISION[dtype] * inside.abs()).all()


@pytest.mark.parametrize(("dtype", "value"), [("float16", 1 + 2.0**-11), ("bfloat16", 1 + 2.0**-8)])
def test_the_documented_error_is_the_largest_there_is(dtype: str, value: float) -> None:
    stored = torch.tensor(value).to(DTYPES[dtype]).double().item()
    assert abs(stored - value) / value == pytest.approx(PRECISION[dtype], rel=0.01)


@given(flips=st.booleans(), whole=st.booleans())
def test_what_is_written_is_read(*, flips: bool, whole: bool, tmp_path_factory: pytest.TempPathFactory) -> None:
    entry = {"features": {"bytes": 1, "crc32": 2}, "images": {"bytes": 3, "crc32": 4}}
    before = manifest(flips=flips, shards=[entry] * 3 if whole else None)
    folder = tmp_path_factory.mktemp("manifests")
    before.write(folder)
    after = Manifest.read(folder)
    after.check_same(before, folder)
    assert replace(after, backbone=before.backbone) == before


@given(bytes_a_row=st.integers(1, 2 * SHARD_BYTES), rows=st.integers(1, 10_000), ranks=st.integers(1, 64))
def test_shards_are_of_the_size_asked_for_and_rows_lie_in_one_each(bytes_a_row: int, rows: int, ranks: int) -> None:
    per_shard = choose_rows(bytes_a_row, rows, ranks)
    assert per_shard == 1 or per_shard * bytes_a_row <= SHARD_BYTES
    assert per_shard == 1 or (per_shard - 1) * ranks < rows
    split = manifest(rows=rows, rows_per_shard=per_shard)
    assert [row for shard in range(split.count) for row in split.shard_rows(shard)] == list(range(rows))


def forge(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads((folder / "manifest.json").read_bytes())
    change(values)
    (folder / "manifest.json").write_text(json.dumps(values))


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda values: values.update(transfervae_cache=2), "has format 2, this version of transfervae reads 1"),
        (lambda values: values.pop("transfervae_cache"), "has format None"),
        (lambda values: values.update(feature_shape=[4, 4]), "its shapes make no sense"),
        (lambda values: values.update(feature_shape=[4, 0, 4]), "its shapes make no sense"),
        (lambda values: values.update(image_size=8), "is no manifest"),
        (lambda values: values.update(image_size=[8.5, 8]), "its shapes make no sense"),
        (lambda values: values.update(image_size=["8", "8"]), "is no manifest"),
        (lambda values: values.update(rows_per_shard=0), "its shapes make no sense"),
        (lambda values: values.update(rows="many"), "is no manifest"),
        (lambda values: values.update(rows=10.0), "its shapes make no sense"),
        (lambda values: values.update(dtype="float8"), "dtype makes no sense"),
        (lambda values: values.update(flips=2), "flips makes no sense"),
        (lambda values: values.update(shards=[]), "lists 0 shards of 3"),
        (lambda values: values.update(shards=7), "is no manifest"),
        (lambda values: values.update(backbone="vgg19"), "is no manifest"),
        (lambda values: values["backbone"].pop("fingerprint"), "fingerprint"),
        (lambda values: values.update(preprocessing=[1, 2]), "is no manifest"),
        (lambda values: values.update(data=None), "data makes no sense"),
        (lambda values: values.pop("rows"), "rows"),
        (lambda values: values.update(colour="red"), "colour"),
    ],
)
def test_an_edited_manifest_is_refused(change: Callable[[dict[str, Any]], object], words: str, tmp_path: Path) -> None:
    manifest().write(tmp_path)
    forge(tmp_path, change)
    with pytest.raises(CacheError, match=words):
        Manifest.read(tmp_path)


@pytest.mark.parametrize("garbage", [b"", b"{", b"[1, 2]", b'"text"', b"\xff\xfe\x00", b"null"])
def test_a_garbled_manifest_is_refused(garbage: bytes, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(garbage)
    with pytest.raises(CacheError, match=r"manifest\.json"):
        Manifest.read(tmp_path)


def test_a_missing_one_names_the_command_that_builds_it(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="transfervae cache DATA --out"):
        Manifest.read(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dtype": "bfloat16"}, "dtype is float16, not bfloat16"),
        ({"flips": True}, "flips is False, not True"),
        ({"image_size": (8, 6)}, "image size is 8x8, not 8x6"),
        ({"rows": 12}, "rows is 10, not 12"),
        ({"computed_in": "bfloat16"}, "computed in is float32, not bfloat16"),
        ({"data": {"kind": "toyfaces"}}, "data kind is folder, not toyfaces; data items is 10, not none"),
    ],
)
def test_what_differs_is_named(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(CacheMismatchError, match=words):
        manifest().check_same(manifest(**changes), tmp_path)


def test_the_fingerprint_is_blamed_only_if_nothing_else_explains_it(tmp_path: Path) -> None:
    own = manifest()
    with pytest.raises(CacheMismatchError, match="other weights") as caught:
        own.check_backbone(tiny_backbone(seed=1), (8, 8), tmp_path)
    assert tiny_backbone().fingerprint[:12] in str(caught.value)
    assert tiny_backbone(seed=1).fingerprint[:12] in str(caught.value)
    with pytest.raises(CacheMismatchError, match=r"mean is \[0\.5, 0\.5, 0\.5\], not \[0\.0") as caught:
        own.check_backbone(tiny_backbone(mean=(0.0, 0.0, 0.0)), (8, 8), tmp_path)
    assert "(fingerprint" not in str(caught.value)


def test_a_backbone_is_known_by_all_that_its_features_depend_on() -> None:
    identity = backbone_identity(tiny_backbone())
    assert identity == backbone_identity(tiny_backbone())
    assert (identity["mean"], identity["std"]) == (list(MEAN), list(STD))
    assert identity["backbone"] == "module:Conv2d"
    for other in (tiny_backbone(seed=1), tiny_backbone(std=(0.5, 0.5, 0.5))):
        assert backbone_identity(other)["fingerprint"] != identity["fingerprint"]
