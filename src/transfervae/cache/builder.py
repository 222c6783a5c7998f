"""Writing a feature cache: the shards that are missing, whole or not at all, by one process or several."""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from transfervae.backbones import FrozenBackbone
from transfervae.cache._dataset import (
    CacheableData,
    check_repeatable,
    describe_item,
    has_files,
    identify_data,
    pixel_loader,
    probe_rows,
)
from transfervae.cache._shards import (
    FILES,
    KINDS,
    read_items,
    read_summary,
    shard_file,
    stored_dtype,
    summarise_file,
    to_array,
    write_shard,
)
from transfervae.cache.manifest import (
    DTYPES,
    MANIFEST_FILE,
    Manifest,
    check_backbone_type,
    choose_rows,
    preprocessing_of,
    row_bytes,
)
from transfervae.data import ItemRecord
from transfervae.errors import (
    CacheError,
    CacheInUseError,
    FeatureValueError,
    FileWriteError,
    InvalidOptionError,
    UnknownNameError,
)
from transfervae.files import LOCK_FILE, delete_leftovers, find_leftovers, format_bytes, held
from transfervae.shapes import Features, Images, Pixels, check_positive, unit_images

SPARE_BYTES = 2**24
"""What is left free on the disk beside the cache itself."""

AUTOCASTS = (None, torch.bfloat16, torch.float16)


class Disk(NamedTuple):
    """Bytes that a cache still needs, and that are free where it is to be."""

    needed: int
    free: int


class _Batch(NamedTuple):
    rows: Sequence[int]
    pixels: Tensor
    features: Tensor
    copied: torch.cuda.Event | None


class CacheBuilder:
    """Computes and stores what a cache lacks: `check_disk`, then `run` on every process and `finish` on one, held.

    Batches lie within shards and depend on the data set's order alone, so that a build that was killed and continued
    gives the same files as one that was not. Shard i belongs to process i modulo their number.

    Attributes:
        folder: The cache's folder.
        manifest: What is being built.
    """

    def __init__(
        self,
        backbone: FrozenBackbone,
        dataset: CacheableData,
        folder: Path,
        *,
        dtype: torch.dtype | str = torch.float16,
        flips: bool = False,
        batch_size: int = 16,
        autocast: torch.dtype | None = None,
        ranks: int = 1,
        spare: int = SPARE_BYTES,
        owner: str | None = None,
    ) -> None:
        """Plan a build, or the rest of one.

        Args:
            backbone: Whose features are stored; on the device that they are to be computed on.
            dataset: Images that are the same whenever they are read.
            folder: The cache's folder; it may hold a part of this very cache.
            dtype: torch.float16 or torch.bfloat16, or their names.
            flips: Store the features of mirrored images too.
            batch_size: Images that the backbone gets at once.
            autocast: Precision that the backbone runs in; its own if None.
            ranks: Number of processes that share the work.
            spare: Bytes to be left free on the disk.
            owner: The run that the cache is built for, and that may delete it.

        Raises:
            InvalidOptionError: If the data set's items are random, or the options cannot work.
            CacheError: If the folder holds something else.
            CacheMismatchError: If it holds a cache of other features.
        """
        check_positive(batch_size=batch_size, ranks=ranks)
        check_backbone_type(backbone)
        if autocast not in AUTOCASTS:
            raise InvalidOptionError(f"autocast must be None, torch.bfloat16 or torch.float16, got {autocast!r}.")
        self.folder = folder
        self._backbone = backbone
        self._dataset = dataset
        self._batch_size = batch_size
        self._autocast = autocast
        self._ranks = ranks
        self._spare = spare
        self._owner = owner
        self._check_folder()
        self.manifest = self._plan(dtype, flips=flips)
        self._arrays: dict[str, NDArray[Any]] = {}
        self._writing: Future[None] | None = None
        self._writer = ThreadPoolExecutor(1)

    @property
    def is_whole(self) -> bool:
        """Whether nothing is left to do."""
        return Manifest.is_whole(self.folder) and not self._missing()

    @property
    def disk(self) -> Disk:
        """Bytes that are still to be written, and that are free."""
        rows = sum(len(self.manifest.shard_rows(shard)) for shard in self._missing())
        existing = next(path for path in (self.folder.absolute(), *self.folder.absolute().parents) if path.exists())
        return Disk(rows * self.manifest.row_bytes, shutil.disk_usage(existing).free)

    def check_disk(self) -> None:
        """Make sure that what is missing will fit.

        Raises:
            FileWriteError: If it will not.
        """
        needed, free = self.disk
        if needed and needed + self._spare > free:
            raise FileWriteError(
                f"The features need {format_bytes(needed)} in {str(self.folder)!r}, beside"
                f" {format_bytes(self._spare)} that are to be left, and {format_bytes(free)} are free; choose a folder"
                " on another disk, or a deeper node, whose features are smaller."
            )

    def holding(self) -> AbstractContextManager[None]:
        """Hold the folder against other builds, and say in it what is being built; one process of a build does so.

        Raises:
            CacheError: If another build holds it.
            FileWriteError: If the folder cannot be written to.
        """
        return self._holding()

    def batches(self, rank: int = 0) -> list[list[int]]:
        """Rows that a process is to compute, in batches, in the order to compute them in."""
        shards = [shard for shard in self._missing() if shard % self._ranks == rank]
        spans = [self.manifest.shard_rows(shard) for shard in shards]
        return [list(span[i : i + self._batch_size]) for span in spans for i in range(0, len(span), self._batch_size)]

    def run(self, rank: int = 0, *, workers: int = 0, progress: Callable[[int, int], None] | None = None) -> None:
        """Compute and store a process's share of what is missing; a full shard is written in the background.

        Args:
            rank: The process.
            workers: Processes that read images for this one.
            progress: Called with (images done, images to do).

        Raises:
            FeatureValueError: If features are not finite; the image is named.
            FileWriteError: If a shard cannot be written, for example because the disk is full.
        """
        batches = self.batches(rank)
        device = self._backbone.mean.device
        total, done = sum(map(len, batches)), 0
        copying: _Batch | None = None
        try:
            for rows, pixels in pixel_loader(self._dataset, batches, workers=workers):
                placed = pixels.to(device, non_blocking=True)
                waiting, copying = copying, _start_copy(rows.tolist(), pixels, self._compute(placed))
                if waiting is not None:  # after the next batch was begun, so that the device never waits
                    self._fill(waiting)
                done += len(rows)
                if progress is not None:
                    progress(done, total)
            if copying is not None:
                self._fill(copying)
            self._wait()
        finally:
            self._writer.shutdown()  # also after an error: a full shard is kept

    def finish(self) -> None:
        """Merge what all processes have written into the manifest; one of them does so, after all have run.

        Raises:
            CacheError: If shards are still missing.
            FileWriteError: If the manifest cannot be written.
        """
        summaries = [read_summary(self.folder, shard) for shard in range(self.manifest.count)]
        missing = [shard for shard, summary in enumerate(summaries) if summary is None]
        if missing:
            raise CacheError(f"{len(missing)} of {len(summaries)} shards are missing in {str(self.folder)!r}.")
        shards = [
            {
                **{kind: summary[kind] for kind in KINDS},
                "items": summarise_file(shard_file(self.folder, shard, "items")),
            }
            for shard, summary in enumerate(summaries)
            if summary is not None
        ]
        replace(self.manifest, shards=shards).write(self.folder)

    @contextmanager
    def _holding(self) -> Iterator[None]:
        with held(self.folder, in_use(self.folder)):
            delete_leftovers(self.folder)
            self.manifest.write(self.folder)
            yield

    def _check_folder(self) -> None:
        if self.folder == Path():
            raise InvalidOptionError("A feature cache needs a folder of its own; none was named.")
        for path in (self.folder, *self.folder.parents):
            if path.exists() and not path.is_dir():
                raise CacheError(f"{str(path)!r} is a file, not a folder.")
        if not (self.folder / MANIFEST_FILE).exists() and self.folder.exists():
            own = {LOCK_FILE, *(path.name for path in find_leftovers(self.folder))}  # of a build that was killed
            others = sorted(path.name for path in self.folder.iterdir() if path.name not in own)
            if others:
                raise CacheError(
                    f"{str(self.folder)!r} holds other files ({', '.join(others[:3])}); choose a folder of its own."
                )

    def _plan(self, dtype: torch.dtype | str, *, flips: bool) -> Manifest:
        sizes = check_repeatable(self._dataset)
        features = self._backbone.feature_shape(sizes)
        rows = len(self._dataset)
        manifest = Manifest(
            backbone=self._backbone.config,
            preprocessing=preprocessing_of(self._backbone),
            image_size=sizes,
            feature_shape=features,
            dtype=_name_dtype(dtype),
            flips=flips,
            data=identify_data(self._dataset),
            rows=rows,
            rows_per_shard=choose_rows(row_bytes(sizes, features, flips=flips), rows, self._ranks),
            computed_in=str(self._autocast or self._backbone.mean.dtype).removeprefix("torch."),
            owner=self._owner,
        )
        if not (self.folder / MANIFEST_FILE).exists():
            return manifest
        begun = Manifest.read(self.folder)
        begun.check_same(manifest, self.folder)
        check_items(begun, self._dataset, self.folder)
        if self._owner is not None and begun.owner != self._owner:
            raise CacheError(f"The feature cache in {str(self.folder)!r} was not built by this run.")
        return replace(manifest, rows_per_shard=begun.rows_per_shard, owner=begun.owner)

    def _missing(self) -> list[int]:
        return [shard for shard in range(self.manifest.count) if read_summary(self.folder, shard) is None]

    @torch.no_grad()
    def _compute(self, pixels: Pixels) -> Tensor:
        """Features as they are stored: `[b, (2,) c, h', w']`, on the images' device."""
        images = unit_images(pixels)
        straight = self._features(images)
        if not self.manifest.flips:
            return straight
        return torch.stack([straight, self._features(images.flip(-1))], dim=1)

    def _features(self, images: Images) -> Features:
        with torch.autocast(images.device.type, dtype=self._autocast, enabled=self._autocast is not None):
            features: Tensor = self._backbone(images)
        return features.to(self.manifest.torch_dtype)

    def _fill(self, batch: _Batch) -> None:
        if batch.copied is not None:
            batch.copied.synchronize()
        self._check_finite(batch)
        span = self.manifest.shard_rows(batch.rows[0] // self.manifest.rows_per_shard)
        if batch.rows[0] == span.start:
            self._arrays = {
                kind: np.empty((len(span), *shape), stored_dtype(self.manifest, kind))
                for kind, shape in self.manifest.row_shapes.items()
            }
        place = slice(batch.rows[0] - span.start, batch.rows[-1] + 1 - span.start)
        self._arrays["features"][place] = to_array(batch.features)
        self._arrays["images"][place] = batch.pixels.numpy()
        if batch.rows[-1] == span[-1]:
            self._wait()
            self._writing = self._writer.submit(self._write, span, self._arrays)

    def _write(self, span: range, arrays: Mapping[str, NDArray[Any]]) -> None:
        images = torch.from_numpy(arrays["images"])
        items = [tuple(describe_item(self._dataset, row, image)) for row, image in zip(span, images, strict=True)]
        write_shard(self.folder, span.start // self.manifest.rows_per_shard, arrays, items)

    def _wait(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _check_finite(self, batch: _Batch) -> None:
        fine = batch.features.isfinite().flatten(1).all(dim=1)
        if fine.all():
            return
        place = int(fine.int().argmin())
        name = describe_item(self._dataset, batch.rows[place], batch.pixels[place]).name
        float16 = (
            " or too large for float16 (above 65504); bfloat16 stores large ones (transfervae cache --dtype bfloat16)"
        )
        reason = float16 if self.manifest.dtype == "float16" else ""
        raise FeatureValueError(f"The features of {name!r} are not finite{reason}.")


def check_items(manifest: Manifest, dataset: CacheableData, folder: Path, *, is_whole: bool = False) -> None:
    """Make sure that the items of a data set are those that the shards in a folder were made of.

    Files are compared one by one; of a data set without files some items are read.

    Args:
        manifest: Of the cache in the folder.
        dataset: The images.
        folder: The cache's folder.
        is_whole: Every shard must have its list; else those without one are yet to be built.

    Raises:
        CacheMismatchError: If files are other ones or have changed; the first is named.
        CacheError: If a shard's list is missing or cannot be read.
    """
    probes = None if has_files(dataset) else set(probe_rows(manifest.rows))
    for shard in range(manifest.count):
        items = read_items(folder, manifest, shard)
        if items is None and is_whole:
            path = shard_file(folder, shard, "items")
            raise CacheError(f"{str(path)!r} is missing; run the command that built the cache again.")
        for row, before in zip(manifest.shard_rows(shard), items or (), strict=items is not None):
            if probes is not None and row not in probes:
                continue
            now = describe_item(dataset, row)
            if before != now:
                manifest.refuse([_describe_change(before, now)], folder)


def in_use(folder: Path) -> CacheInUseError:
    """What is raised if another process builds in a folder."""
    return CacheInUseError(f"Another process is building the feature cache in {str(folder)!r}.")


def delete_cache(folder: Path, owner: str) -> None:
    """Delete a cache that was built for a run, and the folder with it.

    Everything is checked before anything is deleted.

    Raises:
        CacheInUseError: If another process is building it.
        CacheError: If it was built for another, or holds files that are none of a cache; nothing is deleted then.
        FileWriteError: If the folder cannot be written to.
    """
    if folder.is_symlink() or not folder.is_dir():
        raise CacheError(f"{str(folder)!r} is no folder of a feature cache.")
    with held(folder, in_use(folder)):
        manifest = Manifest.read(folder)
        if manifest.owner != owner:
            raise CacheError(f"The feature cache in {str(folder)!r} was not built for this run.")
        delete_leftovers(folder)
        own = [shard_file(folder, shard, kind) for shard in range(manifest.count) for kind in FILES]
        foreign = {path.name for path in folder.iterdir()} - {path.name for path in own} - {MANIFEST_FILE, LOCK_FILE}
        if foreign:
            raise CacheError(f"{str(folder)!r} holds other files ({', '.join(sorted(foreign)[:3])}).")
        for path in (*own, folder / MANIFEST_FILE):  # a link would be deleted, not what it leads to
            path.unlink(missing_ok=True)


def _start_copy(rows: Sequence[int], pixels: Tensor, features: Tensor) -> _Batch:
    """Copy features to the host while the device goes on with the next batch."""
    if features.device.type != "cuda":
        return _Batch(rows, pixels, features.cpu(), None)
    copy = torch.empty(features.shape, dtype=features.dtype, pin_memory=True)
    copy.copy_(features, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()
    return _Batch(rows, pixels, copy, copied)


def _name_dtype(dtype: torch.dtype | str) -> str:
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise UnknownNameError("type to store features in", name, DTYPES)
    return name


def _describe_change(before: ItemRecord, now: ItemRecord) -> str:
    if before.name != now.name:
        return f"the data set has {now.name!r} where {before.name!r} was"
    changed = "its time of change" if before.size == now.size else f"{before.size} bytes then, {now.size} now"
    return f"{now.name!r} has changed since ({changed})"
