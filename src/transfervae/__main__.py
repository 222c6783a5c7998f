"""`python -m transfervae`, and the command `transfervae`."""

import sys

INTERRUPTED = 130


def main() -> None:
    """Run the command line, or say which extra it needs."""
    try:
        from transfervae.cli import run

        run()
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        sys.exit("The command line needs the extra 'train': pip install 'transfervae[train]'")
    except KeyboardInterrupt:  # before a command has begun; those that take long have words of their own for it
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
