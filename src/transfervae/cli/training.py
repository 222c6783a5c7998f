"""Commands that compute for long: train, and cache."""

import math
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from transfervae.cache import DTYPES, FeatureCache
from transfervae.cli.app import INTERRUPTED, app, say, screen
from transfervae.cli.arguments import (
    DATA_PANEL,
    ENGINE_PANEL,
    LENGTH_PANEL,
    MODEL_PANEL,
    OBJECTIVE_PANEL,
    Accelerator,
    Backbone,
    BatchSize,
    Data,
    Devices,
    Faces,
    Fuse,
    Grid,
    ImageSize,
    MemoryFormat,
    NodeNames,
    Norm,
    NumNodes,
    Precision,
    SkipBad,
    Strategy,
    WeightsChoice,
    Workers,
    given,
    parse_devices,
    parse_grid,
    parse_node,
    parse_size,
    parse_weights,
)
from transfervae.decoders import DECODERS
from transfervae.heads import HEADS
from transfervae.losses import RECONSTRUCTIONS


@app.command()
def train(
    context: typer.Context,
    data: Data = None,
    out: Annotated[Path, typer.Option(help="The run's folder.")] = Path("runs/faces"),
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --out from its last full epoch, with its options.")
    ] = False,
    image_size: ImageSize = "128",
    held_out: Annotated[
        float, typer.Option(help="Fraction of the images kept out of training.", rich_help_panel=DATA_PANEL)
    ] = 0.1,
    flips: Annotated[
        bool,
        typer.Option("--flips", help="Mirror every other training image, drawn anew.", rich_help_panel=DATA_PANEL),
    ] = False,
    faces: Faces = 2000,
    skip_bad: SkipBad = False,
    backbone: Backbone = "auto",
    node: NodeNames = None,
    fuse: Fuse = "concat",
    grid: Grid = None,
    norm: Norm = False,
    weights: WeightsChoice = "default",
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
    batch_size: BatchSize = 16,
    learning_rate: Annotated[float, typer.Option(help="Adam's, at the start.", rich_help_panel=LENGTH_PANEL)] = 1e-3,
    seed: Annotated[int, typer.Option(help="Of split, weights, order and draws.", rich_help_panel=LENGTH_PANEL)] = 0,
    accelerator: Accelerator = "auto",
    devices: Devices = "auto",
    num_nodes: NumNodes = 1,
    strategy: Strategy = "auto",
    precision: Precision = "auto",
    memory_format: MemoryFormat = "auto",
    compiled: Annotated[
        bool, typer.Option("--compile", help="Run the model through torch.compile.", rich_help_panel=ENGINE_PANEL)
    ] = False,
    cache: Annotated[
        str,
        typer.Option(
            help="auto: the backbone's features are computed once and kept in the run's folder; off: in every epoch; or"
            " the folder of a cache that `transfervae cache` built.",
            rich_help_panel=ENGINE_PANEL,
        ),
    ] = "auto",
    workers: Workers = None,
) -> None:
    """Train a model on a folder of images, and leave model, figures and pictures in a folder.

    The backbone stays frozen; a head and a decoder are trained.

    Example: transfervae train photos --backbone vgg19 --image-size 128 --epochs 5 --out runs/faces
    """
    from transfervae import training

    chosen: dict[str, Any] = {
        "data": data,
        "backbone": backbone,
        "node": parse_node(node),
        "fuse": fuse,
        "grid": parse_grid(grid),
        "norm": norm,
        "weights": parse_weights(weights),
        "head": head,
        "latent_dim": latent_dim,
        "image_size": parse_size(image_size),
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
        "flips": flips,
        "faces": faces,
        "skip_bad": skip_bad,
        "seed": seed,
    }
    engine_chosen: dict[str, Any] = {
        "accelerator": accelerator,
        "devices": parse_devices(devices),
        "num_nodes": num_nodes,
        "strategy": strategy,
        "precision": precision,
        "memory_format": memory_format,
        "compile": compiled,
        "cache": cache,
        "workers": workers,
    }
    console = screen if training.is_first_process() else Console(quiet=True)
    if resume:
        options = training.resumed_options(out, given(context, chosen))
        engine = replace(training.read_engine(out), **given(context, engine_chosen))
    else:
        engine = training.EngineOptions(**engine_chosen)
        options = training.TrainOptions(**chosen)
    try:
        result = training.train(options, out, engine=engine, resume=resume, console=console)
    except KeyboardInterrupt:
        if (out / "config.json").exists():
            say(f"To go on from the last full epoch: transfervae train --resume --out {shlex.quote(str(out))}", console)
        raise typer.Exit(INTERRUPTED) from None
    if training.is_first_process():
        _print_result(result, out)


@app.command()
def cache(
    data: Data = None,
    out: Annotated[Path, typer.Option(help="The cache's folder.")] = Path("features"),
    verify: Annotated[
        bool, typer.Option("--verify", help="Compute nothing: compare the checksums of the cache in --out.")
    ] = False,
    image_size: ImageSize = "128",
    flips: Annotated[
        bool,
        typer.Option(
            "--flips", help="Store features of mirrored images too, for train --flips.", rich_help_panel=DATA_PANEL
        ),
    ] = False,
    faces: Faces = 2000,
    seed: Annotated[int, typer.Option(help="Of the drawn faces.", rich_help_panel=DATA_PANEL)] = 0,
    skip_bad: SkipBad = False,
    backbone: Backbone = "auto",
    node: NodeNames = None,
    fuse: Fuse = "concat",
    grid: Grid = None,
    norm: Norm = False,
    weights: WeightsChoice = "default",
    dtype: Annotated[
        str,
        typer.Option(help=f"What features are stored as: {', '.join(DTYPES)}.", rich_help_panel=LENGTH_PANEL),
    ] = "float16",
    batch_size: BatchSize = 16,
    accelerator: Accelerator = "auto",
    devices: Devices = "auto",
    num_nodes: NumNodes = 1,
    strategy: Strategy = "auto",
    precision: Precision = "auto",
    memory_format: MemoryFormat = "auto",
    workers: Workers = None,
) -> None:
    """Compute a backbone's features of images once, for any number of trainings.

    A build that was interrupted goes on where it stopped when the same command is given again.

    Example: transfervae cache photos --backbone vgg19 --out features    then: transfervae train photos --cache features
    """
    from transfervae import training

    if verify:
        with _bar("checking") as progress:
            FeatureCache(out).verify(progress)
        say(f"all files in {out} are as they were written")
        return
    options = training.TrainOptions(
        data=data,
        backbone=backbone,
        node=parse_node(node),
        fuse=fuse,
        grid=parse_grid(grid),
        norm=norm,
        weights=parse_weights(weights),
        image_size=parse_size(image_size),
        faces=faces,
        flips=flips,
        batch_size=batch_size,
        skip_bad=skip_bad,
        seed=seed,
    )
    engine = training.EngineOptions(
        accelerator=accelerator,
        devices=parse_devices(devices),
        num_nodes=num_nodes,
        strategy=strategy,
        precision=precision,
        memory_format=memory_format,
        workers=workers,
    )
    console = screen if training.is_first_process() else Console(quiet=True)
    try:
        built = training.cache_features(options, out, dtype=dtype, engine=engine, console=console)
    except KeyboardInterrupt:
        say("To go on where it stopped, give the same command again.", console)
        raise typer.Exit(INTERRUPTED) from None
    say(
        f"{len(built)} images and their features are in {out}; to train on them: transfervae train … --cache {out}",
        console,
    )


@contextmanager
def _bar(what: str) -> Iterator[Any]:
    with Progress(console=screen, transient=True, disable=not screen.is_terminal) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


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
