"""The progress bar of all long work: done, total, time remaining, and figures."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def make_progress(console: Console) -> Progress:
    """A bar that is only drawn on a terminal, and goes when it is done; its tasks have a field `figures`."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


@contextmanager
def progress_bar(console: Console, description: str) -> Iterator[Callable[[int, int], None]]:
    """A context with a bar for work that tells (done, total).

    Args:
        console: Where it is drawn.
        description: What is being done.
    """
    with make_progress(console) as progress:
        task = progress.add_task(description, total=None, figures="")
        yield lambda done, total: progress.update(task, completed=done, total=total)
