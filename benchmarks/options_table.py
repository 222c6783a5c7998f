"""Write docs/options.md: every option of every part, as it is declared.

python benchmarks/options_table.py
"""

import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path

from transfervae.build import BACKBONE_OPTIONS
from transfervae.decoders import DECODERS
from transfervae.heads import HEADS
from transfervae.metrics import METRICS
from transfervae.objectives import TERMS, term_options
from transfervae.options import Option, PartTable, describe_type, options_of
from transfervae.priors import PRIORS
from transfervae.training import DataOptions, EngineOptions, OptimizerOptions

PAGE = Path(__file__).parents[1] / "docs" / "options.md"

INTRODUCTION = """# Options

Every option of every part, with its type and default. An option is declared once, as a keyword-only parameter; this
page is written from those declarations by `python benchmarks/options_table.py`.

In Python, an option is given in a `Spec`: `build_vae(head=tv.Spec("deterministic", tau=0.8))`. On the command line it
stands behind the part and a dot, with dashes: `--head deterministic --head.tau 0.8`. In a file it is nested:
`head: {name: deterministic, tau: 0.8}`.
"""


def write_page() -> str:
    """The page's text."""
    lines = [INTRODUCTION, "## Backbone: `--backbone.…`\n", *table(BACKBONE_OPTIONS)]
    tables = (("Heads", "head", HEADS), ("Decoders", "decoder", DECODERS), ("Priors", "prior", PRIORS))
    for title, flag, parts in tables:
        lines += [f"## {title}: `--{flag}.…`\n", *part_tables(parts)]
    lines += ["## Terms: `--objective.NAME.…`\n"]
    for name in TERMS:
        lines += [f"### `{name}`\n", *table(term_options(name))]
    plain = [name for name in METRICS if not METRICS.options(name)]
    lines += ["## Metrics: `--metrics`\n", f"Without options: {', '.join(f'`{name}`' for name in plain)}.\n"]
    for name in METRICS:
        if name not in plain:
            lines += [f"### `{name}`\n", *table(METRICS.options(name))]
    groups = (("Data set", "dataset", DataOptions), ("Optimizer", "optimizer", OptimizerOptions))
    for title, flag, group in (*groups, ("Engine", "engine", EngineOptions)):
        lines += [f"## {title}: `--{flag}.…`\n", *table(options_of(group))]
    return "\n".join(lines).rstrip() + "\n"


def part_tables(parts: PartTable) -> Iterator[str]:
    """A heading and a table for each part."""
    for name in parts:
        yield f"### `{name}`\n"
        yield from table(parts.options(name))


def table(options: Mapping[str, Option]) -> Iterator[str]:
    """A Markdown table of options."""
    if not options:
        yield "No options.\n"
        return
    yield "| option | type | default | meaning |"
    yield "|---|---|---|---|"
    for option in options.values():
        default = "" if option.default is inspect.Parameter.empty else f"`{option.default!r}`"
        meaning = option.help.replace("|", "\\|")
        yield f"| `{option.name}` | {describe_type(option.type)} | {default} | {meaning} |"
    yield ""


if __name__ == "__main__":
    PAGE.write_text(write_page(), encoding="utf-8")
