"""Options of a run that belong together, each group one value."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from transfervae.data.toyfaces import MOST_FACES
from transfervae.errors import InvalidOptionError, UnknownNameError
from transfervae.execution import MEMORY_FORMATS as MODEL_MEMORY_FORMATS
from transfervae.shapes import check_nonnegative, check_positive

AUTO = "auto"
OFF = "off"
OWN_PRECISIONS: Mapping[str, str | None] = MappingProxyType(
    {AUTO: None, "32-true": "float32", "32": "float32", "bf16-mixed": "bfloat16", "bf16": "bfloat16"}
)
"""The engine's names for what the model's own autocast does; other precisions are left to the engine."""

MEMORY_FORMATS = (AUTO, *MODEL_MEMORY_FORMATS)
OPTIMIZERS = ("adam", "adamw")
RATE_SCHEDULES = ("cosine", "constant")


WORKERS_LIMIT = 1024
"""Processes that read images, at most: a typing error should not start millions."""


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Options of reading and splitting a data set.

    Attributes:
        batch_size: Images a step and process.
        val: Fraction of the images held out for validation, in (0, 1).
        flips: Mirror every other training image, drawn anew in every epoch.
        skip_bad: Skip and count files that cannot be read.
        faces: Number of drawn faces, where no data is given.
        workers: Processes that read images; by the number of cores if None.
    """

    batch_size: int = 16
    val: float = 0.1
    flips: bool = False
    skip_bad: bool = False
    faces: int = 2000
    workers: int | None = None

    def __post_init__(self) -> None:
        check_positive(batch_size=self.batch_size)
        check_positive(faces=self.faces, at_most=MOST_FACES)
        check_nonnegative(workers=self.workers or 0)
        if (self.workers or 0) > WORKERS_LIMIT:
            raise InvalidOptionError(f"workers must be at most {WORKERS_LIMIT}, got {self.workers}.")
        if not 0 < self.val < 1:
            raise InvalidOptionError(f"val must lie between 0 and 1, got {self.val}.")


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions:
    """Options of optimising head, decoder and terms; the frozen network is in no optimiser.

    Attributes:
        name: adam, or adamw (decoupled weight decay, Loshchilov & Hutter 2019).
        learning_rate: At its highest.
        betas: Decay rates of the two moments.
        weight_decay: Of all trained parameters.
        clip: Largest norm of the gradient over all trained parameters; no limit if None.
        schedule: cosine (to `min_learning_rate` along a half cosine over all steps) or constant.
        min_learning_rate: At the end of a cosine.
        warmup_epochs: Epochs in which the learning rate rises from 0 in a straight line; may be a fraction.
        accumulate: Batches whose gradients make one step.
        ema: Decay of an exponential moving average of the weights, in (0, 1), which is evaluated and saved instead of
            the raw ones; none if None.
    """

    name: str = "adam"
    learning_rate: float = 1e-3
    betas: Sequence[float] = (0.9, 0.999)
    weight_decay: float = 0.0
    clip: float | None = None
    schedule: str = "cosine"
    min_learning_rate: float = 0.0
    warmup_epochs: float = 0.0
    accumulate: int = 1
    ema: float | None = None

    def __post_init__(self) -> None:
        if self.name not in OPTIMIZERS:
            raise UnknownNameError("optimizer", self.name, OPTIMIZERS)
        if self.schedule not in RATE_SCHEDULES:
            raise UnknownNameError("learning rate schedule", self.schedule, RATE_SCHEDULES)
        check_positive(accumulate=self.accumulate)
        check_nonnegative(weight_decay=self.weight_decay, warmup_epochs=self.warmup_epochs)
        for name, value in (("learning_rate", self.learning_rate), ("clip", self.clip)):
            if value is not None and not 0 < value < math.inf:
                raise InvalidOptionError(f"{name} must be above 0 and finite, got {value}.")
        check_nonnegative(min_learning_rate=self.min_learning_rate)
        if self.min_learning_rate > self.learning_rate:
            raise InvalidOptionError(
                f"min_learning_rate must be at most learning_rate, got {self.min_learning_rate} and"
                f" {self.learning_rate}."
            )
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise InvalidOptionError(f"betas must be two numbers in [0, 1), got {self.betas}.")
        if self.ema is not None and not 0 < self.ema < 1:
            raise InvalidOptionError(f"ema must lie between 0 and 1, got {self.ema}.")
        object.__setattr__(self, "betas", tuple(self.betas))


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Options of the engine; names that are not marked as ours are those of Lightning's Trainer.

    Attributes:
        accelerator: auto, cpu, gpu, …
        devices: Number of devices a machine, or auto.
        num_nodes: Number of machines.
        strategy: auto, ddp, …
        precision: 32-true, bf16-mixed (or bf16), 16-mixed, …; auto (ours) measures whether bf16 is faster.
        memory_format: contiguous or channels_last; auto measures which is faster (ours).
        compile: Run the model through torch.compile (ours).
        gradient_checkpointing: Compute activations of a vit or kl decoder again in the backward pass instead of keeping
            them: less memory, about a third more time (ours).
        cache: auto computes the backbone's features once and keeps them in the run's folder, off computes them in every
            epoch; else the folder of a cache that `transfervae cache` built (ours).
    """

    accelerator: str = AUTO
    devices: int | str = AUTO
    num_nodes: int = 1
    strategy: str = AUTO
    precision: str = AUTO
    memory_format: str = AUTO
    compile: bool = False
    gradient_checkpointing: bool = False
    cache: str | os.PathLike[str] = AUTO

    def __post_init__(self) -> None:
        check_positive(num_nodes=self.num_nodes)
        if any(way in self.strategy for way in ("spawn", "fork", "notebook")):
            raise InvalidOptionError(
                f"strategy must start processes of their own, such as ddp, got {self.strategy!r}, whose processes give"
                " nothing back."
            )
        if self.memory_format not in MEMORY_FORMATS:
            raise UnknownNameError("memory format", self.memory_format, MEMORY_FORMATS)
        if not isinstance(self.cache, str | os.PathLike) or not os.fspath(self.cache):
            raise InvalidOptionError(f"cache must be auto, off, or the folder of a feature cache, got {self.cache!r}.")
        object.__setattr__(self, "cache", os.fspath(self.cache))
        if isinstance(self.devices, str) and self.devices.isdecimal():
            object.__setattr__(self, "devices", int(self.devices))
