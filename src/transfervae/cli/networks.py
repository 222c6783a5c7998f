"""Commands that look at networks: summary, backbones."""

import inspect
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
from transfervae.build import build_vae
from transfervae.cli.app import app, screen
from transfervae.cli.declared import Section, Tree, add_command, complete, spell_flag
from transfervae.cli.images import load
from transfervae.cli.sections import IMAGE_SIZE, Choices
from transfervae.errors import InvalidOptionError, UnknownNameError
from transfervae.model import TransferVAE
from transfervae.options import Option
from transfervae.shapes import parse_image_size
from transfervae.summary import summarise

LISTING_WIDTH = 160
"""Columns of a long table that is written to a file or a pipe."""


SUMMARY_ABOUT = """Show what a model is made of: shapes, trainable and frozen parameters, and FLOPs for one image.

Needs no weights with --backbone.
"""

MODEL = inspect.Parameter(
    "model",
    inspect.Parameter.KEYWORD_ONLY,
    default=None,
    annotation=Annotated[str | None, typer.Argument(help="A run's or a model's folder.", show_default=False)],
)


def add_summary() -> None:
    """Add the command `summary`, with the options of the parts that the command line chooses."""
    choices = Choices({}, {})
    weights = Option("weights", str | None, None, "Of a folder's backbone, if no longer where they were.")
    model = Option("model", str | None, None, "")
    sections = [
        Section("", "Model", {"model": model, "weights": weights, "image_size": IMAGE_SIZE}),
        choices.backbone(),
        choices.part("head"),
        choices.part("decoder"),
    ]

    def run(given: Tree) -> None:
        if ("model" in given) == ("backbone" in given):
            raise InvalidOptionError("Give either a model's folder or --backbone NAME.")
        tree = complete(sections, (given, spell_flag))
        if "model" in given:
            vae = load(Path(tree["model"]), tree["weights"], "cpu")
        else:
            backbone = {**tree["backbone"], "weights": None}
            vae = build_vae(backbone, image_size=tree["image_size"], head=tree["head"], decoder=tree["decoder"])
        _print_summary(vae, summarise(vae))

    shown = [sections[0]._replace(options={"weights": weights, "image_size": IMAGE_SIZE}), *sections[1:]]
    add_command(app, "summary", shown, run, about=SUMMARY_ABOUT, positionals=[MODEL])


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
    size = None if image_size is None else parse_image_size(image_size)
    if is_backbone(pattern):
        _print_nodes(describe_backbone(pattern, image_size=size))
        return
    found = list(list_backbones(pattern))
    if not found:
        raise UnknownNameError("backbone", pattern, backbone_names())
    _print_backbones(found)


def _print_summary(vae: TransferVAE, parts: list[Any]) -> None:
    source = vae.backbone.provenance
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
