"""Sharing an evaluation among processes: each measures every n-th image, and all get the figures of all."""

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.distributed import all_gather_object, get_rank, get_world_size, is_available, is_initialized

from transfervae.errors import InvalidOptionError

Value = TypeVar("Value")


def processes() -> int:
    """Number of processes that work together."""
    return get_world_size() if _is_shared() else 1


def own_places(count: int) -> range:
    """Places of the items that are this process's.

    Raises:
        InvalidOptionError: If there are fewer items than processes.
    """
    if count < processes():
        raise InvalidOptionError(f"{processes()} processes need as many images, there are {count}; use fewer devices.")
    return range(get_rank(), count, get_world_size()) if _is_shared() else range(count)


def gather(values: Sequence[Value]) -> list[Value]:
    """What every process has of its own places, in the order of all places."""
    parts = _from_all(list(values))
    total = sum(len(part) for part in parts)
    return [parts[place % len(parts)][place // len(parts)] for place in range(total)]


def add_up(values: Tensor) -> Tensor:
    """The sum over all processes, on the CPU."""
    return torch.stack(_from_all(values.cpu())).sum(dim=0)


def _from_all(value: Value) -> list[Value]:
    if not _is_shared():
        return [value]
    found: list[Any] = [None] * get_world_size()
    all_gather_object(found, value)
    return found


def _is_shared() -> bool:
    return is_available() and is_initialized()
