import json
import subprocess
import sys
from pathlib import Path

from tests.integration.command import environment

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "throughput.py"
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
