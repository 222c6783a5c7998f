import json
import subprocess
import sys
from pathlib import Path

from tests.integration.command import environment

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SCRIPT = BENCHMARKS / "throughput.py"
OPERATIONS = {"backbone", "encode", "decode", "reconstruct", "training step"}


def benchmark(*options: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, SCRIPT, "--device", "cpu", "--runs", "2", "--warmup", "1", *options]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300, check=False)


def test_benchmark_prints_a_table_and_writes_json(tmp_path: Path) -> None:
    out = tmp_path / "throughput.json"
    options = (
        "--backbone",
        "timm:test_resnet",
        "--size",
        "32",
        "48",
        "--batch",
        "2",
        "--precision",
        "float32",
        "bfloat16",
    )
    process = benchmark(*options, "--out", out)
    assert process.returncode == 0, process.stderr
    report = json.loads(out.read_text())
    assert report["machine"]["versions"]["torch"]
    assert len(report["results"]) == 4 * len(OPERATIONS)
    assert {row["operation"] for row in report["results"]} == OPERATIONS
    for row in report["results"]:
        assert row["slowest"] <= row["images_per_second"] <= row["fastest"]
        assert row["flops_per_second"] > 0
        assert row["peak_memory"] > 0
    assert len(process.stdout.splitlines()) == 1 + len(report["results"])


def test_benchmark_runs_without_the_packages_of_the_train_extra(tmp_path: Path) -> None:
    blocker = "import sys; sys.modules.update(dict.fromkeys(('rich', 'typer', 'pytorch_lightning', 'matplotlib')))"
    program = f"{blocker}; sys.argv = ['x', '--device', 'cpu', '--runs', '1', '--backbone', 'timm:test_resnet', "
    program += f"'--size', '32', '--batch', '1']; import runpy; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    process = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert process.returncode == 0, process.stderr


def run_script(name: str, *options: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, BENCHMARKS / name, *options]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300, check=False)


def test_coverage_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    work = tmp_path / "partial.jsonl"
    options = ("--pattern", "test_", "--processes", "1", "--work", work)
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
