"""In which precision and memory memory_format a model runs fastest where it is: found by a short measurement."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import product
from types import MappingProxyType
from typing import NamedTuple

import torch

from transfervae.backbones.frozen import is_out_of_memory
from transfervae.losses import elbo
from transfervae.model import TransferVAE
from transfervae.shapes import check_positive

PRECISIONS: Mapping[str, torch.dtype | None] = MappingProxyType({"bfloat16": torch.bfloat16, "float32": None})
"""What convolutions and matrix products are computed in; the faster one is tried first."""

MEMORY_FORMATS = ("channels_last", "contiguous")
PLAIN = ("float32", "contiguous")
WORTH_IT = 1.2
"""Minimum speed-up over float32 in contiguous memory to leave them."""

BATCH = 8
ROUNDS = 2
"""Rounds in which all executions are timed in turn; the best time counts, so that other load hits them alike."""

HOPELESS = 3.0
"""An execution is dropped once its first two runs take this many times as long as the fastest one's."""


class Execution(NamedTuple):
    """How a model is run.

    Attributes:
        precision: "float32", or "bfloat16" for convolutions and matrix products; parameters stay as they are, and head,
            KL and losses are computed in float32.
        memory_format: "contiguous" or "channels_last".
    """

    precision: str = "float32"
    memory_format: str = "contiguous"

    @property
    def dtype(self) -> torch.dtype | None:
        """What autocast is told; None for none."""
        return PRECISIONS[self.precision]

    @property
    def torch_memory_format(self) -> torch.memory_format:
        """Of images and of the weights of convolutions."""
        return torch.channels_last if self.memory_format == "channels_last" else torch.contiguous_format

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        """The context to run a model in."""
        return nullcontext() if self.dtype is None else torch.autocast(device.type, dtype=self.dtype)


class Trial(NamedTuple):
    """One execution to run a model, and how fast it was.

    Attributes:
        execution: The execution.
        images_per_second: Of forward pass, objective and backward pass; of the fastest run.
    """

    execution: Execution
    images_per_second: float


def choose_execution(trials: Sequence[Trial]) -> Execution:
    """The fastest of several executions; float32 in contiguous memory if nothing is faster by `WORTH_IT`.

    Args:
        trials: From `measure_executions`, at least one.
    """
    fastest = max(trials, key=lambda trial: trial.images_per_second)
    for trial in trials:
        if trial.execution == PLAIN and trial.images_per_second * WORTH_IT > fastest.images_per_second:
            return trial.execution
    return fastest.execution


def measure_executions(
    vae: TransferVAE,
    *,
    batch_size: int = BATCH,
    precisions: Sequence[str] = tuple(PRECISIONS),
    memory_formats: Sequence[str] = MEMORY_FORMATS,
) -> list[Trial]:
    """Time a training step, without the optimiser, in several precisions and memory_formats.

    The model is left as it was: parameters, gradients, mode, and the global random state.

    Args:
        vae: The model, where it is to run.
        batch_size: Images a step; at most `BATCH` are used.
        precisions: Names from `PRECISIONS`.
        memory_formats: Names from `MEMORY_FORMATS`.

    Returns:
        One trial for each execution. One that is hopelessly slow has the speed of its first two runs; one that the
        network cannot be computed in has speed 0.

    Raises:
        InvalidOptionError: If `batch_size` is below 1.
    """
    check_positive(batch_size=batch_size)
    noise = torch.rand(min(batch_size, BATCH), 3, *vae.image_size, generator=torch.Generator().manual_seed(0))
    images = noise.to(vae.device)
    executions = [Execution(*execution) for execution in product(precisions, memory_formats)]
    with _restoring(vae):
        speeds = {
            execution: max(_try(vae, images, execution), _try(vae, images, execution)) for execution in executions
        }
        hopeful = [execution for execution in executions if speeds[execution] * HOPELESS > max(speeds.values())]
        for execution in hopeful * ROUNDS:
            speeds[execution] = max(speeds[execution], _step(vae, images, execution))
    return [Trial(execution, speeds[execution]) for execution in executions]


def _try(vae: TransferVAE, images: torch.Tensor, execution: Execution) -> float:
    """Images per second of one step; 0 if the network has layers that cannot be computed this execution."""
    if execution == PLAIN:
        return _step(vae, images, execution)
    try:
        return _step(vae, images, execution)
    except RuntimeError as error:  # NotImplementedError is one
        if is_out_of_memory(error):
            raise
        return 0.0


def _step(vae: TransferVAE, images: torch.Tensor, execution: Execution) -> float:
    """Images per second of one step."""
    vae.to(memory_format=execution.torch_memory_format)
    images = images.contiguous(memory_format=execution.torch_memory_format)
    began = time.perf_counter()
    with execution.autocast(images.device):
        loss = elbo(vae(images), images).total
    loss.backward()
    if images.device.type != "cpu":
        torch.accelerator.synchronize(images.device)
    vae.zero_grad(set_to_none=True)
    return len(images) / (time.perf_counter() - began)


@contextmanager
def _restoring(vae: TransferVAE) -> Iterator[None]:
    """Leave a model's mode, gradients and memory format, and the random state, as they were."""
    was_training = vae.training
    gradients = {name: parameter.grad for name, parameter in vae.named_parameters()}
    devices = [vae.device] if vae.device.type == "cuda" else []
    vae.zero_grad(set_to_none=True)  # else the backward pass would add to those that are to be kept
    with torch.random.fork_rng(devices), torch.enable_grad():
        vae.train()
        try:
            yield
        finally:
            vae.train(was_training)
            vae.to(memory_format=torch.contiguous_format)
            for name, parameter in vae.named_parameters():
                parameter.grad = gradients[name]
