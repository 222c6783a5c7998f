"""One training run from options to pictures."""

import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from typing_extensions import override

from transfervae.backbones import license_remark
from transfervae.backbones.vgg import fetch_vgg19_weights
from transfervae.cache import DTYPES, FeatureCache
from transfervae.checkpoint import write_json
from transfervae.errors import CheckpointError, RunFolderError, UnknownNameError, WeightsUnavailableError
from transfervae.evaluation import evaluate, mean_image_rmse
from transfervae.heads import DeterministicHead
from transfervae.model import TransferVAE, build_vae
from transfervae.pictures import write_architecture, write_reconstructions, write_samples
from transfervae.training.caching import OFF, build_cache, keep_features, open_cache
from transfervae.training.checkpoint_io import SafetensorsIO
from transfervae.training.engine import is_first_process, make_trainer, quiet_engine, run_interruptibly
from transfervae.training.images import RunImages, Transform
from transfervae.training.module import VAEModule
from transfervae.training.options import AUTO, EngineOptions, TrainOptions
from transfervae.training.progress import ProgressDisplay
from transfervae.training.run_folder import MONITORED, RunFolder, RunRecorder
from transfervae.training.settling import settle_execution

EXAMPLES = 8
MEAN_IMAGE_SAMPLE = 10_000
"""At most so many training images make the mean image."""

SCALING_SAMPLE = 512
"""So many training images, or a batch if that is more, give the scaling of latents that have no prior."""


@dataclass(frozen=True)
class TrainResult:
    """What came out of a run.

    Attributes:
        vae: The model of the best epoch, in evaluation mode, on the CPU (on other processes than the first: of the
            last epoch).
        rows: One mapping of figures an epoch, in the run's precision.
        best: The row of the best epoch, the lowest held-out objective; RMSE, KL and active units are those of the saved
            model, computed once more from the images, in full precision.
        mean_image_rmse: Held-out RMSE of predicting the mean training image; NaN on processes other than the first.
    """

    vae: TransferVAE
    rows: list[dict[str, float]]
    best: dict[str, float]
    mean_image_rmse: float


def train(
    options: TrainOptions,
    out: str | os.PathLike[str],
    *,
    engine: EngineOptions | None = None,
    resume: bool = False,
    transform: Transform | None = None,
    console: Console | None = None,
) -> TrainResult:
    """Train a model and leave everything about it in a folder.

    The folder gets `config.json`, `metrics.csv`, `result.json`, `history.png`, `architecture.png`,
    `reconstructions.png`, `samples.png`, `model/` (the best epoch, for `TransferVAE.from_pretrained`) and
    `checkpoints/`. Each file is written aside and renamed, so that a run that is killed leaves whole files and can be
    resumed from its last full epoch; on the CPU the result is then the same, bit for bit, as without the interruption.

    Args:
        options: What is learned.
        out: The run's folder.
        engine: Devices, precision and so on; if None the defaults, or those that a resumed run began with.
        resume: Continue the run in `out`; `options` must be its own, but for more epochs.
        transform: What training images `[3, h, w]`, uint8, pass through whenever they are read, such as random
            transforms of torchvision; it leaves their shape. Features are not cached then. It is not recorded: give it
            again to resume.
        console: Where to print; nothing is printed if None.

    Returns:
        The best model and the figures.

    Raises:
        RunFolderError: If `out` holds another run, or none to resume, or one with other options.
        ImageFileError: If images cannot be read.
        InvalidOptionError: If the engine cannot do what it is asked to.
        CacheError: If the feature cache that the engine is to read is missing, incomplete or damaged.
        CacheMismatchError: If it belongs to another backbone, size or data set.
        DivergedError: If the objective is no longer finite.
        FileWriteError: If a file cannot be written, for example because the disk is full.
    """
    console = console or Console(quiet=True)
    folder = RunFolder(Path(out))
    if engine is None:
        engine = read_engine(out) if resume else EngineOptions()
    if resume:
        _check_same(options, folder)
    elif is_first_process():
        folder.check_free()
    options = _settle_backbone(options, console)
    with _reading_display(console) as progress:
        verify = engine.cache in {AUTO, OFF}
        images = RunImages(options, workers=engine.workers, transform=transform, verify=verify, progress=progress)
    torch.manual_seed(options.seed)
    vae = build(options)
    if isinstance(vae.head, DeterministicHead):
        vae.fit_scaling(islice(images.batches(images.training), max(1, SCALING_SAMPLE // options.batch_size)))
    recorder = RunRecorder(folder, images.examples(EXAMPLES), epochs=options.epochs)
    with ExitStack() as held:
        held.enter_context(quiet_engine())
        trainer = _make_trainer(options, engine, folder, [recorder, ProgressDisplay(console, recorder)])
        images.check_ranks(trainer.world_size)
        if is_first_process():
            held.enter_context(folder.locked())
            _check_claim(folder, images, resume=resume)
            _describe(console, images, vae)
        if engine.cache not in {AUTO, OFF}:
            images.cache = open_cache(engine.cache, options, images, vae, console)
        engine, execution = settle_execution(engine, vae, trainer, batch_size=options.batch_size, console=console)
        if is_first_process():
            _claim(folder, options, engine, images)
            write_architecture(folder.architecture, vae)
        if engine.cache == AUTO:
            images.cache = keep_features(
                engine,
                options,
                images,
                vae,
                folder,
                execution=execution,
                is_resumed=resume,
                world_size=trainer.world_size,
                console=console,
            )
        checkpoint = str(folder.last) if resume and folder.last.exists() else None
        module = VAEModule(vae, options, execution=execution, compiled=engine.compile)
        run_interruptibly(trainer, lambda: trainer.fit(module, datamodule=images, ckpt_path=checkpoint))
        if not is_first_process():
            return TrainResult(vae, recorder.rows, recorder.best, float("nan"))
        return _conclude(vae, images, recorder, folder, options, trainer.strategy.root_device)


def cache_features(
    options: TrainOptions,
    out: str | os.PathLike[str],
    *,
    dtype: str = "float16",
    engine: EngineOptions | None = None,
    console: Console | None = None,
) -> FeatureCache:
    """Compute the features that runs with these images, size and backbone need; `EngineOptions.cache` names them then.

    A build that was killed goes on where it stopped. Each process writes shards of its own.

    Args:
        options: Images, size, backbone, flips and batch size; the others make no difference.
        out: The cache's folder.
        dtype: "float16" or "bfloat16".
        engine: Devices, precision and so on.
        console: Where to print; nothing is printed if None.

    Returns:
        The cache.

    Raises:
        ImageFileError: If images cannot be read.
        UnknownNameError: For another `dtype`.
        CacheMismatchError: If the folder holds a cache of other features, or the images have changed.
        CacheError: If the folder holds something else, or another process is building in it.
        FeatureValueError: If features are not finite; the image is named.
        FileWriteError: If the disk is too small or full; what was written before is kept.
    """
    if dtype not in DTYPES:
        raise UnknownNameError("type to store features in", dtype, DTYPES)
    console, engine = console or Console(quiet=True), engine or EngineOptions()
    options = _settle_backbone(options, console)
    with _reading_display(console) as progress:
        images = RunImages(options, workers=engine.workers, progress=progress)
    vae = build(options)
    with quiet_engine():
        trainer = make_trainer(engine, [])
        if is_first_process():
            _describe_backbone(console, images, vae)
        engine, way = settle_execution(engine, vae, trainer, batch_size=options.batch_size, console=console)
    return build_cache(
        vae.backbone,
        images.dataset,
        out,
        dtype=dtype,
        flips=options.flips,
        batch_size=options.batch_size,
        execution=way,
        engine=engine,
        workers=images.workers,
        console=console,
    )


def build(options: TrainOptions) -> TransferVAE:
    """Build the model that a run's options describe.

    Raises:
        TransferVAEError: As `build_vae`.
    """
    return build_vae(
        options.backbone,
        image_size=options.image_size,
        head=options.head,
        latent_dim=options.latent_dim,
        node=options.node,
        fuse=options.fuse,
        grid=options.grid,
        norm=options.norm,
        weights=options.weights,
        decoder=options.decoder,
        width=options.width,
    )


def read_options(out: str | os.PathLike[str]) -> TrainOptions:
    """The options of the run in a folder.

    Raises:
        RunFolderError: If there is none.
        CheckpointError: If its configuration is damaged or foreign.
    """
    with _reading_config(out) as config:
        values = config["options"]
        lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        return TrainOptions(**{**values, **lists})


def read_engine(out: str | os.PathLike[str]) -> EngineOptions:
    """The engine options of the run in a folder.

    Raises:
        RunFolderError: If there is none.
        CheckpointError: If its configuration is damaged or foreign.
    """
    with _reading_config(out) as config:
        return EngineOptions(**config["engine"])


@contextmanager
def _reading_config(out: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    folder = RunFolder(Path(out))
    config = folder.read_config()
    try:
        yield config
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{str(folder.config)!r} is no configuration of a run: {error}") from error


def resumed_options(out: str | os.PathLike[str], changes: Mapping[str, Any]) -> TrainOptions:
    """The options of the run in a folder, with some of them given anew; `train` says which may differ.

    Raises:
        RunFolderError: If there is no run.
        CheckpointError: If its configuration is damaged or foreign.
        InvalidOptionError: If a new value cannot work.
    """
    before = read_options(out)
    changes = {name: value for name, value in changes.items() if (name, value) != ("backbone", "auto")}
    return replace(before, **changes)


class _RunCheckpoint(ModelCheckpoint):
    """Keeps track of the best epoch also in a run whose folder was moved."""

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict({**state_dict, "dirpath": self.dirpath})


def _make_trainer(
    options: TrainOptions, engine: EngineOptions, folder: RunFolder, callbacks: list[pl.Callback]
) -> pl.Trainer:
    checkpoint = _RunCheckpoint(
        dirpath=folder.checkpoints,
        filename="best",
        monitor=MONITORED,
        save_last=True,
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
    checkpoint.FILE_EXTENSION = ".safetensors"
    return make_trainer(engine, [*callbacks, checkpoint], max_epochs=options.epochs, plugins=[SafetensorsIO()])


def _check_claim(folder: RunFolder, images: RunImages, *, resume: bool) -> None:
    if resume and folder.read_config().get("images") != images.identity:
        raise RunFolderError(f"The images are not those that the run in {str(folder.root)!r} began with.")
    if not resume:
        folder.check_free()
    folder.clean()


def _claim(folder: RunFolder, options: TrainOptions, engine: EngineOptions, images: RunImages) -> None:
    config = {
        "options": asdict(options),
        "engine": asdict(engine),
        "images": images.identity,
        "versions": {name: version(name) for name in ("transfervae", "torch", "timm", "pytorch-lightning")},
    }
    write_json(folder.config, config)


def _check_same(options: TrainOptions, folder: RunFolder) -> None:
    before = asdict(read_options(folder.root))
    now = asdict(options)
    differing = [
        f"{name} is {now[name]!r} instead of {value!r}"
        for name, value in before.items()
        if now[name] != value and name != "epochs"
    ]
    if differing:
        raise RunFolderError(f"The run in {str(folder.root)!r} began with other options: {', '.join(differing)}.")
    if options.epochs < before["epochs"]:
        raise RunFolderError(
            f"The run in {str(folder.root)!r} has {before['epochs']} epochs; it can only be lengthened."
        )


def _conclude(
    vae: TransferVAE,
    images: RunImages,
    recorder: RunRecorder,
    folder: RunFolder,
    options: TrainOptions,
    device: torch.device,
) -> TrainResult:
    """Pictures and figures of the model as it was saved: from images, in full precision."""
    images.cache = None
    best = TransferVAE.from_pretrained(folder.model, backbone=vae.backbone.cpu())
    figures = evaluate(best.to(device), images.batches(images.held_out))
    write_reconstructions(folder.reconstructions, best.cpu(), images.examples(EXAMPLES))
    write_samples(folder.samples, best, seed=options.seed)
    batches = max(1, MEAN_IMAGE_SAMPLE // options.batch_size)
    baseline = mean_image_rmse(islice(images.batches(images.training), batches), images.batches(images.held_out))
    row = {**recorder.best, **{f"val/{name}": value for name, value in figures.items()}}
    result = {
        "epoch": row["epoch"],
        "rmse": row["val/rmse"],
        "mean_image_rmse": baseline,
        "kl": row["val/kl"],
        "active_units": row["val/active_units"],
        "latent_size": math.prod(best.latent_shape),
        "images_per_second": row["images_per_second"],
    }
    write_json(folder.result, result)
    return TrainResult(best, recorder.rows, row, baseline)


def _settle_backbone(options: TrainOptions, console: Console) -> TrainOptions:
    """Replace auto by vgg19, or by packaged where vgg19's weights cannot be fetched."""
    if options.backbone != "auto":
        return options
    if options.weights == "default":
        try:
            fetch_vgg19_weights()
        except WeightsUnavailableError as error:
            console.print(f"[yellow]{escape(str(error))}[/]", soft_wrap=True, highlight=False)
            console.print("[yellow]This run uses the backbone 'packaged' (EfficientNet-Lite0, ImageNet) instead.[/]")
            return replace(options, backbone="packaged")
    return replace(options, backbone="vgg19")


@contextmanager
def _reading_display(console: Console) -> Iterator[Callable[[int, int], None]]:
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("reading images", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _describe(console: Console, images: RunImages, vae: TransferVAE) -> None:
    skipped = f" ({len(images.bad)} unreadable files skipped)" if images.bad else ""
    console.print(f"{len(images.training)} images to train on, {len(images.held_out)} held out{skipped}")
    _describe_backbone(console, images, vae)


def _describe_backbone(console: Console, images: RunImages, vae: TransferVAE) -> None:
    for reason in images.bad.values():
        console.print(f"[yellow]skipped:[/] {escape(reason)}", soft_wrap=True, highlight=False)
    source = vae.backbone.source
    console.print(f"backbone {source.name} at {source.place}, licence of its weights: {_name_license(source.license)}")
    if source.weights is None:
        message = f"[yellow]warning:[/] {source.name} is not pretrained: its weights are random (weights none)"
        console.print(message, soft_wrap=True)


def _name_license(name: str | None) -> str:
    remark = license_remark(name)
    return (name or "none") + (f" [yellow]({remark})[/]" if remark and remark != name else "")
