"""Run every network of timm through backbone, head and decoder, and write what each gives.

    python benchmarks/coverage.py

Networks run on torch's meta device, where weights take no memory and nothing is computed but shapes; the few that read
values on their way run for real. What is done is kept in a file, so that a run which was stopped goes on. It writes the
library's table of backbones, the figures, and the page of the documentation.
"""

import argparse
import json
import platform
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import groupby
from pathlib import Path
from typing import Any

import timm
import torch

from transfervae import GaussianHead, create_backbone, resize_decoder
from transfervae.backbones import BackboneDescription, describe_backbone, license_remark
from transfervae.backbones.catalogue import from_row, to_row
from transfervae.errors import ImageSizeError

ROOT = Path(__file__).parents[1]
CATALOGUE = ROOT / "src" / "transfervae" / "backbones" / "catalogue.json"
FIGURES = ROOT / "docs" / "results" / "coverage.json"
PAGE = ROOT / "docs" / "backbones.md"
PROGRESS_EVERY = 20

NON_SQUARE = ("as it is", "created for it", "no")


def main() -> None:
    """Check all names, write the results, and end with the count of those that work."""
    options = parse()
    names = [name for name in timm.list_models() if options.pattern in name]
    done = read_done(options.work)
    left = [name for name in names if name not in done]
    print(f"{len(names)} networks of timm {timm.__version__}, {len(names) - len(left)} of them done before")
    started = time.monotonic()
    with options.work.open("a") as work, ProcessPoolExecutor(options.processes, initializer=settle) as pool:
        for count, future in enumerate(as_completed([pool.submit(check, name) for name in left]), start=1):
            row = future.result()
            done[row["name"]] = row
            work.write(json.dumps(row) + "\n")
            work.flush()
            if count % PROGRESS_EVERY == 0 or count == len(left):
                print(f"{count} of {len(left)}, {time.monotonic() - started:.0f} s", flush=True)
    rows = [done[name] for name in names]
    if not options.pattern:
        write_results(rows)
        options.work.unlink()
    report(rows)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2, help="how many networks are run at once")
    parser.add_argument("--pattern", default="", help="only names that hold this, and write no results")
    parser.add_argument("--work", type=Path, default=ROOT / "coverage.partial.jsonl", help="what is done so far")
    return parser.parse_args()


def read_done(work: Path) -> dict[str, dict[str, Any]]:
    """Rows of a run that was stopped, by name; its last line may be cut off."""
    done = {}
    for line in work.read_text().splitlines() if work.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        done[row["name"]] = row
    return done


def settle() -> None:
    """Make a process ready: the networks are many, not large."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")


def check(name: str) -> dict[str, Any]:
    """One network's row: what it gives, or why it does not serve."""
    row: dict[str, Any] = {"name": name, "reason": None}
    try:
        description = describe_backbone(f"timm:{name}")
        row |= {"description": to_row(description), "real": run_chain(description)}
        row["non_square"] = try_non_square(description)
    except Exception as error:  # noqa: BLE001 - whatever it is, the table shows it
        row["reason"] = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return row


def run_chain(description: BackboneDescription) -> bool:
    """Take an image from backbone to decoder; give whether values had to be computed.

    Raises:
        AssertionError: If a shape is not the one that was described.
    """
    try:
        with torch.device("meta"):
            run(description)
    except RuntimeError as error:
        if "meta" not in str(error):
            raise
        run(description)
        return True
    return False


@torch.no_grad()
def run(description: BackboneDescription) -> None:
    """Take an image from backbone to decoder, at the default node."""
    size, default = description.image_size, description.default
    backbone = create_backbone(description.name, weights=None)
    features = backbone.network(backbone.normalise(torch.rand(1, 3, *size)))
    shape = (default.channels, *default.grid)
    expect(tuple(features.shape[1:]), shape)
    head = GaussianHead(shape)
    latent = head(features).mode()
    expect(tuple(latent.shape[1:]), head.latent_shape_for(shape))
    images = resize_decoder(head.latent_shape_for(shape), size)(latent)
    expect(tuple(images.shape[1:]), (3, *size))


def expect(given: Sequence[int], wanted: Sequence[int]) -> None:
    """Compare shapes.

    Raises:
        AssertionError: If they differ.
    """
    if tuple(given) != tuple(wanted):
        raise AssertionError(f"shape {list(given)} instead of {list(wanted)}")


def try_non_square(description: BackboneDescription) -> str:
    """Whether a network takes images twice as wide as its own: as it is, created for the size, or not."""
    height, width = description.image_size
    wide = (height, 2 * width)
    try:
        with torch.device("meta"):
            backbone = create_backbone(description.name, image_size=wide, weights=None)
            backbone.feature_shape(wide)
    except ImageSizeError as error:
        if "meta" not in str(error):
            return "no"
        backbone = create_backbone(description.name, image_size=wide, weights=None)
        backbone.feature_shape(wide)
    return "created for it" if "image_size" in backbone.provenance.options else "as it is"


def write_results(rows: Sequence[dict[str, Any]]) -> None:
    """Write the library's table, the figures and the page."""
    works = [row for row in rows if row["reason"] is None]
    lines = ",\n".join(json.dumps(row["description"], separators=(",", ":")) for row in works)
    CATALOGUE.write_text(f'{{"timm": "{timm.__version__}", "backbones": [\n{lines}\n]}}\n')
    figures = {
        "command": "python benchmarks/coverage.py",
        "versions": {"timm": timm.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "names": len(rows),
        "working": len(works),
        "failing": {row["name"]: row["reason"] for row in rows if row["reason"] is not None},
        "run_for_real": [row["name"] for row in works if row["real"]],
        "non_square": {kind: sum(row["non_square"] == kind for row in works) for kind in NON_SQUARE},
    }
    FIGURES.write_text(json.dumps(figures, indent=2) + "\n")
    PAGE.write_text("\n".join(page(rows, figures)) + "\n")


def page(rows: Sequence[dict[str, Any]], figures: dict[str, Any]) -> Iterator[str]:
    """The lines of the documentation's page."""
    yield "---\nhide:\n  - toc\nsearch:\n  exclude: true\n---\n"
    yield "# All backbones\n"
    yield (
        f"{figures['working']} of the {figures['names']} networks of timm {figures['versions']['timm']} serve as"
        " backbones: each was taken from an image through backbone, head and decoder, with random weights. Nodes are"
        " given as channels x grid height x grid width, for images of the size that the network was trained at; the"
        " last one is the default. Parameters are those kept at the default node. Non-square tells whether images"
        " twice as wide are taken by the network as it is, or once it is created with `image_size`, as `build_vae`"
        " does; pretrained weights then have to be resampled, which timm does for most networks. The licence is that"
        " of the default weights. How to choose is in [Backbones](guides/backbones.md)."
    )
    yield f"\nThis page was written by `{figures['command']}`.\n"
    if figures["failing"]:
        yield "\n## What does not serve\n"
        yield from (f"- `{name}`: {reason}" for name, reason in figures["failing"].items())
    yield "\n| name | image | nodes | parameters | non-square | licence |"
    yield "|---|---|---|---|---|---|"
    for row in rows:
        if row["reason"] is None:
            yield line(from_row(row["description"]), row["non_square"])


def line(description: BackboneDescription, non_square: str) -> str:
    """One network's row of the page."""
    remark = license_remark(description.license)
    license_name = description.license or "no weights"
    if remark and remark != license_name:
        license_name += f" (**{remark}**)"
    height, width = description.image_size
    return (
        f"| `{description.name}` | {height}x{width} | {nodes(description)} |"
        f" {description.parameters / 1e6:.1f} M | {non_square} | {license_name} |"
    )


def nodes(description: BackboneDescription) -> str:
    """All nodes, those in a row that give the same together."""
    parts = []
    for shape, group in groupby(description.nodes, key=lambda entry: (entry.channels, *entry.grid)):
        indices = [entry.node for entry in group]
        name = str(indices[0]) if len(indices) == 1 else f"{indices[0]}-{indices[-1]}"
        parts.append(f"{name}: {'x'.join(map(str, shape))}")
    return ", ".join(parts)


def report(rows: Sequence[dict[str, Any]]) -> None:
    """End with the count, and what does not work."""
    failing = [row for row in rows if row["reason"] is not None]
    for row in failing:
        print(f"{row['name']}: {row['reason']}")
    print(f"{len(rows) - len(failing)} of {len(rows)} networks work")
    sys.exit(bool(failing))


if __name__ == "__main__":
    main()
