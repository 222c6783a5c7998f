"""The command line: arguments in, library calls out."""

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from transfervae.errors import InvalidOptionError, TransferVAEError

INTERRUPTED = 130
FAILED = 2

out_console = Console()
error_console = Console(stderr=True)

app = typer.Typer(
    help="Frozen pretrained vision networks as encoders of variational autoencoders.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
