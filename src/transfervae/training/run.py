"""One training run, from a model and a data set to figures and pictures."""

import math
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias
from uuid import uuid4

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping
from pytorch_lightning.loggers import Logger
from rich.console import Console
from torchmetrics import Metric, MetricCollection

from transfervae.build import AnySpec, build_vae, check_backbone
from transfervae.cache import DTYPES, FeatureCache
from transfervae.data import ImageDataset, ToyFaces, open_dataset
from transfervae.errors import UnknownNameError, UnknownOptionError
from transfervae.evaluation import Evidence, judge
from transfervae.files import write_atomically, write_json
from transfervae.heads import HEADS
from transfervae.metrics import (
    DEFAULT_METRICS,
    METRICS,
    AnyMetric,
    baseline_of,
    compute_metrics,
    make_metrics,
    mean_image,
)
from transfervae.model import TransferVAE
from transfervae.objectives import Objective
from transfervae.options import Spec, plain
from transfervae.pictures import write_architecture, write_history, write_reconstructions, write_samples
from transfervae.progress import progress_bar
from transfervae.saving import OWN, describe_part
from transfervae.shapes import check_positive, check_seed, parse_image_size
from transfervae.training._announce import choose_auto_backbone, describe_backbone_of, describe_images
from transfervae.training._caching import build_cache, keep_features, open_cache
from transfervae.training._checkpoint_io import SafetensorsIO
from transfervae.training._checkpoints import RunCheckpoints, restore_best_model
from transfervae.training._checks import check_given, check_outside, check_samples, checked_folder, set_checkpointing
from transfervae.training._choose_execution import choose_run_execution
from transfervae.training._config import (
    MODEL_KEYS,
    RunConfig,
    describe_data,
    describe_loggers,
    describe_metrics,
    describe_model,
    describe_objective,
    make_group,
)
from transfervae.training._images import RunImages, Transform
from transfervae.training._initial import freeze as freeze_parts
from transfervae.training._initial import (
    load_initial_model,
    load_initial_objective,
    read_model_options,
)
from transfervae.training._progress import ProgressDisplay
from transfervae.training._run_folder import Monitor, RunFolder, RunRecorder, choose_monitor
from transfervae.training.engine import is_first_process, make_trainer, quiet_engine, run_interruptibly
from transfervae.training.loggers import RunLogger, make_logger
from transfervae.training.module import VAEModule
from transfervae.training.options import AUTO, OFF, DataOptions, EngineOptions, OptimizerOptions
from transfervae.training.recipes import choose_recipe, part_of, read_recipe

EXAMPLES = 8
DEFAULT_EPOCHS = 5
JUDGED = ("rmse", "chroma", "active_units")
"""Metrics that verdicts are made from, beside the run's own."""

MEAN_IMAGE_SAMPLE = 10_000
"""Largest number of training images in the mean image."""

SCALING_SAMPLE = 512
"""Number of training images, or a batch if that is more, that set the scale of the latents for priors that need it."""

AnyObjective: TypeAlias = Objective | str | Sequence[Any] | Mapping[str, Any]
AnyModel: TypeAlias = TransferVAE | AnySpec


@dataclass(frozen=True)
class TrainResult:
    """What came out of a run.

    Attributes:
        vae: The model of the best epoch, in evaluation mode, on the CPU (on other processes than the first: of the
            last epoch).
        rows: One mapping of figures an epoch, in the run's precision.
        best: The row of the best epoch; its metrics are those of the saved model, computed once more from the images,
            in full precision.
        mean_image_rmse: Held-out RMSE of predicting the mean training image; NaN on processes other than the first.
        verdicts: What is wrong with the model, in plain sentences; mostly empty.
        folder: The run's folder.
    """

    vae: TransferVAE
    rows: list[dict[str, float]]
    best: dict[str, float]
    mean_image_rmse: float
    verdicts: list[str]
    folder: Path


@dataclass(frozen=True)
class _Run:
    """A run's parts, ready to train."""

    vae: TransferVAE
    objective: Objective
    metrics: MetricCollection
    monitor: Monitor
    images: RunImages
    config: RunConfig
    folder: RunFolder
    loggers: Sequence[RunLogger]
    callbacks: Sequence[pl.Callback]
    console: Console
    run_id: str

    def own_parts(self) -> dict[str, Any]:
        """Parts of the model that no table builds again, by kind; the saved model is read with them."""
        described = describe_model(self.vae)
        kinds = ("head", "decoder", "prior")
        return {kind: getattr(self.vae, kind) for kind in kinds if described[kind]["name"].startswith(OWN)}


def train(
    vae: AnyModel | None = None,
    data: Any = None,
    *,
    out: str | os.PathLike[str],
    objective: AnyObjective | None = None,
    metrics: Sequence[AnyMetric] = DEFAULT_METRICS,
    monitor: str | None = None,
    epochs: int | None = None,
    patience: int | None = None,
    seed: int = 0,
    recipe: str | None = None,
    init_from: str | os.PathLike[str] | None = None,
    freeze: Sequence[str] = (),
    val_data: Any = None,
    dataset: DataOptions | Mapping[str, Any] | None = None,
    optimizer: OptimizerOptions | Mapping[str, Any] | None = None,
    engine: EngineOptions | Mapping[str, Any] | None = None,
    callbacks: Sequence[pl.Callback] = (),
    loggers: Sequence[str | Logger] = (),
    transform: Transform | None = None,
    resume: bool = False,
    console: Console | None = None,
) -> TrainResult:
    """Train a model and leave everything about it in a folder.

    The folder gets `config.json`, `metrics.csv`, `result.json`, `val_images.txt`, `history.png`, `architecture.png`,
    `reconstructions.png`, `samples.png`, `model/` (the best epoch, for `TransferVAE.from_pretrained`) and
    `checkpoints/`. Each file is written aside and renamed, so that a run that is killed leaves whole files and can be
    resumed from its last full epoch; on the CPU the result is then the same, bit for bit, as without the interruption.

    Args:
        vae: The model; or what `build_vae` makes one of: a backbone's name, or a mapping with any of `backbone`,
            `image_size`, `head`, `decoder` and `prior`. None for the model of `init_from`, or the recipe's.
        data: A folder, or several; a tensor or array `[n, 3, h, w]`; any map-style data set of images, with labels or
            without; None for drawn faces.
        out: The run's folder.
        objective: What is minimised, as `Objective.parse` reads it; the recipe's if None.
        metrics: What is computed on held-out images, as `make_metrics` reads it.
        monitor: What tells the best epoch: "loss", one of the metrics, or "epoch" for the last one; "loss" if None, but
            "epoch" where a term such as a discriminator learns beside the model, whose loss says little.
        epochs: Passes over the training images; the recipe's, or 5, if None.
        patience: Epochs without a better one after which the run ends; None for no early end.
        seed: Of the split, the weights, the order and the draws.
        recipe: Defaults of backbone, head, decoder, objective and optimizer, a name from `RECIPES`. If None, "sharp",
            or "vector" for a head whose latents are vectors.
        init_from: Folder of a saved model, or of the run that saved it, whose weights are trained on; those of a
            discriminator are taken over too.
        freeze: Parts that are not trained: "head", which keeps the latent space, or "decoder".
        val_data: Held-out images, in any form that `data` takes; a fraction of `data` if None.
        dataset: How the data set is read and split.
        optimizer: How head, decoder and terms are optimised, above the recipe's options.
        engine: Devices, precision, cache and so on.
        callbacks: Lightning callbacks beside the run's own.
        loggers: "tensorboard", "wandb" (offline), or loggers of Lightning.
        transform: What training images `[3, h, w]`, uint8, pass through whenever they are read, such as random
            transforms of torchvision; it leaves their shape. Features are not cached then. It is not recorded: give it
            again to resume.
        resume: Continue the run in `out`; everything must be its own, but for more epochs, engine and loggers.
        console: Where to print; nothing is printed if None.

    Returns:
        The best model and the figures.

    Raises:
        RunFolderError: If `out` holds another run, or none to resume, or one with other options.
        ImageFileError: If images cannot be read.
        InvalidOptionError: If the engine cannot do what it is asked to, or parts do not fit the model of `init_from`.
        CheckpointError: If there is no model in `init_from`, or its discriminator is another than this run's.
        CacheError: If the feature cache that the engine is to read is missing, incomplete or damaged.
        CacheMismatchError: If it belongs to another backbone, size or data set.
        DivergedError: If the objective is no longer finite.
        FileWriteError: If a file cannot be written, for example because the disk is full.
    """
    check_positive(patience=1 if patience is None else patience)
    check_seed(seed)
    check_given(callbacks, loggers, transform, monitor)
    console = console or Console(quiet=True)
    folder = RunFolder(checked_folder(out))
    for images_of in (data, val_data):
        check_outside(folder.root, images_of)
    if resume:
        folder.check_resumable()
    elif is_first_process():
        folder.check_free()
    began = folder.read_config() if resume else {}
    vae = read_model_options(init_from) if vae is None and init_from is not None else vae or {}
    defaults = _read_defaults(recipe, vae, console)
    epochs = defaults.get("epochs", DEFAULT_EPOCHS) if epochs is None else epochs
    check_positive(epochs=epochs)
    made_metrics = make_metrics(metrics)
    groups = {
        "dataset": make_group(DataOptions, _beneath(defaults.get("dataset"), dataset)),
        "optimizer": make_group(OptimizerOptions, _beneath(defaults["optimizer"], optimizer)),
        "engine": make_group(EngineOptions, began.get("engine") if resume and engine is None else engine),
    }
    torch.manual_seed(seed)  # terms may have weights
    chosen = Objective.parse(defaults["objective"] if objective is None else objective)
    which = choose_monitor(monitor, chosen, made_metrics, patience)
    made_loggers = [make_logger(logger, folder.root) for logger in loggers]
    model = vae if isinstance(vae, TransferVAE) else _model_arguments(vae, defaults)
    model = model if isinstance(model, TransferVAE) else choose_auto_backbone(model, console)
    opened, opened_val = _open_data(data, val_data, model, groups["dataset"], groups["engine"], seed, console)
    torch.manual_seed(seed)
    built = model if isinstance(model, TransferVAE) else build_vae(**model)
    if init_from is not None and not (resume and folder.last.exists()):
        built = load_initial_model(built, init_from)
    freeze_parts(built, freeze)
    set_checkpointing(built, enabled=groups["engine"].gradient_checkpointing)
    config = RunConfig(
        data=describe_data(data),
        val_data=describe_data(val_data),
        **describe_model(built),
        objective=describe_objective(chosen),
        metrics=describe_metrics(made_metrics),
        monitor=which.name,
        init_from=None if init_from is None else os.path.abspath(init_from),  # noqa: PTH100 - links stay
        freeze=list(freeze),
        epochs=epochs,
        patience=patience,
        seed=seed,
        loggers=describe_loggers(loggers),
        **groups,
    )
    check_samples(built)
    if resume:
        config.check_same(began, folder.root)
        if folder.last.exists():
            SafetensorsIO().load_checkpoint(folder.last)  # a damaged one is refused before anything is written
    images = RunImages(
        opened,
        val=opened_val if opened_val is not None else groups["dataset"].val,
        batch_size=groups["dataset"].batch_size,
        seed=seed,
        flips=groups["dataset"].flips,
        workers=groups["dataset"].workers,
        transform=transform,
    )
    if getattr(built.prior, "is_scaled", False) and built.scaling is None:
        count = max(1, SCALING_SAMPLE // groups["dataset"].batch_size)
        built.fit_scaling(islice(images.batches(images.training), count))
    run_id = str(began.get("run_id") or folder.begun_id() or uuid4().hex)
    run = _Run(built, chosen, made_metrics, which, images, config, folder, made_loggers, callbacks, console, run_id)
    return _carry_out(run, resume=resume)


def cache_features(
    backbone: AnySpec,
    data: Any,
    out: str | os.PathLike[str],
    *,
    image_size: int | str | Sequence[int] = 128,
    dtype: str = "float16",
    recipe: str | None = None,
    dataset: DataOptions | Mapping[str, Any] | None = None,
    engine: EngineOptions | Mapping[str, Any] | None = None,
    seed: int = 0,
    console: Console | None = None,
) -> FeatureCache:
    """Compute the features that runs with these images, size and backbone need; `EngineOptions.cache` names them then.

    A build that was killed goes on where it stopped. Each process writes shards of its own.

    Args:
        backbone: Name and options.
        data: The images, in any form that `train` takes.
        out: The cache's folder.
        image_size: Height and width of the images.
        dtype: "float16" or "bfloat16".
        recipe: Of the runs that are to come: where it reads a backbone whose node is not given. As `train` chooses it,
            if None.
        dataset: How the data set is read; whether mirrored images are stored too.
        engine: Devices, precision and so on.
        seed: Of drawn faces.
        console: Where to print; nothing is printed if None.

    Returns:
        The cache.

    Raises:
        ImageFileError: If images cannot be read.
        UnknownNameError: For another `dtype` or recipe.
        CacheMismatchError: If the folder holds a cache of other features, or the images have changed.
        CacheError: If the folder holds something else, or another process is building in it.
        FeatureValueError: If features are not finite; the image is named.
        FileWriteError: If the disk is too small or full; what was written before is kept.
    """
    if dtype not in DTYPES:
        raise UnknownNameError("type to store features in", dtype, DTYPES)
    console = console or Console(quiet=True)
    reading, running = make_group(DataOptions, dataset), make_group(EngineOptions, engine)
    name, _ = choose_recipe(recipe, None)
    given = {"backbone": part_of(read_recipe(name), "backbone", backbone), "image_size": image_size}
    arguments = choose_auto_backbone(_model_arguments(given, {}), console)
    opened, _ = _open_data(data, None, arguments, reading, running, seed, console)
    vae = build_vae(**arguments)
    with quiet_engine():
        trainer = make_trainer(running, [])
        if is_first_process():
            describe_backbone_of(console, opened, vae)
        running, execution = choose_run_execution(running, vae, trainer, batch_size=reading.batch_size, console=console)
    return build_cache(
        vae.backbone,
        opened,
        out,
        dtype=dtype,
        flips=reading.flips,
        batch_size=reading.batch_size,
        execution=execution,
        engine=running,
        workers=reading.workers or 0,
        console=console,
    )


def _carry_out(run: _Run, *, resume: bool) -> TrainResult:
    folder, console, vae, images = run.folder, run.console, run.vae, run.images
    engine, batch_size = run.config.engine, run.config.dataset.batch_size
    examples = images.examples(EXAMPLES)
    recorder = RunRecorder(folder, examples, epochs=run.config.epochs, monitor=run.monitor, loggers=run.loggers)
    with ExitStack() as held:
        held.enter_context(quiet_engine())
        trainer = _make_trainer(run, recorder)
        images.check_ranks(trainer.world_size)
        if is_first_process():
            held.enter_context(folder.locked())
            _check_claim(folder, images, resume=resume)
            describe_images(console, images, vae)
        cache = None
        if engine.cache not in {AUTO, OFF}:
            cache = open_cache(engine.cache, images, vae.backbone, console)
        engine, execution = choose_run_execution(engine, vae, trainer, batch_size=batch_size, console=console)
        if is_first_process():
            if resume:  # what is recorded changes only once the old state has been taken over
                recorder.when_training = partial(_write_config, run, engine)
            else:
                _write_config(run, engine)
            write_architecture(folder.architecture, vae)
        if engine.cache == AUTO:
            cache = keep_features(
                engine,
                images,
                vae,
                folder.features,
                epochs=run.config.epochs,
                execution=execution,
                owner=run.run_id,
                world_size=trainer.world_size,
                console=console,
            )
        module = VAEModule(
            vae,
            run.objective,
            run.metrics,
            optimizer=run.config.optimizer,
            seed=run.config.seed,
            execution=execution,
            compiled=engine.compile,
        )
        checkpoint = str(folder.last) if resume and folder.last.exists() else None
        if run.config.init_from is not None and checkpoint is None:
            load_initial_objective(run.objective, run.config.init_from)
        if checkpoint and is_first_process():
            restore_best_model(module, folder, run.monitor)
        source = images if cache is None else images.with_cache(cache)
        run_interruptibly(trainer, lambda: trainer.fit(module, datamodule=source, ckpt_path=checkpoint))
        if not is_first_process():
            return TrainResult(vae, recorder.rows, recorder.best, float("nan"), [], folder.root)
        return _finalize(run, recorder, trainer.strategy.root_device)


def _model_arguments(given: AnySpec, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `build_vae` for a backbone's name or spec, or a mapping of such arguments."""
    is_model = isinstance(given, Mapping) and "name" not in given
    arguments = dict(given) if is_model and isinstance(given, Mapping) else {"backbone": given}
    for name in arguments:
        if name not in (*MODEL_KEYS, "latent_dim"):
            raise UnknownOptionError("The model", name, MODEL_KEYS)
    parts = ("backbone", "head", "decoder") if defaults else ()
    chosen = arguments | {name: part_of(defaults, name, arguments.get(name)) for name in parts}
    chosen["backbone"] = check_backbone(chosen["backbone"])
    return {name: value for name, value in chosen.items() if value is not None}


def _read_defaults(recipe: str | None, model: AnyModel, console: Console) -> Mapping[str, Any]:
    """The defaults of the recipe that is named or chosen; a choice is said."""
    name, why = choose_recipe(recipe, _head_of(model))
    if why and is_first_process():
        console.print(f"recipe {name}: {why}", highlight=False)
    return read_recipe(name)


def _beneath(defaults: Mapping[str, Any] | None, given: Any) -> Any:
    """A recipe's options beneath those that are given."""
    if defaults is None or not isinstance(given, Mapping | None):
        return given
    return {**defaults, **(given or {})}


def _head_of(model: AnyModel) -> str | None:
    """The name of the head of a model, or of its description; None if that leaves it open."""
    if isinstance(model, TransferVAE):
        name: str = describe_part(HEADS, model.head)["name"]
        return name if len(model.latent_shape) > 1 else "gaussian"
    if isinstance(model, Mapping) and model.get("head") is not None:
        return Spec.parse(model["head"], "head").name
    return None


def _open_data(
    data: Any,
    val_data: Any,
    model: TransferVAE | Mapping[str, Any],
    options: DataOptions,
    engine: EngineOptions,
    seed: int,
    console: Console,
) -> tuple[ImageDataset, ImageDataset | None]:
    size = model.image_size if isinstance(model, TransferVAE) else parse_image_size(model.get("image_size", 128))
    if data is None:
        data = ToyFaces(options.faces, size, seed=seed, dtype=torch.uint8)
    verify = engine.cache in {AUTO, OFF}
    with progress_bar(console, "reading images") as progress:
        opened = open_dataset(data, size, verify=verify, skip_bad=options.skip_bad, progress=progress)
        if val_data is None:
            return opened, None
        return opened, open_dataset(val_data, size, verify=verify, skip_bad=options.skip_bad, progress=progress)


def _make_trainer(run: _Run, recorder: RunRecorder) -> pl.Trainer:
    callbacks = [recorder, ProgressDisplay(run.console, recorder), *run.callbacks, RunCheckpoints(run.folder, recorder)]
    if run.config.patience is not None:
        callbacks.append(
            EarlyStopping(
                run.monitor.name, mode=run.monitor.mode, patience=run.config.patience, check_on_train_epoch_end=True
            )
        )
    return make_trainer(
        run.config.engine,
        callbacks,
        max_epochs=run.config.epochs,
        plugins=[SafetensorsIO()],
        loggers=[entry.logger for entry in run.loggers],
        has_own_optimizers=bool(run.objective.terms_with_optimizer()),
    )


def _check_claim(folder: RunFolder, images: RunImages, *, resume: bool) -> None:
    if resume:
        folder.check_images(images.images_id)
    else:
        folder.check_free()
    folder.clean()


def _write_config(run: _Run, engine: EngineOptions) -> None:
    config = run.config.to_dict() | {
        "engine": plain(asdict(engine)),
        "images": run.images.images_id,
        "run_id": run.run_id,
        "versions": {name: version(name) for name in ("transfervae", "torch", "timm", "pytorch-lightning")},
    }
    write_json(run.folder.config, config)
    names = "".join(f"{name}\n" for name in run.images.val_names())
    write_atomically(run.folder.val_images, names.encode(errors="surrogateescape"))


def _finalize(run: _Run, recorder: RunRecorder, device: torch.device) -> TrainResult:
    """Pictures and figures of the model as it was saved: from images, in full precision."""
    folder, images = run.folder, run.images
    best = TransferVAE.from_pretrained(folder.model, backbone=run.vae.backbone.cpu(), **run.own_parts())
    own: dict[str, Metric] = {str(name): metric for name, metric in run.metrics.items()}
    added = {name: METRICS.build(name) for name in JUDGED if name not in own}
    values = compute_metrics(best.to(device), images.batches(images.val), metrics=make_metrics({**own, **added}))
    figures = {name: values[name] for name in own}
    write_history(folder.history, recorder.rows)
    write_reconstructions(folder.reconstructions, best.cpu(), images.examples(EXAMPLES))
    write_samples(folder.samples, best, seed=run.config.seed)
    batches = max(1, MEAN_IMAGE_SAMPLE // run.config.dataset.batch_size)
    mean = mean_image(islice(images.batches(images.training), batches))
    baseline = baseline_of(mean, images.batches(images.val))
    evidence = Evidence(
        figures=values,
        baseline=baseline._asdict(),
        latent_size=math.prod(best.latent_shape),
        is_gaussian="logvar" in best.encode_features(torch.zeros(1, *best.feature_shape)).moments(),
        has_pretrained_backbone=best.backbone.provenance.weights is not None,
        rows=recorder.rows,
        monitor=run.monitor.name if run.monitor.mode == "min" else "val/loss",
    )
    verdicts = judge(evidence)
    row = {**recorder.best, **{f"val/{name}": value for name, value in figures.items()}}
    result = {
        "epoch": row["epoch"],
        "monitor": run.monitor.name,
        "metrics": figures,
        "mean_image_rmse": baseline.rmse,
        "verdicts": verdicts,
        "val_images_sha256": images.val_digest(),
        "latent_size": math.prod(best.latent_shape),
        "images_per_second": row["images_per_second"],
    }
    write_json(folder.result, result)
    return TrainResult(best, recorder.rows, row, baseline.rmse, verdicts, folder.root)
