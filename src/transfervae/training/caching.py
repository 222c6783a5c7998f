"""The feature cache of a run, and building one under the engine's own `predict`."""

import os
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from rich.console import Console
from rich.markup import escape
from torch.distributed import all_gather_object, get_world_size, is_available, is_initialized
from torch.utils.data import DataLoader
from typing_extensions import override

from transfervae.backbones import FrozenBackbone
from transfervae.cache import DTYPES, CacheBuilder, FeatureCache, Manifest
from transfervae.cache.builder import SPARE_BYTES, delete_cache, format_bytes
from transfervae.cache.dataset import CacheableData, RowPixels, pixel_loader
from transfervae.cache.manifest import MANIFEST_FILE
from transfervae.errors import (
    CacheError,
    CacheInUseError,
    CacheMismatchError,
    FeatureValueError,
    FileWriteError,
    InvalidOptionError,
    TransferVAEError,
)
from transfervae.execution import PRECISIONS, Execution
from transfervae.model import TransferVAE
from transfervae.progress import make_progress
from transfervae.training.engine import is_first_process, make_trainer, quiet_engine, run_interruptibly
from transfervae.training.images import RunImages
from transfervae.training.options import EngineOptions

RUN_FILES = 11
"""Copies of its parameters that a run writes: two checkpoints and one aside, each with two moments, and the model."""


def open_cache(
    folder: str | os.PathLike[str], images: RunImages, backbone: FrozenBackbone, console: Console
) -> FeatureCache:
    """Open a cache that a run is to read.

    Raises:
        CacheError: If it is missing, incomplete or damaged.
        CacheMismatchError: If it belongs to another backbone, size or data set.
        InvalidOptionError: If the run's images are transformed, or to be mirrored and the cache's are not.
    """
    if images.transform is not None:
        raise InvalidOptionError(
            "Images that pass through a transform have no features in a cache; leave the transform or the cache out."
        )
    cache = FeatureCache(folder)
    cache.check(backbone, images.dataset if is_first_process() else None)
    if images.flips:
        cache.check_flips()
    if is_first_process():
        what = f"{cache.manifest.dtype}, computed in {cache.manifest.computed_in}"
        console.print(f"features of {len(cache)} images from {escape(str(folder))} ({what})", soft_wrap=True)
    return cache


def keep_features(
    engine: EngineOptions,
    images: RunImages,
    vae: TransferVAE,
    folder: Path,
    *,
    epochs: int,
    execution: Execution,
    is_resumed: bool,
    world_size: int,
    console: Console,
) -> FeatureCache | None:
    """Build the run's own cache; None if features are to be computed in every epoch instead, which is said.

    What an earlier run that got nowhere has left in the run's folder, of other features, is deleted.

    Raises:
        CacheInUseError: If another process builds in the same folder.
        FeatureValueError: If features are not finite, of several processes that are not all there yet.
        FileWriteError: If the disk is too small or full, likewise.
    """
    reason = _reason_against(epochs, images)
    build = partial(
        build_cache,
        vae.backbone,
        images.dataset,
        folder,
        flips=images.flips,
        batch_size=images.batch_size,
        execution=execution,
        engine=engine,
        workers=images.workers,
        spare=SPARE_BYTES + RUN_FILES * sum(4 * parameter.numel() for parameter in vae.trainable_parameters()),
        console=console,
    )
    if reason is None:
        try:
            return build() if is_resumed else _replacing(build, folder)
        except (FeatureValueError, FileWriteError) as error:
            if world_size > 1 and not is_initialized():
                raise  # the processes to come would build, and wait for this one
            reason = str(error)
            if is_first_process():
                with suppress(FileWriteError):
                    delete_cache(folder)
    if is_first_process():
        console.print(f"features are computed in every epoch: {escape(reason)}", soft_wrap=True, highlight=False)
    return None


def build_cache(
    backbone: FrozenBackbone,
    dataset: CacheableData,
    folder: str | os.PathLike[str],
    *,
    dtype: str = "float16",
    flips: bool = False,
    batch_size: int = 16,
    execution: Execution | None = None,
    engine: EngineOptions | None = None,
    workers: int = 0,
    spare: int = SPARE_BYTES,
    console: Console | None = None,
) -> FeatureCache:
    """Compute what a cache lacks on the engine's devices, and open it; each process writes shards of its own.

    A build that was killed goes on where it stopped, in the precision that it began in.

    Args:
        backbone: Whose features are stored.
        dataset: Images that are the same whenever they are read.
        folder: The cache's folder, made if missing; all processes must see it.
        dtype: "float16" or "bfloat16".
        flips: Store the features of mirrored images too.
        batch_size: Images that the backbone gets at once.
        execution: Precision and memory memory_format; float32 and contiguous if None.
        engine: Devices and so on.
        workers: Processes that read images.
        spare: Bytes to be left free on the disk.
        console: Where to print; nothing is printed if None.

    Returns:
        The cache, on every process.

    Raises:
        InvalidOptionError: If the data set's items are random, or the options cannot work.
        CacheMismatchError: If the folder holds a cache of other features, or the images have changed.
        CacheError: If the folder holds something else, or another process is building in it.
        FeatureValueError: If features are not finite; the image is named.
        FileWriteError: If the disk is too small or full; what was written before is kept.
    """
    console = console or Console(quiet=True)
    execution = _as_begun(Path(folder), execution or Execution())
    display = _Display(console)
    # The precision is ours alone: what the engine would do on top of it, the cache could not tell.
    trainer = make_trainer(replace(engine or EngineOptions(), precision="32-true"), [display])
    builder = CacheBuilder(
        backbone.to(memory_format=execution.torch_memory_format),
        dataset,
        Path(folder),
        dtype=DTYPES[dtype],
        flips=flips,
        batch_size=batch_size,
        autocast=execution.dtype,
        ranks=trainer.world_size,
        spare=spare,
    )
    if builder.is_whole:
        return FeatureCache(folder)
    with ExitStack() as held:
        held.enter_context(quiet_engine())
        if is_first_process():
            _announce(builder, dataset, console)
            if trainer.world_size == 1:
                builder.check_disk()
            held.enter_context(builder.holding())
        held.callback(builder.close)
        module = _FeatureModule(builder, backbone)
        data = _BuildData(builder, dataset, workers)
        run_interruptibly(trainer, lambda: trainer.predict(module, datamodule=data, return_predictions=False))
        _on_all_ranks(module.conclude)
        if is_first_process():
            _on_all_ranks(builder.finish)
        else:
            _on_all_ranks(lambda: None)
    return FeatureCache(folder)


def _on_all_ranks(act: Callable[[], object]) -> None:
    """Do something on every process; what goes wrong on one is raised on all: none goes on, or waits, without it."""
    failures: list[TransferVAEError | None] = [None]
    try:
        act()
    except TransferVAEError as error:
        failures = [error]
    if is_available() and is_initialized():
        own, failures = failures[0], [None] * get_world_size()
        all_gather_object(failures, own)
    for failure in failures:
        if failure is not None:
            raise failure


class _FeatureModule(pl.LightningModule):
    """Computes and stores features, each process those of its own shards."""

    def __init__(self, builder: CacheBuilder, backbone: FrozenBackbone) -> None:
        super().__init__()
        self.backbone = backbone  # so that the engine moves it to the device
        self._builder = builder
        self._failure: TransferVAEError | None = None

    @override
    def setup(self, stage: str) -> None:
        _on_all_ranks(self._builder.check_disk)  # here all processes come by, also those that find nothing to do

    @override
    def predict_step(self, batch: RowPixels) -> None:
        if self._failure is not None:
            return
        try:
            self._builder.add(batch.rows.tolist(), batch.pixels, self._builder.compute(batch.pixels))
        except TransferVAEError as error:
            if self.trainer.world_size == 1:
                raise
            self._failure = error

    def conclude(self) -> None:
        """Wait for what is being written, and raise what went wrong while other processes were at work."""
        self._builder.close()
        if self._failure is not None:
            raise self._failure


class _BuildData(pl.LightningDataModule):
    def __init__(self, builder: CacheBuilder, dataset: CacheableData, workers: int) -> None:
        super().__init__()
        self._builder = builder
        self._dataset = dataset
        self._workers = workers
        self.allow_zero_length_dataloader_with_multiple_devices = True  # there may be more processes than shards

    @override
    def predict_dataloader(self) -> DataLoader[RowPixels]:
        rank = self.trainer.global_rank if self.trainer else 0
        return pixel_loader(self._dataset, self._builder.batches(rank), workers=self._workers)


class _Display(pl.Callback):
    """A bar on a terminal, and a line at the end anywhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = 0.0
        self._done = 0
        self._progress = make_progress(console)
        self._task = self._progress.add_task("features", figures="", visible=False)

    @override
    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            self._began = time.monotonic()
            self._progress.start()
            self._progress.reset(self._task, total=int(trainer.num_predict_batches[0]), visible=True, figures="")

    @override
    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._done += len(batch.pixels) * trainer.world_size
        if trainer.is_global_zero:
            self._progress.update(self._task, completed=batch_idx + 1, figures=f"{self._speed():.0f} images/s")

    @override
    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            self._progress.stop()
            self._console.print(
                f"features computed in {time.monotonic() - self._began:.1f} s, {self._speed():.0f} images/s"
            )

    @override
    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._progress.stop()

    def _speed(self) -> float:
        return self._done / max(time.monotonic() - self._began, 1e-9)


def _replacing(build: Callable[[], FeatureCache], folder: Path) -> FeatureCache:
    """Build, in place of what does not fit."""
    try:
        return build()
    except (CacheMismatchError, CacheError) as error:
        if not is_first_process() or isinstance(error, CacheInUseError):
            raise
        delete_cache(folder)
        return build()


def _announce(builder: CacheBuilder, dataset: CacheableData, console: Console) -> None:
    needed, free = builder.disk
    total = len(dataset) * builder.manifest.row_bytes
    rest = "" if needed == total else f" of {format_bytes(total)}"
    console.print(
        f"features of {len(dataset)} images go to {escape(str(builder.folder))}: {format_bytes(needed)}{rest} to write,"
        f" {format_bytes(free)} free",
        soft_wrap=True,
        highlight=False,
    )


def _as_begun(folder: Path, execution: Execution) -> Execution:
    """The precision that a build in this folder began in; features of two precisions are not mixed."""
    if not (folder / MANIFEST_FILE).exists():
        return execution
    begun = Manifest.read(folder).computed_in
    return execution._replace(precision=begun) if begun in PRECISIONS else execution


def _reason_against(epochs: int, images: RunImages) -> str | None:
    if images.transform is not None:
        return "training images pass through a transform, and may be others in every epoch"
    if images.dataset.is_random:
        return "the data set gives other images whenever it is read"
    if epochs == 1:
        return "there is only one"
    return None
