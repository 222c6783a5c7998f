import csv
import json
import resource
import shutil
import signal
import time
from functools import partial
from pathlib import Path
from subprocess import TimeoutExpired

import pytest
from safetensors.torch import load_file

from tests.integration.command import TINY, assert_one_line_error, assert_succeeds, run, start

EPOCHS = 4
RUN = (*TINY, "--dataset.faces", "80", "--epochs", str(EPOCHS), "--dataset.workers", "1")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert_succeeds(run("train", *RUN, "--out", out))
    return out


def rows_of(out: Path) -> list[dict[str, str]]:
    if not (out / "metrics.csv").exists():
        return []
    with (out / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if k != "images_per_second"} for row in csv.DictReader(file)]


def assert_same_run(out: Path, other: Path) -> None:
    assert rows_of(out) == rows_of(other)
    assert (out / "model" / "model.safetensors").read_bytes() == (other / "model" / "model.safetensors").read_bytes()
    assert (out / "reconstructions.png").read_bytes() == (other / "reconstructions.png").read_bytes()
    last = Path("checkpoints", "last.safetensors")
    one, two = (load_file(folder / last) for folder in (out, other))
    assert one.keys() == two.keys() != set()
    assert all(one[name].equal(two[name]) for name in one)


def wait_for_epoch(out: Path, epoch: int) -> None:
    deadline = time.monotonic() + 120
    while len(rows_of(out)) < epoch:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_ctrl_c_says_how_to_go_on_and_resumes_to_the_same_result(uninterrupted: Path, tmp_path: Path) -> None:
    out = tmp_path / "stopped [red] ü"
    process = start("train", *RUN, "--out", out)
    wait_for_epoch(out, 2)
    process.send_signal(signal.SIGINT)
    try:
        screen, errors = process.communicate(timeout=60)
    except TimeoutExpired:
        process.kill()
        raise
    assert process.returncode == 130, screen + errors
    assert f"transfervae train --resume --out '{out}'" in screen
    assert "Traceback" not in screen + errors
    assert_succeeds(run("train", "--resume", "--out", out))
    assert_same_run(out, uninterrupted)


def test_a_full_disk_ends_in_one_line_and_the_run_goes_on_later(uninterrupted: Path, tmp_path: Path) -> None:
    out = tmp_path / "full"
    limit = (uninterrupted / "checkpoints" / "last.safetensors").stat().st_size // 2
    refuse_large_files = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, limit))
    process = run("train", *RUN, "--out", out, before=refuse_large_files)
    assert_one_line_error(process, "cannot be written")
    assert not list(out.rglob("*.tmp"))
    assert_succeeds(run("train", "--resume", "--out", out))
    assert_same_run(out, uninterrupted)


def test_two_trainings_do_not_share_a_folder(tmp_path: Path) -> None:
    out = tmp_path / "shared"
    process = start("train", *RUN, "--epochs", "500", "--out", out)
    try:
        wait_for_epoch(out, 1)
        assert_one_line_error(run("train", "--resume", "--out", out), "Another training")
    finally:
        process.kill()
        process.communicate()


def test_a_resumed_run_keeps_its_engine(uninterrupted: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(uninterrupted, out)
    before = json.loads((out / "config.json").read_text())["engine"]
    assert_succeeds(
        run("train", "--resume", "--epochs", str(EPOCHS + 1), "--engine.precision", "bf16-mixed", "--out", out)
    )
    after = json.loads((out / "config.json").read_text())["engine"]
    assert after == {**before, "precision": "bf16-mixed"}
    assert json.loads((out / "config.json").read_text())["dataset"]["workers"] == 1
    assert len(rows_of(out)) == EPOCHS + 1


def test_resume_accepts_the_same_options_and_refuses_others(uninterrupted: Path) -> None:
    screen = assert_succeeds(run("train", *RUN, "--out", uninterrupted, "--resume"))
    assert "held out" in screen
    process = run("train", "--resume", "--head.latent-dim", "9", "--out", uninterrupted)
    assert_one_line_error(process, "'latent_dim': 9", "instead of")
    process = run("train", "--resume", "--epochs", "1", "--out", uninterrupted)
    assert_one_line_error(process, "can only be lengthened")
