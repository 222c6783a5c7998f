"""A shard: the features and images of consecutive rows in two NPY files, and a JSON file that says whose they are."""

import io
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from transfervae.cache.manifest import Manifest
from transfervae.data import ItemRecord
from transfervae.errors import CacheError
from transfervae.files import write_atomically, write_json

KINDS = ("features", "images")
FILES = (*KINDS, "items")
FEATURE_TYPES = MappingProxyType({"float16": "<f2", "bfloat16": "<u2"})
CHUNK = 2**24


class Shard(NamedTuple):
    """The mapped files of a shard.

    Attributes:
        features: `[rows, (2,) c, h', w']`; bfloat16 as its bits.
        images: `[rows, 3, h, w]`, uint8.
    """

    features: NDArray[Any]
    images: NDArray[Any]


def shard_file(folder: Path, shard: int, kind: str) -> Path:
    """Name of one of a shard's files; kind is "features", "images" or "items"."""
    return folder / (f"{shard:05d}.json" if kind == "items" else f"{shard:05d}.{kind}.npy")


def stored_dtype(manifest: Manifest, kind: str) -> np.dtype[Any]:
    """NumPy's type of a shard's file; NumPy has no bfloat16, its bits are stored as integers."""
    return np.dtype(FEATURE_TYPES[manifest.dtype] if kind == "features" else "u1")


def to_array(values: Tensor) -> NDArray[Any]:
    """A tensor on the CPU as it is stored."""
    return values.view(torch.int16).numpy().view("<u2") if values.dtype == torch.bfloat16 else values.numpy()


def to_features(stored: NDArray[Any], manifest: Manifest) -> Tensor:
    """A copy of stored features as a tensor."""
    if manifest.dtype == "bfloat16":
        return torch.from_numpy(np.array(stored).view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(np.array(stored))


def write_shard(
    folder: Path, shard: int, arrays: Mapping[str, NDArray[Any]], items: Sequence[Sequence[object]]
) -> None:
    """Write a shard's files, the JSON last: a shard that has it is whole.

    Raises:
        FileWriteError: If a file cannot be written, for example because the disk is full.
    """
    summary: dict[str, Any] = {}
    for kind, array in arrays.items():
        content = _as_npy(array)
        write_atomically(shard_file(folder, shard, kind), content)
        summary[kind] = {"bytes": len(content), "crc32": zlib.crc32(content)}
    write_json(shard_file(folder, shard, "items"), {**summary, "items": list(items)})


def read_summary(folder: Path, shard: int) -> dict[str, Any] | None:
    """What a shard's JSON says; None if the shard is not there or not whole.

    Raises:
        CacheError: If it is no such file.
    """
    path = shard_file(folder, shard, "items")
    try:
        summary: dict[str, Any] = json.loads(path.read_bytes())
        sizes = {kind: int(summary[kind]["bytes"]) for kind in KINDS}
        _ = [int(summary[kind]["crc32"]) for kind in KINDS], list(summary["items"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CacheError(f"{str(path)!r} cannot be read: {error}; delete it and build the cache again.") from error
    is_whole = all(_size(shard_file(folder, shard, kind)) == size for kind, size in sizes.items())
    return summary if is_whole else None


def read_items(folder: Path, manifest: Manifest, shard: int) -> list[ItemRecord] | None:
    """What a shard was made of; None if the shard is not there or not whole.

    Raises:
        CacheError: If the list cannot be read, or is not that of the shard.
    """
    summary = read_summary(folder, shard)
    if summary is None:
        return None
    try:
        items = [ItemRecord(*item) for item in summary["items"]]
    except TypeError:
        items = []
    if len(items) != len(manifest.shard_rows(shard)):
        raise CacheError(f"{str(shard_file(folder, shard, 'items'))!r} was edited; {_repair(folder, shard)}.")
    return items


def check_sizes(folder: Path, manifest: Manifest) -> None:
    """Make sure that all files are there, in the size that they were written in.

    Raises:
        CacheError: If one is missing, truncated, or longer.
    """
    for shard, summary in enumerate(manifest.shards or ()):
        for kind in FILES:
            path = shard_file(folder, shard, kind)
            try:
                expected, _ = int(summary[kind]["bytes"]), int(summary[kind]["crc32"])
            except (KeyError, TypeError, ValueError) as error:
                raise CacheError(
                    f"The manifest in {str(folder)!r} was edited: shard {shard} has no size and checksum of its {kind}."
                ) from error
            found = _size(path)
            if found != expected:
                state = "is missing" if found is None else f"has {found} bytes instead of {expected}"
                raise CacheError(f"{str(path)!r} {state}; {_repair(folder, shard)}.")


def summarise_file(path: Path) -> dict[str, int]:
    """A file's bytes and CRC-32."""
    content = path.read_bytes()
    return {"bytes": len(content), "crc32": zlib.crc32(content)}


def map_shard(folder: Path, manifest: Manifest, shard: int) -> Shard:
    """Map a shard's files into memory.

    Raises:
        CacheError: If they are not what the manifest says.
    """
    return Shard(*(_map(folder, manifest, shard, kind) for kind in KINDS))


def check_contents(folder: Path, manifest: Manifest, shard: int) -> None:
    """Compare checksums of a shard's files.

    Raises:
        CacheError: If a file is not the one that was written.
    """
    for kind in FILES:
        path = shard_file(folder, shard, kind)
        if _checksum(path) != (manifest.shards or ())[shard][kind]["crc32"]:
            raise CacheError(f"{str(path)!r} was changed after it was written; {_repair(folder, shard)}.")


def _map(folder: Path, manifest: Manifest, shard: int, kind: str) -> NDArray[Any]:
    path = shard_file(folder, shard, kind)
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise CacheError(f"{str(path)!r} cannot be read: {error}; {_repair(folder, shard)}.") from error
    expected = (len(manifest.shard_rows(shard)), *manifest.row_shapes[kind]), stored_dtype(manifest, kind)
    if (array.shape, array.dtype) != expected:
        found = f"{array.dtype} {list(array.shape)}"
        raise CacheError(
            f"{str(path)!r} holds {found}, the manifest says {expected[1]} {list(expected[0])};"
            f" {_repair(folder, shard)}."
        )
    return array


def _repair(folder: Path, shard: int) -> str:
    item_file = str(shard_file(folder, shard, "items"))
    return f"delete {item_file!r} and run the command that built the cache again: it makes that shard anew"


def _as_npy(array: NDArray[Any]) -> bytes:
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    return content.getvalue()


def _size(path: Path) -> int | None:
    try:
        return os.stat(path).st_size  # noqa: PTH116 - a path is made for each of many files as it is
    except FileNotFoundError:
        return None


def _checksum(path: Path) -> int:
    value = 0
    try:
        with path.open("rb", buffering=0) as file:
            while chunk := file.read(CHUNK):
                value = zlib.crc32(chunk, value)
    except OSError as error:
        raise CacheError(f"{str(path)!r} cannot be read: {error.strerror}.") from error
    return value
