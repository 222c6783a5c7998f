"""The command itself, and how it fails."""

import os
import warnings
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from transfervae import __version__
from transfervae.backbones import LicenseWarning
from transfervae.backbones.frozen import is_out_of_memory
from transfervae.errors import TransferVAEError

INTERRUPTED = 130
FAILED = 2

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


def say(text: str, console: Console = screen) -> None:
    """Print a line that may hold a path: nothing in it is markup, and it is not wrapped."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


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
