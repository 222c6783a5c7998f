"""A cache that is changed while it is read ends in an error that names the shard, not in a signal or other features."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader

from tests.cache.small import Noise, shard_bytes, tiny_backbone
from transfervae.cache import FeatureCache, manifest
from transfervae.cache._shards import RowFile
from transfervae.errors import CacheError


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FeatureCache:
    """A cache of four shards, the first of which has been read."""
    monkeypatch.setattr(manifest, "SHARD_BYTES", shard_bytes(3))
    cache = FeatureCache.build(tiny_backbone(), Noise(), tmp_path / "cache")
    _ = cache[0]
    return cache


@pytest.mark.parametrize("kind", ["features", "images"])
@pytest.mark.parametrize("change", ["truncated", "emptied", "overwritten", "longer"])
def test_a_shard_that_changes_while_it_is_read_is_named(cache: FeatureCache, kind: str, change: str) -> None:
    path = cache.folder / f"00000.{kind}.npy"
    size = path.stat().st_size
    if change in {"truncated", "emptied"}:
        os.truncate(path, size - 1 if change == "truncated" else 0)
    else:
        with path.open("r+b") as file:
            file.seek(-1 if change == "overwritten" else 0, os.SEEK_END)
            file.write(b"\x01")
    with pytest.raises(CacheError, match=rf"00000\.{kind}\.npy.* was changed while it was read; delete"):
        _ = cache[1]


def test_a_worker_that_finds_a_truncated_shard_says_so(cache: FeatureCache) -> None:
    loader = DataLoader(cache, batch_size=3, num_workers=1)
    for shard in (2, 3):
        os.truncate(cache.folder / f"{shard:05d}.images.npy", 100)
    with pytest.raises(CacheError, match=r"00002\.images\.npy"):
        list(loader)


def test_a_deleted_folder_can_be_read_on(cache: FeatureCache) -> None:
    shutil.rmtree(cache.folder)
    assert np.isfinite(cache[1].features.numpy()).all()
    with pytest.raises(CacheError, match=r"00001\..*npy.* cannot be read"):
        _ = cache[4]


@pytest.mark.parametrize(
    "header", [b"\x93NUMPY\x01\x00\x76\x00{'descr': '<f2', 'shape': (-1,)}", b"PK\x03\x04", b"\x93NUMPY\x09\x00"]
)
def test_odd_headers_are_refused(cache: FeatureCache, header: bytes) -> None:
    path = cache.folder / "00001.features.npy"
    path.write_bytes(header + path.read_bytes()[len(header) :])
    for open_shard in (lambda: cache[4], lambda: RowFile(path, (3, 4, 4, 4), np.dtype("<f2"), "repair")):
        with pytest.raises(CacheError, match=r"00001\.features\.npy"):
            open_shard()
