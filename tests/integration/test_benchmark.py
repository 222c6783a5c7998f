import json
import os
import statistics
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import transfervae as tv
from tests.integration.command import environment
from tests.warm import run_warm

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
BLOCKED = ("rich", "typer", "pytorch_lightning", "torchmetrics", "matplotlib", "keras", "tensorflow", "pythae")
STAGES = {
    "backbone",
    "encode",
    "decode",
    "reconstruct",
    "train (live)",
    "train (cached)",
    "head and decoder",
    "cache build",
}
NEEDS_PROC = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")


@pytest.fixture(scope="module", autouse=True)
def _on_path() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield


def load(name: str) -> ModuleType:
    return import_module(name)


def run_script(name: str, *options: str | Path) -> subprocess.CompletedProcess[str]:
    return run_warm(BENCHMARKS / name, *options, environment=environment())


def run_script_afresh(
    name: str, *options: str | Path, more: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, BENCHMARKS / name, *options]
    settings = {**environment(), **(more or {})}
    return subprocess.run(command, env=settings, capture_output=True, text=True, timeout=600, check=False)


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """A quick run, where neither the packages of the train extra nor those of the baselines are installed."""
    folder = tmp_path_factory.mktemp("quick")
    for name in BLOCKED:
        (folder / f"{name}.py").write_text(f"raise ModuleNotFoundError(\"No module named '{name}'\")\n")
    out = folder / "results" / "cpu.json"
    paths = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    options = ("--device", "cpu", "--quick", "--baseline", "keras", "pythae", "--out", out)
    process = run_script_afresh("throughput.py", *options, more={"PYTHONPATH": paths})
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout, json.loads(out.read_text()) | {"folder": str(out.parent)}


def test_quick_run_has_every_stage_with_its_spread_and_shares(quick: tuple[str, dict[str, Any]]) -> None:
    _, report = quick
    stages, reader = report["groups"]
    assert (stages["kind"], reader["kind"]) == ("stages", "reader")
    own = {row["stage"]: row for row in stages["rows"] if row["contender"] == "transfervae"}
    assert own.keys() == STAGES
    assert {row["stage"] for row in reader["rows"]} == {"reader"}
    for row in (*stages["rows"], *reader["rows"]):
        assert 0 < row["slowest"] <= row["images_per_second"] <= row["fastest"]
        for ratio in row["ratios"].values():
            assert 0 < ratio["lowest"] <= ratio["median"] <= ratio["highest"]
    for row in stages["rows"]:
        assert row["flops_per_second"] > 0
        assert row["share_of_matrix_product"] > 0
    assert {"torch", "own head and decoder"} <= own["train (cached)"]["ratios"].keys()
    assert own["cache build"]["ratios"].keys() == {"own backbone"}
    assert stages["ceilings"].keys() == {"matrix product float32", "matrix product bfloat16", "copy"}
    assert stages["about"]["transfervae"]["checkpoint_bytes"] > 0
    assert stages["about"]["transfervae"]["trainable"] == stages["about"]["torch"]["trainable"]


def test_quick_run_says_where_it_ran(quick: tuple[str, dict[str, Any]]) -> None:
    _, report = quick
    assert report["machine"]["versions"]["torch"]
    assert report["machine"]["device"]
    assert report["quick"]
    assert report["folder"] not in report["command"]


def test_quick_run_names_what_to_install(quick: tuple[str, dict[str, Any]]) -> None:
    printed, report = quick
    for name in ("keras", "pythae"):
        (line,) = [line for line in printed.splitlines() if line.startswith(f"{name}: not measured")]
        assert "No module named" in line
        assert "pip install" in line
        assert report["groups"][0]["skipped"][name] in line


def test_quick_run_has_curves(quick: tuple[str, dict[str, Any]]) -> None:
    _, report = quick
    curves = {curve["axis"]: curve["rows"] for curve in report["curves"]}
    assert curves.keys() == {"rows"}
    assert [row["value"] for row in curves["rows"]] == [16]
    assert {(row["contender"], row["stage"]) for row in curves["rows"]} == {("transfervae", "train (cached)")}


def test_report_is_made_of_any_results(quick: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    _, report = quick
    process = run_script("report.py", "--results", report["folder"], "--out", tmp_path)
    assert process.returncode == 0, process.stderr
    page = (tmp_path / "benchmarks.md").read_text()
    row = report["groups"][0]["rows"][0]
    assert f"| {row['stage']} | {row['images_per_second']:.1f} | {row['slowest']:.1f} to {row['fastest']:.1f} |" in page
    assert "## On an NVIDIA GPU\n\nNot measured yet." in page
    assert (tmp_path / "pictures" / "benchmark-cpu.png").stat().st_size > 1000


def test_page_is_what_the_committed_results_say(tmp_path: Path) -> None:
    process = run_script("report.py", "--no-plots", "--out", tmp_path)
    assert process.returncode == 0, process.stderr
    page = (tmp_path / "benchmarks.md").read_text()
    assert page == (ROOT / "docs" / "benchmarks.md").read_text()
    for line in page.splitlines():
        if line.startswith("!["):
            assert (ROOT / "docs" / line.partition("](")[2].rstrip(")")).exists()


def test_targets_are_read_from_the_right_figures() -> None:
    targets = load("targets")
    row = {"stage": "train (live)", "ratios": {"torch": {"median": 2.4}, "keras": {"median": 2.5}}}
    group = {"kind": "stages", "case": targets.CASE, "rows": [row], "about": {"transfervae": {"checkpoint_bytes": 4e7}}}
    sets = {f"memory {size} GB": {"gigabytes": size, "peak_bytes": 100 + size} for size in (20, 1, 5)}
    verdicts = [target.is_met for target in targets.cpu_targets({"groups": [group]}, {"parts": sets})]
    assert verdicts == [False, True, None, None, None, None, False, False]
    assert [target.is_met for target in targets.cuda_targets(None)] == [None] * 3


@given(rates=st.lists(st.tuples(st.floats(0.1, 1e3), st.floats(0.1, 1e3)), min_size=1, max_size=9))
def test_ratios_are_medians_of_the_rounds(rates: list[tuple[float, float]]) -> None:
    measuring, protocol = load("measuring"), load("protocol")
    own, theirs = (protocol.Contender(name, "none", {}) for name in ("transfervae", "torch"))
    ours = measuring.Series(own, "train (cached)", 4, 10.0, None, rates=[mine for mine, _ in rates])
    other = measuring.Series(theirs, "train (live)", 2, None, None, rates=[yours for _, yours in rates])
    first, second = measuring.to_rows(measuring.Group([ours, other], {}, {}))
    expected = statistics.median(4 * mine / (2 * yours) for mine, yours in rates)
    assert first["ratios"]["torch"]["median"] == pytest.approx(expected)
    assert first["images_per_second"] == pytest.approx(4 * statistics.median(mine for mine, _ in rates))
    assert second["ratios"] == {}
    assert second["flops_per_second"] is None


def test_worker_that_does_not_start_says_why() -> None:
    protocol = load("protocol")
    with pytest.raises(protocol.WorkerError, match="No module named"):
        protocol.Worker(protocol.Contender("nobody", "no_such_worker", {}))


def test_operations_and_bytes_are_counted() -> None:
    counting = load("counting")
    left, right = torch.rand(3, 5), torch.rand(5, 7)
    assert counting.count_flops(lambda: left @ right) == 2 * 3 * 5 * 7
    assert counting.count_flops(lambda: left + 1) is None
    assert counting.count_traffic(lambda: left @ right) == 4 * (3 * 5 + 5 * 7 + 3 * 7)
    assert counting.count_traffic(left.t) == 0


@NEEDS_PROC
def test_peak_memory_is_that_since_the_reset() -> None:
    memory = load("memory")
    memory.reset_peak()
    before = memory.peak_bytes()
    block = bytearray(2**27)
    block[:: 2**12] = b"x" * 2**15
    assert memory.peak_bytes() >= before + 2**26
    assert memory.own_bytes(os.getpid()) <= memory.tree_bytes(os.getpid())
    del block
    memory.reset_peak()
    assert memory.peak_bytes() < before + 2**26


@pytest.mark.parametrize("size", [32, 64, 96, 128, 192, 224])
def test_decoder_by_hand_is_ours(size: int) -> None:
    baseline = load("baselines.plain_torch")
    by_hand, ours = baseline.Decoder(8, size), tv.resize_decoder((8,), size)
    assert [parameter.shape for parameter in by_hand.parameters()] == [value.shape for value in ours.parameters()]
    by_hand.load_state_dict(dict(zip(by_hand.state_dict(), ours.state_dict().values(), strict=True)))
    latent = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(by_hand(latent), ours(latent))


SCALE = """
    --faces 24 --image-size 32 --width 16 --batch-size 8 --epochs 2 --backbone timm:test_resnet --weights none
"""


@NEEDS_PROC
def test_scale_runs_the_command_line_and_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    out, work = tmp_path / "scale.json", tmp_path / "work"
    live = {
        "command": "transfervae train",
        "images_per_second": [1.0],
        "rmse": [0.2],
        "peak_bytes": 2,
        "peak_own_bytes": 1,
        "seconds": 1,
        "samples": [],
    }
    work.mkdir()
    (work / "state.json").write_text(json.dumps({"live epoch of 24 faces": live}))
    options: tuple[str | Path, ...] = ("--work", work, "--out", out)
    options += ("--gigabytes", "0.07", "--steps", "1", "--precision", "float32", *SCALE.split())
    first = run_script_afresh("scale.py", *options)
    assert first.returncode == 0, first.stdout + first.stderr
    assert first.stdout.count("done before") == 1
    parts = json.loads(out.read_text())["parts"]
    assert parts["live epoch of 24 faces"] == live
    assert len(parts["cached epochs of 24 faces"]["images_per_second"]) == 2
    assert parts["cache of 24 faces"]["disk_bytes"] > 0
    assert parts["memory 0.07 GB"]["bytes"] == pytest.approx(2**26, rel=0.01)  # a whole shard
    for part in parts.values():
        assert part["peak_bytes"] >= part["peak_own_bytes"] > 0
    page = run_script("report.py", "--results", tmp_path, "--out", tmp_path)
    assert page.returncode == 0, page.stderr
    assert str(tmp_path) not in (tmp_path / "benchmarks.md").read_text()


def test_coverage_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    work = tmp_path / "partial.jsonl"
    options = ("--pattern", "test_vit", "--processes", "1", "--work", work)
    first = run_script("coverage.py", *options)
    assert first.returncode == 0, first.stderr
    lines = work.read_text().splitlines()
    assert first.stdout.splitlines()[-1] == f"{len(lines)} of {len(lines)} networks work"
    work.write_text("\n".join([*lines[:-2], lines[-2][:40]]))
    again = run_script("coverage.py", *options)
    assert f"{len(lines) - 2} of them done before" in again.stdout
    assert again.stdout.splitlines()[-1] == first.stdout.splitlines()[-1]


def test_coverage_names_what_does_not_work(tmp_path: Path) -> None:
    work = tmp_path / "partial.jsonl"
    work.write_text(json.dumps({"name": "test_vit", "reason": "ValueError: broken"}) + "\n")
    process = run_script("coverage.py", "--pattern", "test_vit", "--processes", "1", "--work", work)
    assert process.returncode == 1
    assert process.stdout.splitlines()[-2] == "test_vit: ValueError: broken"


def test_overhead_compares_creation_and_forward_pass(tmp_path: Path) -> None:
    out = tmp_path / "overhead.json"
    process = run_script("overhead.py", "--names", "test_resnet", "--runs", "2", "--batch", "1", "--out", out)
    assert process.returncode == 0, process.stderr
    results = json.loads(out.read_text())["results"]
    assert [row["operation"] for row in results] == ["create", "forward"]
    for row in results:
        assert row["ours_spread"][0] <= row["ours_seconds"] <= row["ours_spread"][1]
        assert row["ratio"] > 0
