"""Reading a feature cache."""

import operator
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from filelock import FileLock, Timeout
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info
from typing_extensions import override

from transfervae.backbones import FrozenBackbone
from transfervae.cache._dataset import CacheableData, as_pixels, identify_data
from transfervae.cache._shards import Shard, check_contents, check_sizes, open_shard, read_summary, to_features
from transfervae.cache.builder import CacheBuilder, check_items
from transfervae.cache.manifest import Manifest
from transfervae.cache.sampler import WindowSampler
from transfervae.errors import CacheError, InvalidOptionError
from transfervae.files import LOCK_FILE
from transfervae.shapes import check_positive

WINDOW = 2**30
"""Bytes, about, that are shuffled together, and whose files are open at once."""


class CachedItem(NamedTuple):
    """An image and its features; a batch of them once collated.

    Attributes:
        image: `[3, h, w]`, uint8.
        features: `[c, h', w']`, float16 or bfloat16.
    """

    image: Tensor
    features: Tensor


class FeatureCache(Dataset[CachedItem]):
    """Features of a data set's images on disk, with the images themselves: what `forward_from_features` needs.

    Files are read row by row, a window of them at a time, so that a set that is larger than memory is read from disk as
    the training goes on: give a loader the order of `sampler`. A shard's checksum is compared when it is first opened;
    a shard that is changed while it is read is noticed by its size and time of change.

    Attributes:
        folder: The cache's folder.
        manifest: What the features belong to.
    """

    def __init__(self, folder: str | os.PathLike[str], *, window: int = WINDOW) -> None:
        """Open a cache that is whole; nothing is written.

        Args:
            folder: The cache's folder.
            window: Bytes, about, whose files are open at once; at least one shard.

        Raises:
            CacheError: If there is none, or it is incomplete, damaged, of another version, or being built.
        """
        check_positive(window=window)
        self.folder = Path(folder)
        self.manifest = Manifest.read(self.folder)
        if self.manifest.shards is None:
            raise CacheError(_incomplete_message(self.folder, self.manifest))
        check_sizes(self.folder, self.manifest)
        self._window = max(1, window // (self.manifest.row_bytes * self.manifest.rows_per_shard))
        self._open: OrderedDict[int, Shard] = OrderedDict()
        self._checked: set[int] = set()

    @staticmethod
    def build(
        backbone: FrozenBackbone,
        dataset: CacheableData,
        folder: str | os.PathLike[str],
        *,
        dtype: torch.dtype | str = torch.float16,
        flips: bool = False,
        batch_size: int = 16,
        workers: int = 0,
        autocast: torch.dtype | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> "FeatureCache":
        """Compute what a cache lacks, and open it; a build that was killed goes on where it stopped.

        Args:
            backbone: Whose features are stored; they are computed on its device.
            dataset: Images that are the same whenever they are read, such as `ImageFolder(..., dtype=torch.uint8)`.
            folder: The cache's folder, made if missing.
            dtype: torch.float16 (relative error up to 2^-11) or torch.bfloat16 (up to 2^-8, but a larger range).
            flips: Store the features of mirrored images too: twice the computation and space.
            batch_size: Images that the backbone gets at once.
            workers: Processes that read images.
            autocast: Precision that the backbone runs in; its own if None.
            progress: Called with (images done, images to do).

        Returns:
            The cache.

        Raises:
            InvalidOptionError: If the data set's items are random, or the options cannot work.
            CacheMismatchError: If the folder holds a cache of other features, or the images have changed.
            CacheError: If the folder holds something else, or another process is building in it.
            FeatureValueError: If features are not finite; the image is named.
            FileWriteError: If the disk is too small or full; what was written before is kept.
        """
        options: dict[str, Any] = {"dtype": dtype, "flips": flips, "batch_size": batch_size, "autocast": autocast}
        builder = CacheBuilder(backbone, dataset, Path(folder), **options)
        if builder.is_whole:
            return FeatureCache(folder)
        builder.check_disk()
        with builder.holding():
            builder.run(workers=workers, progress=progress)
            builder.finish()
        return FeatureCache(folder)

    def __len__(self) -> int:
        return self.manifest.rows

    @override
    def __getitem__(self, key: int | tuple[int, bool]) -> CachedItem:
        """One image and its features; `cache[5, True]` gives both mirrored.

        Raises:
            IndexError: If there is no such row.
            InvalidOptionError: If mirrored features are asked for and were not stored.
            CacheError: If the shard is damaged.
        """
        row, is_mirrored = _parse_key(key)
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        shard, place = divmod(row % len(self), self.manifest.rows_per_shard)
        files = self._open_shard(shard)
        image = torch.from_numpy(files.images.row(place))
        if not self.manifest.flips:
            if is_mirrored:
                self.check_flips()
            return CachedItem(image, to_features(files.features.row(place), self.manifest))
        features = to_features(files.features.row(place, int(is_mirrored)), self.manifest)
        return CachedItem(image.flip(-1) if is_mirrored else image, features)

    def sampler(
        self, rows: Sequence[int] | None = None, *, rank: int = 0, world: int = 1, seed: int = 0, flips: bool = False
    ) -> WindowSampler:
        """An order for a loader that shuffles within a window.

        Args:
            rows: The rows to deal, ascending; all if None.
            rank: This process.
            world: Number of processes.
            seed: Of the order and the mirroring.
            flips: Mirror every other item, drawn anew in every epoch.

        Raises:
            InvalidOptionError: If mirrored features are asked for and were not stored, or there are no such rows.
        """
        if flips:
            self.check_flips()
        chosen = range(len(self)) if rows is None else rows
        if len(chosen) and not 0 <= min(chosen) <= max(chosen) < len(self):
            raise InvalidOptionError(f"rows must be from 0 to {len(self) - 1}, got {min(chosen)} to {max(chosen)}.")
        return WindowSampler(
            chosen,
            rows_per_shard=self.manifest.rows_per_shard,
            shards_per_window=self._window,
            rank=rank,
            world=world,
            seed=seed,
            flips=flips,
        )

    def check(self, backbone: FrozenBackbone, dataset: CacheableData | None = None) -> None:
        """Make sure that these are the features that a backbone gives for the images of a data set.

        Args:
            backbone: The backbone.
            dataset: The images; their files' names, sizes and times of change are compared. Not looked at if None.

        Raises:
            CacheMismatchError: Naming what differs.
            CacheError: If the list of the images that a shard was made of is missing or damaged.
        """
        size = self.manifest.image_size if dataset is None else _size_of(dataset)
        self.manifest.check_backbone(backbone, size, self.folder)
        if dataset is None:
            return
        now = {"items": len(dataset), **identify_data(dataset)}
        before = {"items": len(self), **self.manifest.data}
        names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        self.manifest.refuse([f"data {name} is {before.get(name)}, not {now.get(name)}" for name in names], self.folder)
        check_items(self.manifest, dataset, self.folder, is_whole=True)

    def check_flips(self) -> None:
        """Make sure that features of mirrored images are there.

        Raises:
            InvalidOptionError: If they are not.
        """
        if not self.manifest.flips:
            raise InvalidOptionError("This cache holds no mirrored features; build one with flips (--dataset.flips).")

    def verify(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Compare the checksums of all files.

        Args:
            progress: Called with (shards done, shards in all).

        Raises:
            CacheError: If a file is not the one that was written; it is named.
        """
        for shard in range(self.manifest.count):
            check_contents(self.folder, self.manifest, shard)
            if progress is not None:
                progress(shard + 1, self.manifest.count)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}  # another process opens files of its own

    def _open_shard(self, shard: int) -> Shard:
        if shard in self._open:
            return self._open[shard]
        if shard not in self._checked and _is_checker(shard):
            check_contents(self.folder, self.manifest, shard)
        self._checked.add(shard)
        while len(self._open) > self._window:
            self._open.popitem(last=False)
        self._open[shard] = open_shard(self.folder, self.manifest, shard)
        return self._open[shard]


def _size_of(dataset: CacheableData) -> tuple[int, int]:
    size: tuple[int, int] | None = getattr(dataset, "image_size", None)
    if size is not None or not len(dataset):
        return size or (0, 0)
    height, width = as_pixels(dataset[0]).shape[-2:]
    return height, width


def _parse_key(key: Any) -> tuple[int, bool]:
    row, is_mirrored = key if isinstance(key, tuple) and len(key) == 2 else (key, False)
    try:
        return operator.index(row), bool(is_mirrored)
    except TypeError:
        raise TypeError(f"A cache is indexed by a row, or by (row, mirrored), got {key!r}.") from None


def _is_checker(shard: int) -> bool:
    """Whether it is for this process to compare a shard's checksum: one of a loader's workers does."""
    worker = get_worker_info()
    return worker is None or shard % worker.num_workers == worker.id


def _incomplete_message(folder: Path, manifest: Manifest) -> str:
    # Files are looked for, not numbers: a damaged manifest may say that there are any number of shards.
    numbers = {int(path.stem) for path in folder.glob("*.json") if path.stem.isdecimal()}
    done = sum(read_summary(folder, shard) is not None for shard in numbers if shard < manifest.count)
    state = f"The feature cache in {str(folder)!r} is incomplete ({done} of {manifest.count} shards)"
    if done == manifest.count:
        state = f"The feature cache in {str(folder)!r} has all its shards, but its manifest was not finished"
    if _is_held(folder):
        return f"{state} and another process is building it; wait for that."
    return f"{state}; run the command that began it again: it goes on where it stopped."


def _is_held(folder: Path) -> bool:
    if not (folder / LOCK_FILE).is_file():
        return False
    with suppress(OSError):
        lock = FileLock(folder / LOCK_FILE, blocking=False)
        try:
            lock.acquire()
        except Timeout:
            return True
        lock.release()
    return False
