"""The command line: arguments in, library calls out."""

from transfervae.cli.app import app
from transfervae.cli.run import run

__all__ = ["app", "run"]
