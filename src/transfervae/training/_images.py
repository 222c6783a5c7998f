"""A run's images: split, and dealt out to processes; or, from a cache, with their features."""

import copy
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from typing_extensions import override

from transfervae.backbones import FrozenBackbone
from transfervae.cache import CachedItem, FeatureCache, WindowSampler
from transfervae.data import ImageDataset, JoinedImages
from transfervae.errors import InvalidOptionError
from transfervae.shapes import Images, unit_images

MAX_WORKERS = 8

Transform = Callable[[Tensor], Tensor]
"""What changes a training image `[3, h, w]`, uint8, at random, and leaves its shape."""


class RunImages(pl.LightningDataModule):
    """Training and validation images of a run.

    The split depends on the seed and the number of images alone; the order of an epoch on seed and epoch alone (and,
    for a cache that is larger than its window, on its shards).

    Attributes:
        dataset: All images, 8 bits; with validation images of their own, these come last.
        training: Indices of those to learn from, ascending.
        val: Indices of those held out, ascending.
        transform: What training images pass through.
        batch_size: Images a step and process.
        flips: Whether every other training image is mirrored.
        workers: Processes that read images.
        cache: Where features are read, if anywhere.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        *,
        val: float | ImageDataset = 0.1,
        batch_size: int = 16,
        seed: int = 0,
        flips: bool = False,
        workers: int | None = None,
        transform: Transform | None = None,
    ) -> None:
        """Split a data set.

        Args:
            dataset: From `open_dataset`.
            val: Fraction of the images that is held out, or held-out images.
            batch_size: Images a step and process.
            seed: Of the split and the order.
            flips: Mirror every other training image, drawn anew in every epoch.
            workers: Processes that read images; chosen by the number of cores if None.
            transform: What training images pass through whenever they are read.

        Raises:
            InvalidOptionError: If there are fewer than two images, so that none can be held out.
        """
        super().__init__()
        self.workers = min(MAX_WORKERS, (os.cpu_count() or 1) // 2) if workers is None else workers
        self.transform = transform
        self.batch_size = batch_size
        self.flips = flips
        self.cache: FeatureCache | None = None
        self._seed = seed
        count = len(dataset)
        if not isinstance(val, float | int):
            self.dataset: ImageDataset = JoinedImages(dataset, val)
            self.training, self.val = list(range(count)), list(range(count, count + len(val)))
            return
        if count < 2:
            raise InvalidOptionError(f"Training needs at least 2 images, one of them held out; there is {count}.")
        self.dataset = dataset
        kept_out = min(count - 1, max(1, round(count * val)))
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
        self.val = sorted(order[:kept_out])
        self.training = sorted(order[kept_out:])

    def with_cache(self, cache: FeatureCache) -> "RunImages":
        """The same images and split, with features from a cache."""
        cached = copy.copy(self)
        cached.cache = cache
        return cached

    @property
    def images_id(self) -> dict[str, object]:
        """Identifies this set of images: their number, and a hash over their names or content."""
        digest = hashlib.sha256()
        if hasattr(self.dataset, "describe_item"):
            for index in range(len(self.dataset)):
                digest.update(os.fsencode(self.dataset.name_of(index)) + b"\n")
        identity = json.dumps(dict(self.dataset.identity), sort_keys=True)
        return {"images": len(self.dataset), "names": digest.hexdigest(), "data": json.loads(identity)}

    def val_names(self) -> list[str]:
        """Names of the held-out images: paths within a folder, or places in a data set."""
        return [self.dataset.name_of(index) for index in self.val]

    def val_digest(self) -> str:
        """SHA-256 of the held-out images' 8-bit values, in order, in hexadecimal."""
        digest = hashlib.sha256()
        for index in self.val:
            digest.update(self.dataset[index].contiguous().numpy().tobytes())
        return digest.hexdigest()

    def check_cache(self, backbone: FrozenBackbone) -> None:
        """Make sure that the features that are read are still those of the backbone.

        Raises:
            CacheMismatchError: If the backbone was changed since.
        """
        if self.cache is not None:
            self.cache.check(backbone)

    def check_ranks(self, world_size: int) -> None:
        """Make sure that every process gets a held-out image.

        Raises:
            InvalidOptionError: If there are fewer than processes.
        """
        if len(self.val) < world_size:
            raise InvalidOptionError(
                f"{world_size} processes need as many held-out images, there are {len(self.val)};"
                " hold out more, or use fewer devices."
            )

    @override
    def train_dataloader(self) -> DataLoader[Any]:
        sampler = self._sampler()
        if self.trainer:  # workers fetch ahead, before the engine tells the sampler the epoch that a run resumes at
            epochs: Any = self.trainer.fit_loop.epoch_progress.current
            sampler.set_epoch(epochs.processed)
        source = self.cache or _LiveImages(self.dataset, self.transform)
        return _EpochLoader(
            source,
            drop_last=len(sampler) >= self.batch_size,
            seeds=lambda: sampler.epoch_seed,
            **self._loading(sampler, is_random=self.transform is not None),
        )

    @override
    def val_dataloader(self) -> DataLoader[Any]:
        rank, world = self._world()
        return self._loader(self._source(), self.val[rank::world])

    def batches(self, indices: Sequence[int]) -> Iterator[Images]:
        """Some of the images in batches, in order."""
        for batch in self._loader(self._source(), indices):
            yield unit_images(batch.image if isinstance(batch, CachedItem) else batch)

    def examples(self, count: int) -> Images:
        """The first held-out images, `[count, 3, h, w]`, or as many as there are."""
        return unit_images(torch.stack([self.dataset[i] for i in self.val[:count]]))

    def _sampler(self) -> WindowSampler:
        rank, world = self._world()
        seed, flips = self._seed, self.flips
        if self.cache is None:
            return WindowSampler(self.training, rank=rank, world=world, seed=seed, flips=flips)
        return self.cache.sampler(self.training, rank=rank, world=world, seed=seed, flips=flips)

    def _source(self) -> Dataset[Any]:
        return self.cache or _LiveImages(self.dataset, None)

    def _world(self) -> tuple[int, int]:
        trainer = self.trainer
        return (trainer.global_rank, trainer.world_size) if trainer else (0, 1)

    def _loader(self, source: Dataset[Any], order: Sequence[int]) -> DataLoader[Any]:
        return DataLoader(source, **self._loading(order))

    def _loading(self, order: Sampler[Any] | Sequence[int], *, is_random: bool = False) -> dict[str, Any]:
        return {
            "batch_size": self.batch_size,
            "sampler": order,
            "num_workers": self.workers,
            "persistent_workers": self.workers > 0 and not is_random,  # new ones are seeded anew
            "pin_memory": torch.cuda.is_available(),
        }


class _EpochLoader(DataLoader[Any]):
    """A loader whose workers draw, in every epoch, what they would draw in a run that was not interrupted."""

    def __init__(self, source: Dataset[Any], *, seeds: Callable[[], int], **options: Any) -> None:
        super().__init__(source, generator=torch.Generator(), **options)
        self._seeds = seeds

    @override
    def __iter__(self) -> Any:
        self.generator.manual_seed(self._seeds())
        return super().__iter__()


class _LiveImages(Dataset[Tensor]):
    """Images as they are read, mirrored where the order says so, and passed through a transform."""

    def __init__(self, images: ImageDataset, transform: Transform | None) -> None:
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
