"""The run's images: opened, split, and dealt out to processes; or, from a cache, with their features."""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from typing_extensions import override

from transfervae.cache import CachedItem, FeatureCache, WindowSampler
from transfervae.data import ImageFolder, ToyFaces
from transfervae.errors import InvalidOptionError
from transfervae.shapes import Images, unit_images
from transfervae.training.options import TrainOptions

MAX_WORKERS = 8

Transform = Callable[[Tensor], Tensor]
"""What changes a training image `[3, h, w]`, uint8, at random, and leaves its shape."""


class RunImages(pl.LightningDataModule):
    """Training and held-out images of a run.

    The split depends on the seed and the number of images alone; the order of an epoch on seed and epoch alone (and,
    for a cache that is larger than its window, on its shards).

    Attributes:
        dataset: All images, 8 bits.
        training: Indices of those to learn from, ascending.
        held_out: Indices of those kept out, ascending.
        transform: What training images pass through.
        cache: Where features are read, if anywhere.
    """

    def __init__(
        self,
        options: TrainOptions,
        *,
        workers: int | None = None,
        transform: Transform | None = None,
        verify: bool = True,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Open and split the images.

        Args:
            options: What is learned.
            workers: Processes that read images; chosen by the number of cores if None.
            transform: What training images pass through whenever they are read.
            verify: Read every file now; without need where a cache holds the images. Files to skip are found so.
            progress: Called with (files read, files in all) while a folder is checked.

        Raises:
            ImageFileError: If the folder is missing or empty, or holds files that cannot be read.
            InvalidOptionError: If there are fewer than two images, so that none can be held out.
        """
        super().__init__()
        self.dataset = open_images(options, progress, verify=verify or options.skip_bad)
        self.workers = min(MAX_WORKERS, (os.cpu_count() or 1) // 2) if workers is None else workers
        self.transform = transform
        self.cache: FeatureCache | None = None
        self._options = options
        count = len(self.dataset)
        if count < 2:
            raise InvalidOptionError(f"Training needs at least 2 images, one of them held out; there is {count}.")
        kept_out = min(count - 1, max(1, round(count * options.held_out)))
        order = torch.randperm(count, generator=torch.Generator().manual_seed(options.seed)).tolist()
        self.held_out: list[int] = sorted(order[:kept_out])
        self.training: list[int] = sorted(order[kept_out:])

    @property
    def bad(self) -> Mapping[Path, str]:
        """Files that were skipped because they cannot be read, with the reason."""
        return self.dataset.bad if isinstance(self.dataset, ImageFolder) else {}

    @property
    def identity(self) -> dict[str, object]:
        """What tells this set of images from another: their number, and a hash over the files' names."""
        digest = hashlib.sha256()
        if isinstance(self.dataset, ImageFolder):
            for path in self.dataset.paths:
                digest.update(os.fsencode(path.relative_to(self._options.data or "")) + b"\n")
        return {"images": len(self.dataset), "names": digest.hexdigest()}

    def check_ranks(self, world_size: int) -> None:
        """Make sure that every process gets a held-out image.

        Raises:
            InvalidOptionError: If there are fewer than processes.
        """
        if len(self.held_out) < world_size:
            raise InvalidOptionError(
                f"{world_size} processes need as many held-out images, there are {len(self.held_out)};"
                " hold out more, or use fewer devices."
            )

    @override
    def train_dataloader(self) -> DataLoader[Any]:
        sampler = self._sampler()
        if self.trainer:  # workers fetch ahead, before the engine tells the sampler the epoch that a run resumes at
            epochs: Any = self.trainer.fit_loop.epoch_progress.current
            sampler.set_epoch(epochs.processed)
        source = self.cache or _LiveImages(self.dataset, self.transform)
        return self._loader(source, sampler, drop_last=len(sampler) >= self._options.batch_size)

    @override
    def val_dataloader(self) -> DataLoader[Any]:
        rank, world = self._world()
        return self._loader(self._source(), self.held_out[rank::world])

    def batches(self, indices: Sequence[int]) -> Iterator[Images]:
        """Some of the images in batches, in order."""
        for batch in self._loader(self._source(), indices):
            yield unit_images(batch.image if isinstance(batch, CachedItem) else batch)

    def examples(self, count: int) -> Images:
        """The first held-out images, `[count, 3, h, w]`, or as many as there are."""
        return unit_images(torch.stack([self.dataset[i] for i in self.held_out[:count]]))

    def _sampler(self) -> WindowSampler:
        rank, world = self._world()
        seed, flips = self._options.seed, self._options.flips
        if self.cache is None:
            return WindowSampler(self.training, rank=rank, world=world, seed=seed, flips=flips)
        return self.cache.sampler(self.training, rank=rank, world=world, seed=seed, flips=flips)

    def _source(self) -> Dataset[Any]:
        return self.cache or _LiveImages(self.dataset, None)

    def _world(self) -> tuple[int, int]:
        trainer = self.trainer
        return (trainer.global_rank, trainer.world_size) if trainer else (0, 1)

    def _loader(
        self, source: Dataset[Any], order: Sampler[Any] | Sequence[int], *, drop_last: bool = False
    ) -> DataLoader[Any]:
        return DataLoader(
            source,
            batch_size=self._options.batch_size,
            sampler=order,
            drop_last=drop_last,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=torch.cuda.is_available(),
        )


class _LiveImages(Dataset[Tensor]):
    """Images as they are read, mirrored where the order says so, and passed through a transform."""

    def __init__(self, images: Dataset[Tensor], transform: Transform | None) -> None:
        self._images = images
        self._transform = transform

    def __getitem__(self, key: int | tuple[int, bool]) -> Tensor:
        index, is_mirrored = key if isinstance(key, tuple) else (key, False)
        image = self._images[index]
        image = image.flip(-1) if is_mirrored else image
        return image if self._transform is None else _checked(self._transform(image), image)


def _checked(changed: object, image: Tensor) -> Tensor:
    if not isinstance(changed, Tensor) or changed.shape != image.shape:
        given = list(changed.shape) if isinstance(changed, Tensor) else type(changed).__name__
        raise InvalidOptionError(f"The transform must give a tensor {list(image.shape)}, as it was given, got {given}.")
    return changed


def open_images(
    options: TrainOptions, progress: Callable[[int, int], None] | None = None, *, verify: bool = True
) -> ImageFolder | ToyFaces:
    """The images of a run in 8 bits: its folder, or the embedded faces.

    Raises:
        ImageFileError: If the folder is missing or empty, or holds files that cannot be read.
    """
    if options.data is None:
        return ToyFaces(options.faces, options.image_size, seed=options.seed, dtype=torch.uint8)
    return ImageFolder(
        options.data,
        options.image_size,
        dtype=torch.uint8,
        verify=verify,
        skip_bad=options.skip_bad,
        progress=progress,
    )
