"""Small runs, described by one value, for tests that change one thing at a time."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import transfervae as tv
from transfervae.data import ImageDataset, ToyFaces, open_dataset
from transfervae.training import TrainResult, train
from transfervae.training._images import RunImages


@dataclass(frozen=True)
class Small:
    """A run on few images with a tiny network."""

    data: Any = None
    backbone: str = "timm:test_resnet"
    node: Any = None
    weights: str | None = None
    image_size: tuple[int, int] = (32, 32)
    head: str = "gaussian"
    latent_dim: int | None = 8
    width: int = 16
    objective: Any = "rmse,kl"
    faces: int = 48
    batch_size: int = 8
    val: float = 0.1
    flips: bool = False
    epochs: int = 2
    learning_rate: float = 1e-3
    cache: str | os.PathLike[str] = "auto"
    devices: int = 1
    strategy: str = "auto"
    precision: str = "32-true"
    memory_format: str = "contiguous"

    @property
    def model(self) -> dict[str, Any]:
        """The arguments of `build_vae`."""
        return {
            "backbone": tv.Spec(self.backbone, node=self.node, weights=self.weights),
            "image_size": self.image_size,
            "head": self.head,
            "latent_dim": self.latent_dim,
            "decoder": tv.Spec("resize", width=self.width),
        }

    @property
    def engine(self) -> dict[str, Any]:
        """Options of the engine."""
        names = ("devices", "strategy", "precision", "memory_format", "cache")
        return {"accelerator": "cpu", **{name: getattr(self, name) for name in names}}

    @property
    def dataset(self) -> dict[str, Any]:
        """Options of the data set."""
        names = ("faces", "batch_size", "val", "flips")
        return {"workers": 0, **{name: getattr(self, name) for name in names}}

    def open(self) -> ImageDataset:
        """The images."""
        faces = ToyFaces(self.faces, self.image_size, dtype=torch.uint8)
        return open_dataset(faces if self.data is None else self.data, self.image_size)

    def images(self) -> RunImages:
        """The images, split."""
        return RunImages(self.open(), val=self.val, batch_size=self.batch_size, flips=self.flips, workers=0)

    def train(
        self, out: Path, *, model: Any = None, optimizer: Mapping[str, Any] | None = None, **more: Any
    ) -> TrainResult:
        """Run it."""
        return train(
            self.model if model is None else model,
            self.data,
            out=out,
            epochs=self.epochs,
            optimizer={"learning_rate": self.learning_rate, **(optimizer or {})},
            **{"recipe": "seed", "objective": self.objective, "dataset": self.dataset, "engine": self.engine, **more},
        )
