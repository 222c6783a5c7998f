"""`python -m transfervae`, and the command `transfervae`."""

import sys


def main() -> None:
    """Run the command line, or say which extra it needs."""
    try:
        from transfervae.cli import run
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        sys.exit("The command line needs the extra 'train': pip install 'transfervae[train]'")
    run()


if __name__ == "__main__":
    main()
