"""The command line: arguments in, library calls out."""

from transfervae.cli import images, networks, training  # noqa: F401 - they add their commands
from transfervae.cli.app import app, run

__all__ = ["app", "run"]
