"""What a step of PyTorch does: floating-point operations, bytes moved, and the device it runs on."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from protocol import Device, Stage
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


def counted(run: Callable[[], object], images: int) -> Stage:
    """A stage with its operations and bytes, found by running it twice, after once for what it prepares."""
    run()
    return Stage(run, images, count_flops(run), count_traffic(run))


def count_flops(run: Callable[[], object]) -> float | None:
    """Floating-point operations of products and convolutions, a multiply-add counted as two; None if there are none."""
    with FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops()) or None


def count_traffic(run: Callable[[], object]) -> float:
    """Bytes that all operations read and write, each taken by itself: what caches and fusion save is not taken off."""
    with _Traffic() as traffic:
        run()
    return float(traffic.bytes)


def random_images(batch: int, size: int, device: torch.device, *, seed: int = 0) -> Tensor:
    """Float32 images `[batch, 3, size, size]`, uniform in [0, 1)."""
    values = np.random.default_rng(seed).random((batch, 3, size, size), dtype=np.float32)
    return torch.from_numpy(values).to(device)


def torch_device(device: torch.device) -> Device:
    """How to wait for a device of torch, and to weigh it."""
    if device.type == "cpu":
        return Device()
    return Device(
        synchronise=lambda: torch.accelerator.synchronize(device),
        reset_peak=lambda: torch.accelerator.reset_peak_memory_stats(device),
        peak=lambda: int(torch.accelerator.max_memory_allocated(device)),
    )


class _Traffic(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.bytes += _sizes(tree_leaves((args, kwargs))) + _sizes(tree_leaves(result))
        return result


def _sizes(values: Iterable[object]) -> int:
    return sum(value.numel() * value.element_size() for value in values if isinstance(value, Tensor))
