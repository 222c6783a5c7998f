"""Processes that work together in a group of torch.distributed: sharing items, and what each of them has found."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.distributed import all_gather_object, all_reduce, get_rank, get_world_size, is_available, is_initialized

from transfervae.errors import InvalidOptionError, TransferVAEError

Value = TypeVar("Value")


def count_processes() -> int:
    """Number of processes that work together."""
    return get_world_size() if _is_shared() else 1


def own_places(count: int) -> range:
    """Places of the items that are this process's: every n-th.

    Raises:
        InvalidOptionError: If there are fewer items than processes.
    """
    if count < count_processes():
        raise InvalidOptionError(
            f"{count_processes()} processes need as many images, there are {count}; use fewer devices."
        )
    return range(get_rank(), count, get_world_size()) if _is_shared() else range(count)


def gather(values: Sequence[Value]) -> list[Value]:
    """What every process has of its own places, in the order of all places."""
    parts = from_all(list(values))
    total = sum(len(part) for part in parts)
    return [parts[place % len(parts)][place // len(parts)] for place in range(total)]


def add_up(values: Tensor) -> Tensor:
    """The sum over all processes, on the CPU."""
    return torch.stack(from_all(values.cpu())).sum(dim=0)


def average(values: Tensor) -> Tensor:
    """The mean over all processes, without a gradient, on the values' device."""
    if not _is_shared():
        return values.detach()
    total = values.detach().clone()
    all_reduce(total)
    return total / get_world_size()


def from_all(value: Value) -> list[Value]:
    """The value of each process."""
    if not _is_shared():
        return [value]
    found: list[Any] = [None] * get_world_size()
    all_gather_object(found, value)
    return found


def on_all_ranks(act: Callable[[], Value]) -> Value:
    """Do something on every process; what goes wrong on one is raised on all: none goes on, or waits, without it.

    Raises:
        TransferVAEError: That of the first process that has one.
    """
    failure: TransferVAEError | None = None
    result: Value | None = None
    try:
        result = act()
    except TransferVAEError as error:
        failure = error
    try:
        failures = from_all(failure)
    except RuntimeError as error:
        raise TransferVAEError("Another process of this run has ended, and so does this one.") from error
    for found in failures:
        if found is not None:
            raise found
    return cast(Value, result)


def _is_shared() -> bool:
    return is_available() and is_initialized()
