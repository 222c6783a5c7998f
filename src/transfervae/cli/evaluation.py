"""Commands that measure models: evaluate, and compare."""

import json
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from transfervae.cli.app import INTERRUPTED, app, readable, say, screen
from transfervae.cli.arguments import Device, SkipBad, Weights
from transfervae.cli.declared import read_file
from transfervae.cli.images import load
from transfervae.data import open_dataset
from transfervae.errors import InvalidOptionError, RunFolderError
from transfervae.options import Spec
from transfervae.progress import progress_bar

COMPARED = "Measured alike"


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(help="A run's folder, or a model's; with --compare a report or its folder.")],
    data: Annotated[
        list[Path] | None,
        typer.Argument(help="Image files, or folders of them; of a run, those that it held out if none are given."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the report; evaluation in the model's folder if none.")
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(help="What to measure: rmse,psnr,lpips or with options [rmse, {name: lpips, network: vgg}]."),
    ] = None,
    extractor: Annotated[
        str | None, typer.Option(help="Also distances of features (fd, kd), by this backbone: packaged, timm:NAME, …")
    ] = None,
    likelihood: Annotated[
        int | None,
        typer.Option(help="Also the negative log-likelihood, from this number of draws per image."),
    ] = None,
    latents: Annotated[
        bool, typer.Option("--latents", help="Also what latents tell: classes (folders), mutual information, factors.")
    ] = False,
    parts: Annotated[bool, typer.Option("--parts", help="Errors by part of the face; for drawn faces.")] = False,
    compare_reports: Annotated[
        bool, typer.Option("--compare", help="Put reports (report.json) side by side, if they were measured alike.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures and the protocol as JSON.")] = False,
    batch_size: Annotated[int, typer.Option(help="Images computed at once.")] = 32,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    skip_bad: SkipBad = False,
    weights: Weights = None,
    device: Device = "cpu",
    devices: Annotated[int, typer.Option(help="How many of them; the images are shared out.")] = 1,
) -> None:
    """Measure a model on images, and write a report: JSON, one HTML page that opens offline, and its pictures.

    Example: transfervae evaluate runs/faces    or: transfervae evaluate runs/faces other-photos --extractor packaged
    """
    if compare_reports:
        _compare([model, *(data or [])], as_json=as_json)
        return
    from transfervae.evaluation import REPORTED, write_report
    from transfervae.evaluation import evaluate as measure
    from transfervae.evaluation.parts import face_masks
    from transfervae.evaluation.sheet import check_report_folder

    folder = out or model / "evaluation"
    if out is None and folder.is_symlink():
        raise InvalidOptionError(f"{str(folder)!r} is a link; say with --out where the report goes.")
    check_report_folder(folder)
    wanted: list[Any] = list(REPORTED) if metrics is None else parse_metrics(metrics)
    if extractor is not None:
        wanted += [{"name": name, "extractor": extractor} for name in ("fd", "kd")]
    device, is_first = _start_processes(device, devices)
    console = Console(stderr=True, quiet=not is_first) if as_json else Console(quiet=not is_first)
    vae = load(model, weights, device)
    images, rows = _open(model, data, vae.image_size, skip_bad=skip_bad)
    with progress_bar(console, "evaluating") as progress:
        report = measure(
            vae,
            images,
            metrics=wanted,
            masks=face_masks(images) if parts else None,
            likelihood_draws=likelihood,
            latents=latents,
            rows=rows,
            batch_size=batch_size,
            seed=seed,
            progress=progress,
        )
    if not is_first:
        return
    write_report(folder, report, vae, images)
    if as_json:
        typer.echo(json.dumps(report.to_dict(with_images=False), indent=1))
        return
    _print(report)
    say(f"{folder / 'report.html'}  pictures, errors and the protocol")
    say(f"{folder / 'report.json'}  to compare: transfervae evaluate --compare A/report.json B/report.json")


def parse_metrics(text: str) -> list[Any]:
    """Read names with commas, or a list in YAML whose entries may have options.

    Raises:
        InvalidOptionError: If it is neither.
    """
    if not text.lstrip().startswith(("[", "{")):
        return [name.strip() for name in text.split(",") if name.strip()]
    yaml = import_module("yaml")
    try:
        entries = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InvalidOptionError(f"--metrics is no list in YAML: {' '.join(str(error).split())}") from error
    listed = entries if isinstance(entries, list) else [entries]
    return [entry if isinstance(entry, str) else Spec.parse(entry, "metric") for entry in listed]


def _start_processes(device: str, devices: int) -> tuple[str, bool]:
    """Start the further processes that share the work: this one's device, and whether it is the first."""
    if devices == 1:
        return device, True
    from transfervae.training.engine import is_first_process, make_fabric, quiet_engine
    from transfervae.training.options import EngineOptions

    kind, _, index = device.partition(":")
    if index:
        raise InvalidOptionError(f"--devices counts devices of a kind; write --device {kind} without a number.")
    with quiet_engine():
        fabric = make_fabric(EngineOptions(accelerator=kind, devices=devices, strategy="ddp"))
        fabric.launch()
    return str(fabric.device), is_first_process()


@app.command()
def compare(
    data: Annotated[
        list[Path] | None, typer.Argument(help="Folders of images; drawn faces if left out.", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of runs, tables and pictures.")] = Path("comparison"),
    backbone: Annotated[
        list[str] | None,
        typer.Option(help="A backbone, with @ and nodes if not its default: packaged@1,2,3. Give it again for more."),
    ] = None,
    recipe: Annotated[list[str] | None, typer.Option(help="A recipe; give it again for more.")] = None,
    head: Annotated[list[str] | None, typer.Option(help="A head; give it again for more.")] = None,
    seeds: Annotated[int, typer.Option(help="How many seeds each is trained with.")] = 1,
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = 5,
    image_size: Annotated[str, typer.Option(help="Height and width of the images, 128 or 96x128.")] = "64",
    config: Annotated[
        Path | None, typer.Option(help="YAML file with further options of train, for all.", show_default=False)
    ] = None,
    metrics: Annotated[str | None, typer.Option(help="What to measure, with commas.")] = None,
    parts: Annotated[bool, typer.Option("--parts", help="Errors by part of the face; for drawn faces.")] = False,
) -> None:
    """Train several models on the same images, and put their figures side by side.

    One that was interrupted goes on when the same command is given again.

    Example: transfervae compare photos --backbone packaged@1 --backbone packaged@1,2,3 --seeds 3
    """
    from itertools import product

    from transfervae import training
    from transfervae.evaluation import REPORTED

    common = {} if config is None else read_file(config)
    if "model" in common:
        raise InvalidOptionError("The file holds 'model'; write its head, decoder and prior without it, as train does.")
    model = {name: common.pop(name) for name in ("head", "decoder", "prior") if name in common}
    for name in ("backbone", "recipe", "image_size", "epochs", "seed", "data"):
        common.pop(name, None)
    configurations: dict[str, Any] = {}
    heads: list[str | None] = [*head] if head else [None]
    recipes: list[str | None] = [*recipe] if recipe else [None]
    for spelled, which, head_name in product(backbone or ["packaged"], recipes, heads):
        words = [spelled, *([which] if which else []), *([head_name] if head_name else [])]
        name = "+".join(words).replace("timm:", "")
        if name in configurations:
            raise InvalidOptionError(f"{name} is given twice.")
        configurations[name] = {
            **common,
            "recipe": which,
            "epochs": epochs,
            "model": {
                **model,
                **({} if head_name is None else {"head": head_name}),
                "backbone": _parse_backbone(spelled),
                "image_size": image_size,
            },
        }
    paths: Any = data[0] if data and len(data) == 1 else data
    try:
        result = training.compare(
            configurations,
            paths,
            out=out,
            seeds=seeds,
            metrics=REPORTED if metrics is None else parse_metrics(metrics),
            parts=parts,
            console=screen,
        )
    except KeyboardInterrupt:
        say("To go on where it stopped, give the same command again.")
        raise typer.Exit(INTERRUPTED) from None
    _print_comparison(result)


def _parse_backbone(spelled: str) -> dict[str, Any]:
    """Read a name, or a name and nodes: packaged@1,2,3."""
    name, at, nodes = spelled.partition("@")
    if not at:
        return {"name": name}
    parsed = [int(node) if node.lstrip("-").isdecimal() else node for node in nodes.split(",")]
    return {"name": name, "node": parsed[0] if len(parsed) == 1 else parsed}


def _print_comparison(result: Any) -> None:
    from transfervae.evaluation.sheet import NAMES

    summary = result.summary()
    table = Table(
        "figure", *summary, title="Held-out images, mean ± standard deviation over seeds", title_justify="left"
    )
    for figure in dict.fromkeys(figure for figures in summary.values() for figure in figures):
        cells = []
        for figures in summary.values():
            mean, std = figures.get(figure, (float("nan"), 0.0))
            cells.append(f"{mean:.4g}" + (f" ± {std:.2g}" if std else ""))
        table.add_row(NAMES.get(figure, figure), *cells)
    screen.print(table)
    say(f"Shared features saved {result.saved_seconds:.0f} s.")
    for name, what in (
        ("sheet.png", "the same held-out images through all models"),
        ("quality.png", "error against seconds"),
        ("comparison.csv", "this table"),
        ("comparison.json", "every figure, with the configurations"),
        ("runs", "each run, with its report: NAME-SEED"),
    ):
        screen.print(f"{escape(readable(result.folder / name))}  [dim]{what}[/]", soft_wrap=True, highlight=False)


def _open(
    model: Path, data: list[Path] | None, size: tuple[int, int], *, skip_bad: bool
) -> tuple[Any, list[dict[str, float]]]:
    """The images, and the figures of the model's run by epoch, if it has one."""
    from transfervae.training.held_out import held_out_images, history_of

    if data:
        paths: Any = data[0] if len(data) == 1 and data[0].is_dir() else data
        return open_dataset(paths, size, skip_bad=skip_bad), history_of(model)
    if not (model / "model").is_dir():
        raise InvalidOptionError(f"{str(model)!r} is not a run with held-out images; name the images to measure.")
    images = held_out_images(model)
    if images.image_size != size:
        raise RunFolderError(
            f"The run in {str(model)!r} has images of {images.image_size}, and the model in it is for {size}."
        )
    return images, history_of(model)


def _print(report: Any) -> None:
    from transfervae.evaluation.sheet import figure_rows

    table = Table(title=f"{report.protocol['images']} images", title_justify="left")
    table.add_column("figure")
    table.add_column("value", justify="right")
    for row in figure_rows(report.figures):
        table.add_row(*row)
    table.add_row("RMSE of the mean of these images", f"{report.baseline['rmse']:.4g}")
    screen.print(table)
    if report.parts:
        shown = Table("part", "RMSE", "contrast", "removed", "95 %", title="Errors by part", title_justify="left")
        for name, part in sorted(report.parts.items(), key=lambda entry: -entry[1].removed):
            interval = f"{part.low:.2f} to {part.high:.2f}"
            shown.add_row(name, f"{part.rmse:.4f}", f"{part.contrast:.4f}", f"{part.removed:.2f}", interval)
        screen.print(shown)
    for verdict in report.verdicts:
        screen.print(f"[yellow]{escape(verdict)}[/]", highlight=False)


def _compare(paths: list[Path], *, as_json: bool) -> None:
    from transfervae.evaluation import Report, compare_reports
    from transfervae.evaluation.sheet import NAMES

    files = [_report_of(path) for path in paths]
    if len(set(paths)) < max(2, len(paths)):
        raise InvalidOptionError("--compare needs two reports or more, and each once.")
    reports = {str(path): Report.read(path) for path in files}
    compared = compare_reports(reports)
    if as_json:
        typer.echo(json.dumps(compared, indent=1))
        return
    table = Table("figure", *map(escape, reports), title=COMPARED, title_justify="left")
    for figure, values in compared.items():
        table.add_row(
            escape(NAMES.get(figure, figure)), *(f"{values[name]:.4g}" if name in values else "" for name in reports)
        )
    screen.print(table)


def _report_of(path: Path) -> Path:
    """The file of a report that is named itself, or by its folder, or by its run's."""
    if not path.is_dir():
        return path
    own = path / "report.json"
    return own if own.exists() else path / "evaluation" / "report.json"
