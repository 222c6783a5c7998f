"""The run's images: opened, split, and dealt out to processes."""

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Subset
from typing_extensions import override

from transfervae.data import ImageFolder, ToyFaces
from transfervae.errors import InvalidOptionError
from transfervae.shapes import Images
from transfervae.training.options import TrainOptions

MAX_WORKERS = 8


class RunImages(pl.LightningDataModule):
    """Training and held-out images of a run.

    The split depends on the seed and the number of images alone; the order of an epoch on seed and epoch alone.

    Attributes:
        dataset: All images.
        training: Those to learn from.
        held_out: Those kept out.
    """

    def __init__(
        self,
        options: TrainOptions,
        *,
        workers: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Open and split the images.

        Args:
            options: What is learned.
            workers: Processes that read images; chosen by the number of cores if None.
            progress: Called with (files read, files in all) while a folder is checked.

        Raises:
            ImageFileError: If the folder is missing or empty, or holds files that cannot be read.
            InvalidOptionError: If there are fewer than two images, so that none can be held out.
        """
        super().__init__()
        self.dataset = open_images(options, progress)
        self._options = options
        self._workers = min(MAX_WORKERS, (os.cpu_count() or 1) // 2) if workers is None else workers
        count = len(self.dataset)
        if count < 2:
            raise InvalidOptionError(f"Training needs at least 2 images, one of them held out; there is {count}.")
        kept_out = min(count - 1, max(1, round(count * options.held_out)))
        order = torch.randperm(count, generator=torch.Generator().manual_seed(options.seed)).tolist()
        self.held_out = Subset(self.dataset, sorted(order[:kept_out]))
        self.training = Subset(self.dataset, sorted(order[kept_out:]))

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
    def train_dataloader(self) -> DataLoader[Tensor]:
        sampler: DistributedSampler[Tensor] = DistributedSampler(
            self.training, num_replicas=self._world()[1], rank=self._world()[0], seed=self._options.seed
        )
        if self.trainer:  # workers fetch ahead, before the engine tells the sampler the epoch that a run resumes at
            epochs: Any = self.trainer.fit_loop.epoch_progress.current
            sampler.set_epoch(epochs.processed)
        return self._loader(self.training, sampler=sampler, drop_last=len(sampler) >= self._options.batch_size)

    @override
    def val_dataloader(self) -> DataLoader[Tensor]:
        rank, world = self._world()
        return self._loader(Subset(self.held_out, range(rank, len(self.held_out), world)))

    def batches(self, images: Subset[Tensor]) -> DataLoader[Tensor]:
        """All of some images in batches, in order."""
        return self._loader(images)

    def examples(self, count: int) -> Images:
        """The first held-out images, `[count, 3, h, w]`, or as many as there are."""
        return torch.stack([self.held_out[i] for i in range(min(count, len(self.held_out)))])

    def _world(self) -> tuple[int, int]:
        trainer = self.trainer
        return (trainer.global_rank, trainer.world_size) if trainer else (0, 1)

    def _loader(
        self, images: Dataset[Tensor], *, sampler: DistributedSampler[Tensor] | None = None, drop_last: bool = False
    ) -> DataLoader[Tensor]:
        return DataLoader(
            images,
            batch_size=self._options.batch_size,
            sampler=sampler,
            drop_last=drop_last,
            num_workers=self._workers,
            persistent_workers=self._workers > 0,
            pin_memory=torch.cuda.is_available(),
        )


def open_images(options: TrainOptions, progress: Callable[[int, int], None] | None = None) -> ImageFolder | ToyFaces:
    """The images of a run: its folder, or the embedded faces.

    Raises:
        ImageFileError: If the folder is missing or empty, or holds files that cannot be read.
    """
    if options.data is None:
        return ToyFaces(options.faces, options.image_size, seed=options.seed)
    return ImageFolder(options.data, options.image_size, skip_bad=options.skip_bad, progress=progress)
