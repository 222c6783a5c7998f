"""Several models, trained and measured under one protocol."""

import csv
import hashlib
import io
import json
import os
import re
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape

from transfervae.cache.manifest import MANIFEST_FILE
from transfervae.data import SelectedImages, ToyFaces, open_dataset
from transfervae.decoders import DECODERS
from transfervae.errors import CheckpointError, InvalidOptionError, RunFolderError, UnknownOptionError
from transfervae.evaluation import REPORTED, evaluate, write_report
from transfervae.evaluation.parts import face_masks
from transfervae.files import held, read_json, write_atomically, write_json
from transfervae.heads import HEADS
from transfervae.metrics import AnyMetric, make_metrics
from transfervae.model import TransferVAE
from transfervae.objectives import Objective
from transfervae.options import Spec, options_of, plain
from transfervae.pictures import write_grid, write_quality
from transfervae.shapes import check_positive, parse_image_size, unit_images
from transfervae.training._checks import check_outside
from transfervae.training._config import make_group
from transfervae.training._images import RunImages
from transfervae.training.held_out import history_of
from transfervae.training.options import DataOptions, EngineOptions
from transfervae.training.recipes import choose_recipe, part_of, read_recipe
from transfervae.training.run import cache_features, train

SHOWN = 8
ROW = "row.json"
FILES = ("comparison.json", "comparison.csv", "quality.png", "sheet.png")
TAKEN = ("out", "resume", "console", "seed", "callbacks", "transform", "val_data")
"""Arguments of `train` that a comparison gives itself, or that no configuration can record."""

NAME = re.compile(r"[\w.,@:+-]+")


@dataclass(frozen=True)
class Row:
    """One model of a comparison, with one seed.

    Attributes:
        name: The configuration's name.
        seed: Of split, weights and order.
        figures: Metrics on the held-out images.
        baseline: RMSE of the mean image.
        seconds: Of training alone, and of its last part if it was interrupted; features were computed before.
        feature_seconds: Of computing its features, once for all runs that share them.
        parameters: Trained numbers.
        cache_bytes: Size of the features' folder.
    """

    name: str
    seed: int
    figures: dict[str, float]
    baseline: float
    seconds: float
    feature_seconds: float
    parameters: int
    cache_bytes: int


@dataclass(frozen=True)
class Comparison:
    """What a comparison found.

    Attributes:
        rows: One per configuration and seed.
        saved_seconds: Seconds that shared features saved.
        folder: Where everything is.
    """

    rows: Sequence[Row]
    saved_seconds: float
    folder: Path

    def summary(self) -> dict[str, dict[str, tuple[float, float]]]:
        """By configuration, mean and standard deviation over seeds of every figure, the seconds among them."""
        found: dict[str, dict[str, tuple[float, float]]] = {}
        for name in dict.fromkeys(row.name for row in self.rows):
            rows = [row for row in self.rows if row.name == name]
            columns = {figure: [row.figures[figure] for row in rows] for figure in rows[0].figures}
            columns |= {
                "seconds": [row.seconds for row in rows],
                "parameters": [row.parameters for row in rows],
                "cache_megabytes": [row.cache_bytes / 1e6 for row in rows],
            }
            found[name] = {
                figure: (statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0)
                for figure, values in columns.items()
            }
        return found


def compare(
    configurations: Mapping[str, Mapping[str, Any]],
    data: Any = None,
    *,
    out: str | os.PathLike[str],
    seeds: int = 1,
    metrics: Sequence[AnyMetric] = REPORTED,
    parts: bool = False,
    console: Console | None = None,
) -> Comparison:
    """Train several models on the same images, measure them on the same held-out ones, and put them side by side.

    Models with the same backbone, size and reading share their features. What is done is kept: a comparison that was
    killed goes on when it is called again, and one with more configurations or seeds computes only those.

    The folder gets a run for every configuration and seed, `comparison.json`, `comparison.csv`, `quality.png` (RMSE
    against seconds) and `sheet.png` (held-out images through all models of the first seed).

    Args:
        configurations: By name, the arguments of `train`, with the model's as `model`:
            `{"last": {"model": {"backbone": "packaged", "image_size": 64}, "epochs": 5}}`.
        data: The images, in any form that `train` takes; drawn faces if None.
        out: The folder.
        seeds: How many seeds each is trained with: 0, 1, ...; each has a split of its own.
        metrics: What is measured, as `evaluate` takes it; `rmse` in any case.
        parts: Also measure errors by part, for drawn faces: figures `removed_eyes` and so on.
        console: Where to print; nothing is printed if None.

    Returns:
        The rows.

    Raises:
        InvalidOptionError: If there is no configuration, a name that no folder can have, or models of several sizes or
            with other images held out.
        RunFolderError: If the images have changed since models were measured, or the folder holds something else.
        TransferVAEError: As `train` and `evaluate`.
    """
    check_positive(seeds=seeds)
    folder, console = Path(out), console or Console(quiet=True)
    _check_configurations(configurations)
    check_outside(folder, data)
    metrics = [*metrics] if "rmse" in make_metrics(metrics) else ["rmse", *metrics]
    splits = [_split(given, _images(data, given), seed=0) for given in configurations.values()]
    if len({tuple(split.val_names()) for split in splits}) > 1:
        raise InvalidOptionError("A comparison needs models that hold out the same images; give them one 'val'.")
    if parts:
        face_masks(splits[0].dataset)
    _check_folder(folder)
    rows: list[Row] = []
    features: dict[Path, list[float]] = {}
    with held(folder, RunFolderError(f"Another comparison is running in {str(folder)!r}.")):
        for seed in range(seeds):
            for name, given in configurations.items():
                console.print(f"[bold]{escape(name)}[/], seed {seed}", highlight=False)
                cache, seconds = _features_for(given, data, folder, console)
                features.setdefault(cache, []).append(seconds)
                trial = _Trial(name, seed, given, data, folder / "runs" / f"{name}-{seed}", cache, seconds)
                rows.append(_carry_out(trial, metrics, parts=parts, console=console))
        saved = sum(sum(uses[1:]) for uses in features.values())
        comparison = Comparison(rows, saved, folder)
        _write(comparison, data, configurations)
    return comparison


@dataclass(frozen=True)
class _Trial:
    """One configuration with one seed."""

    name: str
    seed: int
    given: Mapping[str, Any]
    data: Any
    folder: Path
    cache: Path
    feature_seconds: float


def _carry_out(trial: _Trial, metrics: Sequence[AnyMetric], *, parts: bool, console: Console) -> Row:
    """Train and measure one trial, or go on where it stopped."""
    noted = trial.folder / ROW
    for path in (trial.folder, trial.folder / "evaluation", trial.cache):
        if path.is_symlink():
            raise RunFolderError(f"{str(path)!r} is a link, and a comparison follows none; choose another folder.")
    images = _images(trial.data, trial.given)
    split = _split(trial.given, images, trial.seed)
    asked = {
        "arguments": _recorded(trial.given),
        "metrics": [str(metric) for metric in metrics],
        "parts": parts,
        "images": {**split.images_id, "held_out_sha256": split.val_digest()},
    }
    if noted.exists():
        done, row = _read_row(noted)
        if done.get("images") != asked["images"]:
            raise RunFolderError(
                f"The images have changed since {str(trial.folder)!r} was measured; choose another folder."
            )
        if done == asked:
            return row
    arguments = {name: value for name, value in trial.given.items() if name != "model"}
    arguments |= {"seed": trial.seed, "engine": {**dict(arguments.get("engine") or {}), "cache": str(trial.cache)}}
    config = trial.folder / "config.json"
    began = time.monotonic()
    train(_model_of(trial.given), images, out=trial.folder, resume=config.exists(), console=console, **arguments)
    seconds = time.monotonic() - began
    vae = TransferVAE.from_pretrained(trial.folder / "model")
    unseen = SelectedImages(split.dataset, split.val)
    masks = face_masks(unseen) if parts else None
    report = evaluate(vae, unseen, metrics=metrics, masks=masks, rows=history_of(trial.folder))
    write_report(trial.folder / "evaluation", report, vae, unseen)
    figures = {**report.figures, **{f"removed_{name}": part.removed for name, part in report.parts.items()}}
    row = Row(
        name=trial.name,
        seed=trial.seed,
        figures=figures,
        baseline=report.baseline["rmse"],
        seconds=seconds,
        feature_seconds=trial.feature_seconds,
        parameters=sum(parameter.numel() for parameter in vae.trainable_parameters()),
        cache_bytes=sum(file.stat().st_size for file in trial.cache.iterdir() if file.is_file()),
    )
    write_json(noted, {**asdict(row), "asked": asked})
    return row


def _read_row(path: Path) -> tuple[dict[str, Any], Row]:
    """Read a finished trial: its arguments, and its row.

    Raises:
        RunFolderError: If no comparison wrote the file.
    """
    try:
        values = read_json(path)
        asked = dict(values.pop("asked"))
        row = Row(**values)
        for value in (*row.figures.values(), row.seconds, row.baseline, row.feature_seconds, row.cache_bytes):
            float(value)
    except (CheckpointError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunFolderError(
            f"{str(path)!r} is not what a comparison wrote; move it away, or choose another folder."
        ) from error
    return asked, row


def _recorded(given: Mapping[str, Any]) -> Any:
    """A configuration as JSON holds it; other objects are recorded by their `repr`."""
    return json.loads(json.dumps(plain(given), default=repr))


def _check_configurations(configurations: Mapping[str, Mapping[str, Any]]) -> None:
    """Find what is wrong with configurations before anything is computed."""
    if not isinstance(configurations, Mapping) or not all(
        isinstance(given, Mapping) for given in configurations.values()
    ):
        raise InvalidOptionError("configurations must be a mapping from names to arguments of train, as mappings.")
    if not configurations:
        raise InvalidOptionError("A comparison needs at least one configuration.")
    known = {"model", *options_of(train, skip=TAKEN)}
    for name, given in configurations.items():
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise InvalidOptionError(f"A configuration cannot be named {name!r}: letters, digits and _.,@:+-")
        for option in given:
            if option not in known:
                raise UnknownOptionError(f"Configuration {name!r}", option, known)
        model, recipe = _model_of(given), read_recipe(_recipe_of(given))
        for kind, table in (("head", HEADS), ("decoder", DECODERS)):
            table.check(part_of(recipe, kind, model.get(kind)))
        Objective.parse(given.get("objective") or recipe["objective"])
        make_group(EngineOptions, given.get("engine"))
        epochs = given.get("epochs")
        check_positive(epochs=1 if epochs is None else epochs)
    sizes = {parse_image_size(_model_of(given).get("image_size", 128)) for given in configurations.values()}
    if len(sizes) != 1:
        raise InvalidOptionError(f"A comparison needs models of one image size, got {sorted(sizes)}.")


def _split(given: Mapping[str, Any], images: Any, seed: int) -> RunImages:
    """The images of a trial, split as its run splits them."""
    reading = make_group(DataOptions, given.get("dataset"))
    opened = open_dataset(images, parse_image_size(_model_of(given).get("image_size", 128)), verify=False)
    return RunImages(opened, val=reading.val, batch_size=1, seed=seed, workers=0)


def _held_out(given: Mapping[str, Any], images: Any, seed: int) -> SelectedImages:
    """The images that a trial holds out."""
    split = _split(given, images, seed)
    return SelectedImages(split.dataset, split.val)


def _check_folder(folder: Path) -> None:
    """Make sure that a comparison replaces nothing but an earlier comparison.

    Raises:
        RunFolderError: If the folder holds files by the names that a comparison writes, and no comparison; or links.
    """
    is_earlier = False
    with suppress(CheckpointError):
        is_earlier = {"configurations", "rows", "saved_seconds"} <= read_json(folder / FILES[0]).keys()
    found = [name for name in FILES if os.path.lexists(folder / name) and not is_earlier]
    found += [name for name in (*FILES, "features", "runs") if (folder / name).is_symlink()]
    if found:
        raise RunFolderError(
            f"{str(folder)!r} holds {found[0]!r}, which no comparison has left there and this one would replace; choose"
            " another folder."
        )


def _recipe_of(given: Mapping[str, Any]) -> str:
    head = _model_of(given).get("head")
    return choose_recipe(given.get("recipe"), None if head is None else Spec.parse(head, "head").name)[0]


def _model_of(given: Mapping[str, Any]) -> dict[str, Any]:
    model = given.get("model")
    if not isinstance(model, Mapping):
        raise InvalidOptionError(f"A configuration needs the model's arguments as 'model', got {model!r}.")
    return dict(model)


def _features_for(given: Mapping[str, Any], data: Any, folder: Path, console: Console) -> tuple[Path, float]:
    """The folder of a configuration's features, and the seconds that they took; computed if they are not there yet."""
    model, reading = _model_of(given), make_group(DataOptions, given.get("dataset"))
    size = list(parse_image_size(model.get("image_size", 128)))
    backbone = part_of(read_recipe(_recipe_of(given)), "backbone", model.get("backbone"))
    key: list[Any] = plain([Spec.parse(backbone, "backbone").to_dict(), size, reading.flips])
    target = folder / "features" / hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
    noted = target.with_suffix(".json")
    if noted.exists() and (target / MANIFEST_FILE).exists():
        try:
            return target, float(read_json(noted)["seconds"])
        except (CheckpointError, KeyError, TypeError, ValueError) as error:
            raise RunFolderError(f"{str(noted)!r} is not what a comparison wrote; choose another folder.") from error
    if target.is_symlink():
        raise RunFolderError(f"{str(target)!r} is a link, and a comparison follows none; choose another folder.")
    began = time.monotonic()
    engine = {**dict(given.get("engine") or {}), "cache": "auto"}
    images = _images(data, given)
    cache_features(
        backbone, images, target, image_size=size, recipe="seed", dataset=reading, engine=engine, console=console
    )
    seconds = time.monotonic() - began
    write_json(noted, {"seconds": seconds, "features": key})
    return target, seconds


def _images(data: Any, given: Mapping[str, Any]) -> Any:
    if data is not None:
        return data
    reading = make_group(DataOptions, given.get("dataset"))
    return ToyFaces(reading.faces, _model_of(given).get("image_size", 128), dtype=torch.uint8)


def _write(comparison: Comparison, data: Any, configurations: Mapping[str, Mapping[str, Any]]) -> None:
    folder, summary = comparison.folder, comparison.summary()
    write_json(
        folder / "comparison.json",
        {
            "configurations": {name: _recorded(given) for name, given in configurations.items()},
            "summary": {
                name: {figure: {"mean": mean, "std": std} for figure, (mean, std) in figures.items()}
                for name, figures in summary.items()
            },
            "rows": [asdict(row) for row in comparison.rows],
            "saved_seconds": comparison.saved_seconds,
        },
    )
    columns = list(dict.fromkeys(figure for figures in summary.values() for figure in figures))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["configuration", *(f"{figure}{part}" for figure in columns for part in ("", " std"))])
    for name, figures in summary.items():
        writer.writerow([name, *(value for figure in columns for value in figures.get(figure, ("", "")))])
    write_atomically(folder / "comparison.csv", text.getvalue().encode())
    _write_sheet(comparison, data, configurations)
    write_quality(folder / "quality.png", {name: (f["seconds"][0], f["rmse"]) for name, f in summary.items()})


def _write_sheet(comparison: Comparison, data: Any, configurations: Mapping[str, Mapping[str, Any]]) -> None:
    """Held-out images of the first seed, and below them what each model makes of them."""
    first = next(iter(configurations.values()))
    unseen = _held_out(first, _images(data, first), seed=0)
    originals = unit_images(torch.stack([unseen[place] for place in range(min(SHOWN, len(unseen)))]))
    sheet = [originals]
    for name in configurations:
        vae = TransferVAE.from_pretrained(comparison.folder / "runs" / f"{name}-0" / "model")
        with torch.no_grad():
            sheet.append(vae.reconstruct(originals))
    write_grid(comparison.folder / "sheet.png", sheet)
