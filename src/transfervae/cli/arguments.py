"""Arguments that several commands take, and how they are read."""

from pathlib import Path
from typing import Annotated

import typer

from transfervae.errors import InvalidOptionError

DATA_PANEL = "Images"

Model = Annotated[Path, typer.Argument(help="A run's folder, or a model's (save_pretrained).", show_default=False)]
Weights = Annotated[
    str | None, typer.Option(help="The backbone's weights, if no longer where they were: default, or a file.")
]
Device = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1, …")]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Skip and count files that cannot be read.", rich_help_panel=DATA_PANEL)
]


def check_suffix(out: Path, *suffixes: str) -> None:
    """Make sure that a file's name ends as its content asks for.

    Raises:
        InvalidOptionError: If it does not.
    """
    if out.suffix not in suffixes:
        raise InvalidOptionError(f"--out must end in {' or '.join(filter(None, suffixes))}, got {str(out)!r}.")


def parse_weights(text: str) -> str | None:
    """Read "none" as no weights."""
    return None if text == "none" else text
