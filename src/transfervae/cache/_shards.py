"""A shard: the features and images of consecutive rows in two NPY files, and a JSON file that says whose they are."""

import io
import json
import math
import os
import threading
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from tokenize import TokenError
from types import MappingProxyType
from typing import Any, BinaryIO, NamedTuple

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

UNREADABLE = (OSError, ValueError, EOFError, TypeError, SyntaxError, TokenError, RecursionError, OverflowError)
"""Raised by NumPy for damaged headers."""


class Shard(NamedTuple):
    """The open files of a shard.

    Attributes:
        features: Rows `[(2,) c, h', w']`; bfloat16 as its bits.
        images: Rows `[3, h, w]`, uint8.
    """

    features: "RowFile"
    images: "RowFile"


class RowFile:
    """An NPY file that is read row by row.

    It is read rather than mapped: a mapped file that is truncated meanwhile ends the process without a message.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], repair: str) -> None:
        """Open a file.

        Args:
            path: The file.
            shape: What it must hold, rows first.
            dtype: Their type.
            repair: What to do about a damaged one, for messages.

        Raises:
            CacheError: If the file is missing, or holds something else.
        """
        self._path, self._repair = path, repair
        self._shape, self._dtype = shape[1:], dtype
        self._row_bytes = math.prod(self._shape) * dtype.itemsize
        self._lock = threading.Lock()
        self._file = -1
        try:
            with path.open("rb") as file:
                found = _read_header(file)
                self._start = file.tell()
                self._file = os.dup(file.fileno())
        except UNREADABLE as error:
            raise CacheError(f"{str(path)!r} cannot be read: {error}; {repair}.") from error
        if found != (shape, dtype):
            raise CacheError(
                f"{str(path)!r} holds {found[1]} {list(found[0])}, the manifest says {dtype} {list(shape)}; {repair}."
            )
        self._state = self._current_state()

    def __del__(self) -> None:
        if self._file >= 0:
            os.close(self._file)

    def row(self, place: int, part: int | None = None) -> NDArray[Any]:
        """A copy of a row, or of one part of it.

        Raises:
            CacheError: If the file was changed since it was opened.
        """
        if self._current_state() != self._state:
            raise CacheError(f"{str(self._path)!r} was changed while it was read; {self._repair}.")
        size, start, shape = self._row_bytes, self._start + place * self._row_bytes, self._shape
        if part is not None:
            size, shape = size // shape[0], shape[1:]
            start += part * size
        content = bytearray(size)
        if self._read_at(content, start) != size:
            raise CacheError(f"{str(self._path)!r} is truncated; {self._repair}.")
        return np.frombuffer(content, self._dtype).reshape(shape)

    def _current_state(self) -> tuple[int, int]:
        status = os.fstat(self._file)
        return status.st_size, status.st_mtime_ns

    def _read_at(self, content: bytearray, start: int) -> int:
        if hasattr(os, "preadv"):  # processes that a fork made share a file's position
            return os.preadv(self._file, [content], start)
        with self._lock:
            os.lseek(self._file, start, os.SEEK_SET)
            read = os.read(self._file, len(content))
            content[: len(read)] = read
            return len(read)


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
    """Stored features as a tensor, which shares their memory."""
    if manifest.dtype == "bfloat16":
        return torch.from_numpy(stored.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(stored)


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
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
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
            except (KeyError, TypeError, ValueError, OverflowError) as error:
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


def open_shard(folder: Path, manifest: Manifest, shard: int) -> Shard:
    """Open a shard's files.

    Raises:
        CacheError: If they are not what the manifest says.
    """
    rows = len(manifest.shard_rows(shard))
    files = (
        RowFile(
            shard_file(folder, shard, kind),
            (rows, *manifest.row_shapes[kind]),
            stored_dtype(manifest, kind),
            _repair(folder, shard),
        )
        for kind in KINDS
    )
    return Shard(*files)


def check_contents(folder: Path, manifest: Manifest, shard: int) -> None:
    """Compare checksums of a shard's files.

    Raises:
        CacheError: If a file is not the one that was written.
    """
    for kind in FILES:
        path = shard_file(folder, shard, kind)
        if _checksum(path) != (manifest.shards or ())[shard][kind]["crc32"]:
            raise CacheError(f"{str(path)!r} was changed after it was written; {_repair(folder, shard)}.")


def _read_header(file: BinaryIO) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, is_transposed, dtype = read(file)
    if is_transposed:
        raise ValueError("its axes are in another order")
    return shape, dtype


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
    except OSError as error:
        raise CacheError(f"{str(path)!r} cannot be read: {error.strerror}.") from error


def _checksum(path: Path) -> int:
    value = 0
    try:
        with path.open("rb", buffering=0) as file:
            while chunk := file.read(CHUNK):
                value = zlib.crc32(chunk, value)
    except OSError as error:
        raise CacheError(f"{str(path)!r} cannot be read: {error.strerror}.") from error
    return value
