"""The command itself, and how it fails."""

from typing import Annotated

import typer
from rich.console import Console

from transfervae import __version__

INTERRUPTED = 130
FAILED = 2

screen = Console()
errors = Console(stderr=True)

app = typer.Typer(
    help="Turn a frozen pretrained vision network into the encoder of a variational autoencoder.",
    epilog="Start with: transfervae train PHOTOS --out runs/faces    then: transfervae sample runs/faces",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def say(text: str, console: Console = screen) -> None:
    """Print a line that may hold a path: nothing in it is markup, and it is not wrapped."""
    console.print(readable(text), markup=False, highlight=False, soft_wrap=True)


def readable(text: object) -> str:
    """Text that any terminal takes: bytes of a path that are no Unicode are shown as they are."""
    return str(text).encode(errors="backslashreplace").decode()


def _print_version(asked: bool) -> None:
    if asked:
        say(f"transfervae {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Hold the options that stand before a command."""
