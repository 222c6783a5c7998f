"""Commands that look at networks: summary, backbones."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from transfervae.backbones import (
    BackboneDescription,
    backbone_names,
    describe_backbone,
    is_backbone,
    license_remark,
    list_backbones,
)
from transfervae.cli.app import app, screen
from transfervae.cli.arguments import Weights, parse_grid, parse_node, parse_size
from transfervae.cli.images import load
from transfervae.decoders import DECODERS
from transfervae.errors import InvalidOptionError, UnknownNameError
from transfervae.heads import HEADS
from transfervae.model import TransferVAE, build_vae
from transfervae.summary import summarise

LISTING_WIDTH = 160
"""Columns of a long table that is written to a file or a pipe."""


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
        vae = load(model, weights, "cpu")
    else:
        vae = build_vae(
            backbone or "",
            image_size=parse_size(image_size),
            node=parse_node(node),
            fuse=fuse,
            grid=parse_grid(grid),
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
    size = None if image_size is None else parse_size(image_size)
    if is_backbone(pattern):
        _print_nodes(describe_backbone(pattern, image_size=size))
        return
    found = list(list_backbones(pattern))
    if not found:
        raise UnknownNameError("backbone", pattern, backbone_names())
    _print_backbones(found)


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
