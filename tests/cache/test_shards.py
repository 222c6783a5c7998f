import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor

from tests.cache.small import Noise, tiny_backbone
from tests.strategies import features
from transfervae.cache import DTYPES, FeatureCache, Manifest
from transfervae.cache._shards import check_contents, check_sizes, open_shard, read_summary, to_array, to_features
from transfervae.errors import CacheError


@pytest.fixture
def built(tmp_path: Path) -> tuple[Path, Manifest]:
    """A folder with one shard."""
    cache = FeatureCache.build(tiny_backbone(), Noise(5), tmp_path / "cache")
    return cache.folder, cache.manifest


@pytest.mark.parametrize("dtype", DTYPES)
@given(values=features())
def test_features_come_back_bit_for_bit(dtype: str, values: Tensor, tmp_path_factory: pytest.TempPathFactory) -> None:
    stored = values.clamp(-6e4, 6e4).to(DTYPES[dtype])
    file = tmp_path_factory.mktemp("arrays") / "features.npy"
    np.save(file, to_array(stored), allow_pickle=False)
    manifest = Manifest(
        {}, {}, (1, 1), (1, 1, 1), dtype, flips=False, data={}, rows=1, rows_per_shard=1, computed_in=""
    )
    assert torch.equal(to_features(np.load(file), manifest), stored)


def test_numpy_alone_can_read_a_shard(built: tuple[Path, Manifest]) -> None:
    folder, _ = built
    images, halves = np.load(folder / "00000.images.npy"), np.load(folder / "00000.features.npy")
    assert np.array_equal(images, Noise(5).pixels.numpy())
    with torch.no_grad():
        expected = tiny_backbone()(Noise(5).pixels / 255).half()
    assert np.array_equal(halves, expected.numpy())


def test_bfloat16_is_the_upper_half_of_float32(tmp_path: Path) -> None:
    FeatureCache.build(tiny_backbone(), Noise(5), tmp_path / "cache", dtype=torch.bfloat16)
    bits = np.load(tmp_path / "cache" / "00000.features.npy")
    assert bits.dtype == np.dtype("<u2")
    values = (bits.astype(np.uint32) << 16).view(np.float32)
    with torch.no_grad():
        expected = tiny_backbone()(Noise(5).pixels / 255).bfloat16().float()
    assert np.array_equal(values, expected.numpy())


@pytest.mark.parametrize("kind", ["features", "images"])
def test_a_truncated_a_longer_and_a_missing_file_are_named(built: tuple[Path, Manifest], kind: str) -> None:
    folder, manifest = built
    path = folder / f"00000.{kind}.npy"
    whole = path.read_bytes()
    for content in (whole[:-1], whole + b"0", b"", None):
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        expected = "is missing" if content is None else f"has {len(content)} bytes instead of {len(whole)}"
        with pytest.raises(CacheError, match=rf"00000\.{kind}\.npy' {expected}.*delete .*00000\.json"):
            check_sizes(folder, manifest)
        assert read_summary(folder, 0) is None
        if content is None:
            path.write_bytes(whole)
    check_sizes(folder, manifest)
    check_contents(folder, manifest, 0)


@pytest.mark.parametrize("kind", ["features", "images"])
def test_one_other_bit_is_found(built: tuple[Path, Manifest], kind: str) -> None:
    folder, manifest = built
    path = folder / f"00000.{kind}.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    check_sizes(folder, manifest)
    with pytest.raises(CacheError, match=rf"00000\.{kind}\.npy' was changed after it was written"):
        check_contents(folder, manifest, 0)


def test_arrays_of_another_shape_or_type_are_refused(built: tuple[Path, Manifest]) -> None:
    folder, manifest = built
    path = folder / "00000.features.npy"
    fits = np.load(path)
    for array in (fits[:4], fits.astype(np.float32), fits[:, :2]):
        np.save(path, array)
        with pytest.raises(CacheError, match=r"00000\.features\.npy' holds .* the manifest says"):
            open_shard(folder, manifest, 0)
    path.write_bytes(b"no array")
    with pytest.raises(CacheError, match="cannot be read"):
        open_shard(folder, manifest, 0)


def test_no_pickle_is_read(built: tuple[Path, Manifest]) -> None:
    folder, manifest = built
    np.save(folder / "00000.features.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(CacheError, match="holds object"):
        open_shard(folder, manifest, 0)


@pytest.mark.parametrize("spoil", ["{", "[]", "{}", '{"features": 1, "images": 2, "items": []}'])
def test_a_garbled_list_of_items_is_named(built: tuple[Path, Manifest], spoil: str) -> None:
    folder, _ = built
    (folder / "00000.json").write_text(spoil)
    with pytest.raises(CacheError, match=r"00000\.json' cannot be read.*delete it"):
        read_summary(folder, 0)


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize(
    "entry", [{}, {"features": {}}, {"features": {"bytes": "many"}}, {"features": {"bytes": 768}}, None]
)
def test_a_manifest_whose_shards_were_edited_is_refused(built: tuple[Path, Manifest], entry: Any) -> None:
    folder, _ = built
    values = json.loads((folder / "manifest.json").read_bytes())
    values["shards"] = [entry]
    (folder / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(CacheError, match="edited"):
        FeatureCache(folder)
