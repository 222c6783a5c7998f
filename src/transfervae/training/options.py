"""What a training run is: options that decide its result, and options of the engine that carries it out."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from transfervae.backbones.reading import Node, Reading
from transfervae.decoders import DECODERS
from transfervae.errors import InvalidOptionError, UnknownNameError
from transfervae.execution import LAYOUTS
from transfervae.heads import HEADS
from transfervae.losses import resolve_reconstruction
from transfervae.schedules import Schedule, constant, cyclic, linear_warmup
from transfervae.shapes import check_positive, check_seed, parse_image_size

SCHEDULES = ("constant", "linear", "cyclic")
AUTO = "auto"
OWN_PRECISIONS: Mapping[str, str | None] = MappingProxyType(
    {AUTO: None, "32-true": "float32", "32": "float32", "bf16-mixed": "bfloat16", "bf16": "bfloat16"}
)
"""Engine's words for what the model's own autocast does; other precisions are left to the engine."""

MEMORY_FORMATS = (AUTO, *LAYOUTS)


@dataclass(frozen=True)
class TrainOptions:
    """Everything that decides what a run learns; a resumed run must have the same, but for more epochs.

    Attributes:
        data: Folder of images, or None for the embedded `ToyFaces`.
        backbone: A name for `create_backbone`; "auto" is vgg19, or packaged where vgg19's weights cannot be fetched.
        node: Where the backbone is read, at one node or several; its default if None.
        fuse: "concat", "sum" or "mean", for several nodes.
        grid: (height, width) that the maps of several nodes are resampled to; the first one's if None.
        norm: Apply the backbone's final normalisation to what is read.
        weights: "default", a path, or None for random ones.
        head: A name from `heads.HEADS`.
        latent_dim: Length of the latent vector, or channels of the map; the head's default if None.
        image_size: (height, width).
        decoder: A name from `decoders.DECODERS`.
        width: The decoder's width; its default if None.
        reconstruction: A name from `losses.RECONSTRUCTIONS`.
        beta: Weight of the KL in nats; the reconstruction term's default if None.
        beta_schedule: "constant", "linear" (warm-up) or "cyclic".
        beta_epochs: Length of the warm-up, or of a cycle.
        free_bits: KL per latent dimension that is left unpunished, in nats.
        epochs: Passes over the training images.
        batch_size: Images a step and process.
        learning_rate: Of Adam at the start; it falls to 0 along a half cosine.
        held_out: Fraction of the images that is kept out of training, in (0, 1).
        flips: Mirror every other training image, drawn anew in every epoch.
        faces: Number of toy faces, where there is no data.
        skip_bad: Leave unreadable files out.
        seed: Of the split, the weights, the order and the draws.
    """

    data: str | None = None
    backbone: str = "auto"
    node: Node | tuple[Node, ...] | None = None
    fuse: str = "concat"
    grid: tuple[int, int] | None = None
    norm: bool = False
    weights: str | None = "default"
    head: str = "gaussian"
    latent_dim: int | None = None
    image_size: tuple[int, int] = (128, 128)
    decoder: str = "resize"
    width: int | None = None
    reconstruction: str = "rmse"
    beta: float | None = None
    beta_schedule: str = "constant"
    beta_epochs: int = 1
    free_bits: float = 0.0
    epochs: int = 5
    batch_size: int = 16
    learning_rate: float = 1e-3
    held_out: float = 0.1
    flips: bool = False
    faces: int = 2000
    skip_bad: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", parse_image_size(self.image_size))
        Reading.parse(self.node, fuse=self.fuse, grid=self.grid, norm=self.norm)
        check_positive(
            latent_dim=1 if self.latent_dim is None else self.latent_dim,
            width=1 if self.width is None else self.width,
            beta_epochs=self.beta_epochs,
            epochs=self.epochs,
            batch_size=self.batch_size,
            faces=self.faces,
        )
        if self.head not in HEADS:
            raise UnknownNameError("head", self.head, HEADS)
        if self.decoder not in DECODERS:
            raise UnknownNameError("decoder", self.decoder, DECODERS)
        if self.beta_schedule not in SCHEDULES:
            raise UnknownNameError("beta schedule", self.beta_schedule, SCHEDULES)
        resolve_reconstruction(self.reconstruction)
        if not 0 < self.held_out < 1:
            raise InvalidOptionError(f"held_out must lie between 0 and 1, got {self.held_out}.")
        if not 0 < self.learning_rate < math.inf:
            raise InvalidOptionError(f"learning_rate must be above 0 and finite, got {self.learning_rate}.")
        check_seed(self.seed)
        for name, value in (("beta", self.beta), ("free_bits", self.free_bits)):
            if value is not None and not 0 <= value < math.inf:
                raise InvalidOptionError(f"{name} must be at least 0 and finite, got {value}.")

    @property
    def target_beta(self) -> float:
        """The weight of the KL once a warm-up is over."""
        return resolve_reconstruction(self.reconstruction).beta if self.beta is None else self.beta

    def schedule(self, steps_per_epoch: int) -> Schedule:
        """Beta as a function of the training step."""
        steps = self.beta_epochs * steps_per_epoch
        if self.beta_schedule == "linear":
            return linear_warmup(self.target_beta, steps)
        if self.beta_schedule == "cyclic":
            return cyclic(self.target_beta, steps)
        return constant(self.target_beta)


@dataclass(frozen=True)
class EngineOptions:
    """How the run is carried out; where they are not said to be ours, the words are those of Lightning's Trainer.

    Attributes:
        accelerator: "auto", "cpu", "gpu", …
        devices: Number of devices a machine, or "auto".
        num_nodes: Number of machines.
        strategy: "auto", "ddp", …
        precision: "32-true", "bf16-mixed" (or "bf16"), …, or "auto" (ours): one of these two, whichever a short
            measurement finds faster.
        memory_format: "contiguous", "channels_last", or "auto" for what the measurement finds faster (ours).
        compile: Run the model through `torch.compile` (ours).
        cache: "auto" computes the backbone's features once and keeps them in the run's folder, "off" computes them in
            every epoch; else the folder of a feature cache (ours).
        workers: Processes that read images; chosen by the number of cores if None.
    """

    accelerator: str = "auto"
    devices: int | str = "auto"
    num_nodes: int = 1
    strategy: str = "auto"
    precision: str = "auto"
    memory_format: str = "auto"
    compile: bool = False
    cache: str | os.PathLike[str] = "auto"
    workers: int | None = None

    def __post_init__(self) -> None:
        check_positive(num_nodes=self.num_nodes)
        if self.memory_format not in MEMORY_FORMATS:
            raise UnknownNameError("memory format", self.memory_format, MEMORY_FORMATS)
        if not isinstance(self.cache, str | os.PathLike) or not os.fspath(self.cache):
            raise InvalidOptionError(f"cache must be auto, off, or the folder of a feature cache, got {self.cache!r}.")
        object.__setattr__(self, "cache", os.fspath(self.cache))
        if self.workers is not None and self.workers < 0:
            raise InvalidOptionError(f"workers must be at least 0, got {self.workers}.")
