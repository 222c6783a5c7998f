"""Tables on the screen."""

from collections.abc import Iterable, Sequence
from typing import Any

HEADER = (
    f"{'who':12} {'precision':>9} {'layout':>13}  {'stage':16} {'images/s':>9} {'(slowest - fastest)':>21}"
    f" {'host MiB':>9} {'device MiB':>10} {'GFLOP/s':>9} {'of product':>10} {'of copy':>8}  times as fast as"
)


def print_group(rows: Iterable[dict[str, Any]], *, first: str = "") -> None:
    """Print one line a contender and stage.

    Args:
        rows: From `to_rows`.
        first: The case's figure that a first column shows.
    """
    print(f"{first:>10} {HEADER}" if first else HEADER)
    for row in rows:
        print(f"{row['case'][first]:>10} {line(row)}" if first else line(row), flush=True)


def line(row: dict[str, Any]) -> str:
    """One row; what was not measured is a dash."""
    spread = f"({row['slowest']:.1f} - {row['fastest']:.1f})"
    flops = row["flops_per_second"]
    ratios = ", ".join(f"{name} {ratio['median']:.2f}" for name, ratio in row["ratios"].items())
    return (
        f"{row['contender']:12} {row['precision']:>9} {row['layout']:>13}  {row['stage']:16}"
        f" {row['images_per_second']:>9.1f} {spread:>21} {mebibytes(row['host_peak_bytes']):>9}"
        f" {mebibytes(row['device_peak_bytes']):>10} {'-' if flops is None else f'{flops / 1e9:.1f}':>9}"
        f" {percent(row['share_of_matrix_product']):>10} {percent(row['share_of_copy']):>8}  {ratios}"
    )


def mebibytes(count: int | None) -> str:
    """Bytes for a table."""
    return "-" if count is None else f"{count / 2**20:.0f}"


def percent(share: float | None) -> str:
    """A share for a table."""
    return "-" if share is None else f"{100 * share:.0f} %"


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table in Markdown."""
    return [f"| {' | '.join(cells)} |" for cells in [header, ["---"] * len(header), *rows]]
