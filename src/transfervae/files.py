"""Files on disk: written aside and renamed, so that a killed process leaves the old file or the new one, never half."""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import safetensors.torch
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from torch import Tensor

from transfervae.errors import CheckpointError, FileWriteError, TransferVAEError

FORMAT_KEY = "transfervae_format"
FORMAT = 4
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
LOCK_FILE = ".lock"

_ASIDE = re.compile(r"\..+\.[0-9a-f]{32}\.tmp", re.DOTALL)
"""Names that `write_atomically` gives files before they are whole."""


@contextmanager
def held(folder: Path, refusal: TransferVAEError) -> Iterator[None]:
    """Hold a folder against other processes; the hold ends with the process, however it ends.

    Args:
        folder: Made if missing.
        refusal: Raised if another process holds it.

    Raises:
        FileWriteError: If the folder cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / LOCK_FILE).is_symlink():
            raise FileWriteError(f"{str(folder / LOCK_FILE)!r} is a link; delete it.")
        lock = FileLock(folder / LOCK_FILE, blocking=False)
        lock.acquire()
    except Timeout:
        raise refusal from None
    except OSError as error:
        raise FileWriteError(f"{str(folder)!r} cannot be written to: {error.strerror or error}.") from error
    try:
        yield
    finally:
        lock.release()


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it is either whole or untouched, also when killed or when the disk is full.

    Args:
        path: The file; its folder is made.
        content: All of it.

    Raises:
        FileWriteError: If it cannot be written; nothing is left behind.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_aside(path, content)
    except OSError as error:
        raise FileWriteError(f"{str(path)!r} cannot be written: {error.strerror or error}.") from error


def find_leftovers(folder: Path) -> list[Path]:
    """Files that interrupted writes have left in a folder: regular files with names that only `files` gives."""
    return [
        path
        for path in folder.glob(".*.tmp")
        if _ASIDE.fullmatch(path.name) and path.is_file() and not path.is_symlink()
    ]


def delete_leftovers(folder: Path) -> None:
    """Delete what `find_leftovers` finds."""
    for leftover in find_leftovers(folder):
        leftover.unlink(missing_ok=True)


def _write_aside(path: Path, content: bytes) -> None:
    aside = path.with_name(f".{path.name[:100]}.{uuid4().hex}.tmp")
    try:
        with aside.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write plain values as indented JSON, atomically.

    Raises:
        FileWriteError: If it cannot be written.
    """
    write_atomically(path, (json.dumps(values, indent=2) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read an object from a JSON file.

    Raises:
        CheckpointError: If the file is missing, no JSON, or no object.
    """
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"There is no {path.name} in {str(path.parent)!r}.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{str(path)!r} cannot be read as JSON: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{str(path)!r} holds no JSON object.")
    return values


class StoredTensors(NamedTuple):
    """Contents of a file of tensors.

    Attributes:
        tensors: By name, on the CPU.
        plain: The text that belongs to them.
    """

    tensors: dict[str, Tensor]
    plain: str


def write_tensors(path: Path, tensors: Mapping[str, Tensor], *, plain: str = "") -> None:
    """Write tensors to a safetensors file, atomically, with a checksum over all of it.

    Args:
        path: The file.
        tensors: By name; stored contiguous, each with its own memory.
        plain: Text to keep in the same file, for values that belong to these very tensors.

    Raises:
        FileWriteError: If it cannot be written.
    """
    stored = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    # One entry only: safetensors writes several in random order, and the same tensors should give the same bytes.
    metadata = {FORMAT_KEY: f"{FORMAT} {digest_tensors(stored, plain)} {plain}"}
    write_atomically(path, safetensors.torch.save(stored, metadata))


def read_tensors(path: Path) -> StoredTensors:
    """Read what `write_tensors` wrote.

    Raises:
        CheckpointError: If the file is missing, damaged, or not ours.
    """
    if not path.is_file():
        raise CheckpointError(f"There is no {path.name} in {str(path.parent)!r}.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    except (SafetensorError, OSError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise CheckpointError(f"{str(path)!r} is damaged or no safetensors file: {error}") from error
    version, _, rest = metadata.get(FORMAT_KEY, "").partition(" ")
    if version != str(FORMAT):
        raise CheckpointError(f"{str(path)!r} was not written by this version of transfervae.")
    digest, _, plain = rest.partition(" ")
    if digest_tensors(tensors, plain) != digest:
        raise CheckpointError(f"{str(path)!r} is damaged: its checksum is another than when it was written.")
    return StoredTensors(tensors, plain)


def digest_tensors(tensors: Mapping[str, Tensor], plain: str = "") -> str:
    """SHA-256 over names, types, shapes and values of tensors, and a text, in hexadecimal."""
    digest = hashlib.sha256(plain.encode(errors="surrogatepass"))
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\0{name} {tensor.dtype} {list(tensor.shape)}\0".encode(errors="surrogatepass"))
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def format_bytes(count: int) -> str:
    """A number of bytes for people, such as "1.2 GB"."""
    for unit, size in (("GB", 10**9), ("MB", 10**6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1000:.1f} kB"
