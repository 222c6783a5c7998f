"""Running a command, and how it fails."""

import os
import warnings
from typing import NoReturn

import typer
from rich.markup import escape

from transfervae.backbones import LicenseWarning
from transfervae.backbones.frozen import is_out_of_memory
from transfervae.cli import evaluation, images, latents  # noqa: F401 - they add their commands
from transfervae.cli.app import FAILED, INTERRUPTED, app, errors
from transfervae.cli.declared import add_command, unknown_option
from transfervae.cli.networks import SUMMARY_ABOUT, add_summary
from transfervae.cli.sections import is_completing, words
from transfervae.cli.training import CACHE_ABOUT, TRAIN_ABOUT, add_cache, add_train
from transfervae.errors import InvalidOptionError, TransferVAEError


def run() -> None:
    """Run a command; what goes wrong is said in one line, with exit code 2."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", LicenseWarning)  # licences are shown beside the names
            raise SystemExit(_run_command())
    except (TransferVAEError, OSError) as error:
        _refuse(str(error))
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not is_out_of_memory(error):
            raise
        _refuse("There is not enough memory; try smaller images, a smaller batch or fewer.")


def _run_command() -> int:
    """The command's exit code."""
    chosen = next((word for word in words() if not word.startswith("-")), None)
    # The options of these depend on the parts that are chosen, and cost time to look up: only a command's own are.
    for command_name, (about, add) in {
        "train": (TRAIN_ABOUT, add_train),
        "cache": (CACHE_ABOUT, add_cache),
        "summary": (SUMMARY_ABOUT, add_summary),
    }.items():
        add() if chosen == command_name else add_command(app, command_name, (), lambda _: None, about=about)
    command = typer.main.get_command(app)
    try:
        return command.main(prog_name="transfervae", standalone_mode=is_completing()) or 0
    except typer.Abort:
        return INTERRUPTED
    except typer.TyperException as error:
        name, context = getattr(error, "option_name", None), getattr(error, "ctx", None)
        if name and hasattr(error, "possibilities") and context is not None:
            raise unknown_option(name, [flag for entry in context.command.params for flag in entry.opts]) from None
        raise InvalidOptionError(" ".join(error.format_message().split())) from None


def _refuse(message: str) -> NoReturn:
    if os.environ.get("LOCAL_RANK", "0") == "0":
        errors.print(f"[bold red]Error:[/] {escape(' '.join(message.split()))}", soft_wrap=True, highlight=False)
    raise SystemExit(FAILED)
