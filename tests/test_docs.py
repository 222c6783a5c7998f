"""The documentation is true: its examples run as written, and its reference leaves no public name out."""

import inspect
import json
import os
import re
import runpy
import textwrap
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import transfervae as tv
from tests.warm import make_warnings_errors, run_warm

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
VGG19_FILE = "vgg19-dcbb9e9d.pth"

BLOCK = re.compile(r"^(?P<indent> *)```python[^\n]*\n(?P<code>.*?)^(?P=indent)```", re.MULTILINE | re.DOTALL)
DIRECTIVE = re.compile(r"^::: (\S+)", re.MULTILINE)

PUBLIC_MODULES = (
    "transfervae",
    "transfervae.backbones",
    "transfervae.cache",
    "transfervae.files",
    "transfervae.data",
    "transfervae.decoders",
    "transfervae.diffusers_view",
    "transfervae.errors",
    "transfervae.evaluation",
    "transfervae.metrics",
    "transfervae.execution",
    "transfervae.build",
    "transfervae.heads",
    "transfervae.inference",
    "transfervae.interop",
    "transfervae.interpolation",
    "transfervae.losses",
    "transfervae.model",
    "transfervae.pictures",
    "transfervae.objectives",
    "transfervae.options",
    "transfervae.posteriors",
    "transfervae.priors",
    "transfervae.progress",
    "transfervae.saving",
    "transfervae.scaling",
    "transfervae.schedules",
    "transfervae.shapes",
    "transfervae.summary",
    "transfervae.training",
)


def read_blocks(page: Path) -> list[tuple[int, str]]:
    """The page's Python examples in order, each with the line that it begins on."""
    text = page.read_text(encoding="utf-8")
    return [
        (text.count("\n", 0, match.start("code")) + 1, textwrap.dedent(match["code"])) for match in BLOCK.finditer(text)
    ]


PAGES = [page for page in (ROOT / "README.md", *sorted(DOCS.rglob("*.md"))) if page.exists() and read_blocks(page)]


@pytest.fixture(scope="module", autouse=True)
def offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Random weights under the published name in torch's cache, so that no example downloads anything."""
    from torchvision.models import vgg

    hub = tmp_path_factory.mktemp("torch") / "hub"
    features = vgg.make_layers(vgg.cfgs["E"])
    (hub / "checkpoints").mkdir(parents=True)
    torch.save(
        {f"features.{name}": value for name, value in features.state_dict().items()}, hub / "checkpoints" / VGG19_FILE
    )
    before, threads = torch.hub.get_dir(), torch.get_num_threads()
    torch.hub.set_dir(str(hub))
    torch.set_num_threads(1)  # the examples are too small to gain from more
    yield
    torch.hub.set_dir(before)
    torch.set_num_threads(threads)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_examples_run_as_written(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = read_blocks(page)
    if any("torch.compile" in code for _, code in blocks):
        run_without_shape_checks([code for _, code in blocks])
        return
    namespace: dict[str, Any] = {"__name__": "example"}
    for line, code in blocks:
        exec(compile("\n" * (line - 1) + code, str(page), "exec"), namespace)  # errors name the page's own line


def test_first_page_has_the_first_example() -> None:
    (_, code), *_ = read_blocks(DOCS / "index.md")
    assert 'tv.build_vae("vgg19", image_size=128, latent_dim=128)' in code


@pytest.mark.parametrize("name", PUBLIC_MODULES)
def test_reference_names_everything_public(name: str) -> None:
    documented = [resolve(directive) for directive in read_directives()]
    module = import_module(name)
    missing = [member for member, value in public_members(module) if not is_documented(value, documented)]
    assert not missing


def test_table_of_default_betas_is_true() -> None:
    text = (DOCS / "guides" / "losses.md").read_text("utf-8")
    rows = re.findall(r"^\| `(\w+)` \|.*\| (\S+) \|$", text, re.MULTILINE)
    betas = {name: float(beta) for name, beta in rows if name in tv.losses.RECONSTRUCTIONS}
    assert betas == {name: term.beta for name, term in tv.losses.RECONSTRUCTIONS.items()}


def public_members(module: ModuleType) -> list[tuple[str, object]]:
    """What a module exports: the names in `__all__`, or else its own documented classes and functions."""
    if hasattr(module, "__all__"):
        return [(name, getattr(module, name)) for name in module.__all__]
    return [
        (name, value)
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == module.__name__
        and value.__doc__
    ]


def run_without_shape_checks(blocks: list[str]) -> None:
    """Run examples in a process of their own, because the checks of these tests cannot be compiled."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_HOME": str(Path(torch.hub.get_dir()).parent)}
    done = run_warm("-c", "\n".join(blocks), environment=environment, before=make_warnings_errors)
    assert not done.returncode, done.stderr


def read_directives() -> list[str]:
    """What the reference's pages show."""
    return [name for page in (DOCS / "api").glob("*.md") for name in DIRECTIVE.findall(page.read_text("utf-8"))]


def resolve(directive: str) -> object:
    """The module, or the member of a module, that a directive names."""
    module, _, member = directive.rpartition(".")
    parent = import_module(module)
    return getattr(parent, member) if hasattr(parent, member) else import_module(directive)


def is_documented(value: object, documented: list[object]) -> bool:
    """Whether a value is shown itself, or its whole module is; a module is, if all its public members are."""
    if any(value is shown for shown in documented):
        return True
    if isinstance(value, ModuleType):
        return all(is_documented(member, documented) for _, member in public_members(value))
    home = getattr(value, "__module__", "")
    return any(isinstance(shown, ModuleType) and shown.__name__ == home for shown in documented)


@pytest.mark.parametrize("name", ["demo", "clothing", "photographs"])
def test_figures_of_the_experiment_are_those_of_the_runs(name: str) -> None:
    figures = json.loads((DOCS / "results" / f"{name}.json").read_text())
    page = (DOCS / "experiment.md").read_text()
    for row in (
        f"| RMSE | {figures['rmse']:.4f} |",
        f"| RMSE of predicting the mean training image | {figures['mean_image_rmse']:.4f} |",
        f"| KL, nats | {figures['kl']:.1f} |",
        f"| active units | {figures['active_units']:.0f} of {figures['latent_size']} |",
    ):
        assert row in page


def test_figures_of_the_nodes_are_those_of_the_runs() -> None:
    page = (DOCS / "guides" / "backbones.md").read_text()
    report = json.loads((DOCS / "results" / "nodes.json").read_text())
    for row in report["results"]:
        name = f"{row['node']} (default)" if row["node"] == "3" else row["node"]
        assert f"| {name} | {row['channels']} x {row['grid']} x {row['grid']} | {row['rmse']:.4f} |" in page
    assert report["command"] in page


def test_figures_of_the_cached_run_are_those_of_the_runs() -> None:
    page = (DOCS / "guides" / "cache.md").read_text()
    report = json.loads((DOCS / "results" / "cache.json").read_text())
    assert report["command"] in page
    for row in report["results"]:
        assert f"| {row['cache']} | {row['seconds']:.1f} | {row['rmse']:.4f} |" in page


def test_figures_of_the_coverage_are_those_of_the_run() -> None:
    figures = json.loads((DOCS / "results" / "coverage.json").read_text())
    page = (DOCS / "backbones.md").read_text()
    assert f"{figures['working']} of the {figures['names']} networks" in page
    assert len(re.findall(r"^\| `timm:", page, re.MULTILINE)) == figures["working"]


def test_figures_of_the_overhead_are_those_of_the_run() -> None:
    page = (DOCS / "benchmarks.md").read_text()
    for row in json.loads((DOCS / "results" / "overhead.json").read_text())["results"]:
        seconds = f"{1e3 * row['timm_seconds']:.0f} | {1e3 * row['ours_seconds']:.0f} | {row['ratio']:.3f}"
        assert f"| {row['name']} | {row['operation']} | {seconds} |" in page


def test_the_page_of_options_is_what_the_declarations_say() -> None:
    script = runpy.run_path(str(ROOT / "benchmarks" / "options_table.py"))
    assert script["PAGE"].read_text("utf-8") == script["write_page"]()


def test_figures_of_the_parts_are_those_of_the_runs() -> None:
    page = (DOCS / "eyes.md").read_text()
    order = ("background", "skin", "hair", "mouth", "eyes", "brows")
    for row in json.loads((DOCS / "results" / "parts.json").read_text())["results"]:
        shares = " | ".join(f"{row['parts'][part]['removed']:.2f}" for part in order)
        assert f"| {row['node']} | `{row['objective']}` | {row['rmse']:.4f} | {shares} |" in page
