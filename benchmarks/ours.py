"""The library's own stages: the parts of a model, its training step from images and from a cache, and the cache."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from counting import counted, random_images, torch_device
from protocol import Stage, read_options, serve
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import transfervae as tv
from transfervae.backbones import FrozenBackbone
from transfervae.cache import CachedItem, FeatureCache
from transfervae.data import ItemRecord
from transfervae.execution import MEMORY_FORMATS, PRECISIONS, Execution, choose_execution, measure_executions
from transfervae.shapes import unit_images

AUTO = "auto"
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CHEAP_BATCH = 64


class RandomPixels(Dataset[Tensor]):
    """Random images in memory, uint8 `[3, h, w]`; only so many are distinct."""

    def __init__(self, count: int, size: int, *, distinct: int = 256) -> None:
        """Draw them."""
        generator = np.random.default_rng(0)
        shape = (min(count, distinct), 3, size, size)
        self._images = torch.from_numpy(generator.integers(0, 256, shape, dtype=np.uint8))
        self._count = count
        self.image_size = (size, size)
        self.identity = {"kind": "random pixels", "items": count}

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Tensor:
        return self._images[index % len(self._images)]

    def describe_item(self, index: int) -> ItemRecord:
        """Name an image."""
        return ItemRecord(f"image {index}", 0, 0)


class Steps:
    """One model and everything of it that is timed."""

    def __init__(self, options: dict[str, Any], folder: Path) -> None:
        """Make the model, with random weights.

        Args:
            options: The contender's.
            folder: For caches; it is emptied by whoever made it.
        """
        torch.manual_seed(0)
        self.options = options
        self.folder = folder
        self.device = torch.device(options["device"])
        self.vae = self._build()
        self.execution = choose(self.vae, options)
        self.vae.to(memory_format=self.execution.torch_memory_format)
        self.optimizer = torch.optim.Adam(self.vae.trainable_parameters(), lr=1e-4, fused=True)  # as the trainer does
        self.images = random_images(options["batch"], options["image_size"], self.device)
        self.latent = torch.randn(options["batch"], *self.vae.latent_shape, device=self.device)

    @cached_property
    def batches(self) -> Iterator[CachedItem]:
        """Batches of a cache on disk, without end."""
        folder = Path(self.options["cache"] or self.folder / "cache")
        if not self.options["cache"]:
            shape, size = self.vae.feature_shape, self.options["image_size"]
            build_random_cache(folder, self.options["rows"], size, shape)
        cache = FeatureCache(folder, window=self.options["window"])
        return endless(cache, self.options["batch"], self.options["workers"], self.device)

    @cached_property
    def in_memory(self) -> tuple[Tensor, Tensor]:
        """Images and features on the device."""
        with torch.no_grad(), self.execution.autocast(self.device):
            features = self.vae.backbone(self._place(self.images))
        return self._place(self.images), features.float()

    @cached_property
    def pixels(self) -> RandomPixels:
        """What a cache is built of."""
        return RandomPixels(self.options["built"], self.options["image_size"])

    def backbone(self) -> Tensor:
        """The frozen network."""
        return self._infer(lambda: self.vae.backbone(self._place(self.images)))

    def encode(self) -> Tensor:
        """Images to the posterior's mean."""
        return self._infer(lambda: self.vae.encode(self._place(self.images)).mean)

    def decode(self) -> Tensor:
        """Latents to images."""
        return self._infer(lambda: self.vae.decode(self.latent))

    def reconstruct(self) -> Tensor:
        """Images to latents and back."""
        return self._infer(lambda: self.vae.reconstruct(self._place(self.images)))

    def train_live(self) -> None:
        """A training step from images."""
        images = self._place(self.images)
        self._learn(lambda: self.vae.train()(images), images)

    def train_cached(self) -> None:
        """A training step from the cache, reading included."""
        item = next(self.batches)
        images = self._place(unit_images(item.image.to(self.device, non_blocking=True)))
        features = item.features.to(self.device, non_blocking=True).float()
        self._learn(lambda: self.vae.train().forward_from_features(features), images)

    def head_and_decoder(self) -> None:
        """The same step on tensors that are there already."""
        images, features = self.in_memory
        self._learn(lambda: self.vae.train().forward_from_features(features), images)

    def build_cache(self) -> None:
        """A whole cache, from images in memory to files."""
        folder = self.folder / "built"
        shutil.rmtree(folder, ignore_errors=True)
        options = {"batch_size": self.options["batch"], "autocast": self.execution.dtype}
        FeatureCache.build(self.vae.backbone, self.pixels, folder, **options)

    def _build(self) -> tv.TransferVAE:
        options = self.options
        weights = "default" if options["backbone"] == "packaged" else None
        size, latent_dim = options["image_size"], options["latent_dim"]
        backbone = tv.Spec(options["backbone"], weights=weights)
        vae = tv.build_vae(backbone, image_size=size, latent_dim=latent_dim, decoder="resize")  # as the others have it
        return vae.to(self.device)

    def _place(self, images: Tensor) -> Tensor:
        return images.contiguous(memory_format=self.execution.torch_memory_format)

    def _infer(self, run: Callable[[], Tensor]) -> Tensor:
        self.vae.eval()
        with torch.inference_mode(), self.execution.autocast(self.device):
            return run()

    def _learn(self, forward: Callable[[], tv.VAEOutput], images: Tensor) -> None:
        with self.execution.autocast(self.device):
            loss = tv.losses.elbo(forward(), images).total
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def choose(vae: tv.TransferVAE, options: dict[str, Any]) -> Execution:
    """The precision and layout asked for; where one is left to the library, the one that it chooses."""
    precisions = list(PRECISIONS) if options["precision"] == AUTO else [options["precision"]]
    memory_formats = MEMORY_FORMATS if options["layout"] == AUTO else (options["layout"],)
    if len(precisions) == len(memory_formats) == 1:
        return Execution(precisions[0], memory_formats[0])
    return choose_execution(
        measure_executions(vae, batch_size=options["batch"], precisions=precisions, memory_formats=memory_formats)
    )


def build_random_cache(folder: Path, rows: int, image_size: int, feature_shape: tuple[int, int, int]) -> None:
    """Make a cache of random images and features, or go on with one: reading it costs what reading any other does.

    Args:
        folder: The cache's folder.
        rows: Number of images.
        image_size: Side of the images.
        feature_shape: (c, h, w) of the features, which a network gives that costs next to nothing.
    """
    channels, height, width = feature_shape
    network = nn.Sequential(nn.AdaptiveAvgPool2d((height, width)), nn.Conv2d(3, channels, kernel_size=1))
    torch.manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    backbone = FrozenBackbone.from_module(network, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    FeatureCache.build(backbone, RandomPixels(rows, image_size), folder, batch_size=CHEAP_BATCH)


def endless(cache: FeatureCache, batch: int, workers: int, device: torch.device) -> Iterator[CachedItem]:
    """Batches of a cache, shuffled, epoch after epoch."""
    sampler = cache.sampler()
    loader = DataLoader(
        cache,
        batch,
        sampler=sampler,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        persistent_workers=workers > 0,
        drop_last=True,
    )
    epoch = 0
    while True:
        sampler.set_epoch(epoch)
        yield from loader
        epoch += 1


def stages_of(steps: Steps, wanted: list[str] | None) -> dict[str, Stage]:
    """What is asked for, its operations counted before anything is compiled."""
    runs: dict[str, Callable[[], object]] = {
        "backbone": steps.backbone,
        "encode": steps.encode,
        "decode": steps.decode,
        "reconstruct": steps.reconstruct,
        "train (live)": steps.train_live,
        "train (cached)": steps.train_cached,
        "head and decoder": steps.head_and_decoder,
    }
    stages = {name: counted(run, len(steps.images)) for name, run in runs.items() if wanted is None or name in wanted}
    if wanted is None or "cache build" in wanted:
        count = len(steps.pixels)
        one = stages["backbone"] if "backbone" in stages else counted(steps.backbone, len(steps.images))
        stages["cache build"] = replace(
            one, run=steps.build_cache, images=count, flops=count * (one.flops or 0) / one.images, traffic=None
        )
    return stages


def checkpoint_bytes(vae: tv.TransferVAE, folder: Path) -> int:
    """Bytes of a saved model, made sure to hold nothing of the backbone."""
    vae.save_pretrained(folder)
    if any(name.startswith("backbone.") for name in vae.trainable_state()):
        raise SystemExit("a saved model holds weights of its backbone")
    return sum(path.stat().st_size for path in folder.iterdir())


def main() -> None:
    """Serve the stages."""
    options = read_options()
    if options["threads"]:
        torch.set_num_threads(options["threads"])
    with tempfile.TemporaryDirectory() as name:
        steps = Steps(options, Path(name))
        about = {
            "trainable": sum(parameter.numel() for parameter in steps.vae.trainable_parameters()),
            **steps.execution._asdict(),
            "checkpoint_bytes": checkpoint_bytes(steps.vae, Path(name) / "saved"),
        }
        stages = stages_of(steps, options["stages"])
        if options["compile"]:
            for part in (steps.vae.backbone, steps.vae.head, steps.vae.decoder):
                part.compile()
        serve(stages, torch_device(steps.device), **about)


if __name__ == "__main__":
    main()
