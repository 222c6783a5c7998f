"""The trainer's checkpoints as one safetensors file each, written whole or not at all; no pickle."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.plugins.io import CheckpointIO
from torch import Tensor
from typing_extensions import override

from transfervae.errors import CheckpointError
from transfervae.files import read_tensors, write_tensors


class SafetensorsIO(CheckpointIO):
    """Stores nested dictionaries, lists, plain values and tensors, which is all that a run's checkpoint holds.

    It deletes only what it has written itself: the paths that Lightning asks it to delete may come from a file.
    """

    def __init__(self) -> None:
        """Make a store that has written nothing yet."""
        self._written: set[Path] = set()

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint.

        Raises:
            FileWriteError: If the file cannot be written; the old one stays.
            TypeError: If the checkpoint holds anything else.
        """
        tensors: dict[str, Tensor] = {}
        plain = json.dumps(_pack(checkpoint, tensors))
        write_tensors(Path(path), tensors, plain=plain)
        self._written.add(Path(path).resolve())

    @override
    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint, on the CPU.

        Raises:
            CheckpointError: If the file is missing, damaged or foreign.
        """
        stored = read_tensors(Path(path))
        try:
            checkpoint: dict[str, Any] = _unpack(json.loads(stored.plain), stored.tensors)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{str(path)!r} holds no checkpoint of a run: {error}") from error
        return checkpoint

    @override
    def remove_checkpoint(self, path: Any) -> None:
        """Delete a checkpoint that was written here, if it is still there."""
        file = Path(path).resolve()  # a link of somebody's to it stays
        if file in self._written:
            file.unlink(missing_ok=True)


def _pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """As JSON: dictionaries become lists of pairs, for keys that are no strings; tensors are named and set aside."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"pairs": [[key, _pack(entry, tensors)] for key, entry in value.items()]}
    if isinstance(value, list | tuple):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_pack(entry, tensors) for entry in value]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a checkpoint cannot hold {type(value).__name__}")


def _unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "pairs":
        return {key: _unpack(entry, tensors) for key, entry in content}
    entries = [_unpack(entry, tensors) for entry in content]
    return tuple(entries) if kind == "tuple" else entries
