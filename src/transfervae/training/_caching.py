"""The feature cache of a run, and building one on the engine's devices."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from torch.distributed import is_initialized

from transfervae.backbones import FrozenBackbone
from transfervae.cache import DTYPES, CacheBuilder, FeatureCache, Manifest
from transfervae.cache._dataset import CacheableData
from transfervae.cache.builder import SPARE_BYTES, delete_cache
from transfervae.cache.manifest import MANIFEST_FILE
from transfervae.errors import (
    CacheError,
    CacheInUseError,
    CacheMismatchError,
    FeatureValueError,
    FileWriteError,
    InvalidOptionError,
)
from transfervae.execution import PRECISIONS, Execution
from transfervae.files import format_bytes
from transfervae.model import TransferVAE
from transfervae.progress import make_progress
from transfervae.ranks import on_all_ranks
from transfervae.training._images import RunImages
from transfervae.training.engine import is_first_process, make_fabric, quiet_engine
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
    owner: str,
    world_size: int,
    console: Console,
) -> FeatureCache | None:
    """Build the run's own cache; None if features are to be computed in every epoch instead, which is said.

    What the run itself has built of a cache that cannot be completed is deleted; nothing else ever is.

    Raises:
        CacheMismatchError: If the folder holds a cache of other features.
        CacheError: If it holds other files, or is a link.
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
        owner=owner,
        console=console,
    )
    if reason is None:
        try:
            return build()
        except CacheInUseError:
            raise
        except (CacheError, CacheMismatchError) as error:
            raise type(error)(f"{error} Or train with another --out, or with --engine.cache off.") from error
        except (FeatureValueError, FileWriteError) as error:
            if world_size > 1 and not is_initialized():
                raise  # the processes to come would build, and wait for this one
            reason = str(error)
            if is_first_process():
                with suppress(FileWriteError, CacheError):
                    delete_cache(folder, owner)
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
    owner: str | None = None,
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
        owner: The run that the cache is built for, and that may delete it.
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
    console = console if console and is_first_process() else Console(quiet=True)
    execution = _as_begun(Path(folder), execution or Execution())
    fabric = make_fabric(engine or EngineOptions())
    builder = CacheBuilder(
        backbone.to(memory_format=execution.torch_memory_format),
        dataset,
        Path(folder),
        dtype=DTYPES[dtype],
        flips=flips,
        batch_size=batch_size,
        autocast=execution.dtype,
        ranks=fabric.world_size,
        spare=spare,
        owner=owner,
    )
    if builder.is_whole:
        return FeatureCache(folder)
    with ExitStack() as held:
        _announce(builder, dataset, console)
        if fabric.world_size == 1:
            builder.check_disk()
        if is_first_process():
            held.enter_context(builder.holding())
        with quiet_engine():
            fabric.launch()
        on_all_ranks(builder.check_disk)
        backbone.to(fabric.device)
        with _display(console, fabric.world_size) as progress:
            on_all_ranks(lambda: builder.run(fabric.global_rank, workers=workers, progress=progress))
        on_all_ranks(builder.finish if is_first_process() else lambda: None)
    return FeatureCache(folder)


@contextmanager
def _display(console: Console, world_size: int) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, and a line at the end anywhere."""
    began, everywhere = time.monotonic(), 0

    def speed() -> str:
        return f"{everywhere / max(time.monotonic() - began, 1e-9):.0f} images/s"

    with make_progress(console) as progress:
        task = progress.add_task("features", total=None, figures="")

        def show(done: int, total: int) -> None:
            nonlocal everywhere
            everywhere = done * world_size  # each process has about as many
            progress.update(task, completed=done, total=total, figures=speed())

        yield show
    console.print(f"features computed in {time.monotonic() - began:.1f} s, {speed()}")


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
