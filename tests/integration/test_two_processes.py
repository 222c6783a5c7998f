import json
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.integration.command import TINY, assert_succeeds, run, run_python

OPTIONS = (*TINY, "--dataset.faces", "50", "--dataset.batch-size", "4", "--epochs", "2")
RANKS = ("--engine.devices", "2", "--engine.strategy", "ddp")

MEASURED = ("--parts", "--latents", "--metrics", "rmse,ssim,information,active_units")

SCRIPT = """
import hashlib, os, sys
from pathlib import Path
import torch
from tests.extension import mine
from transfervae.__main__ import main
from transfervae.training._checkpoint_io import SafetensorsIO
from tests.integration.test_two_processes import MEASURED

folder, rank = Path(sys.argv[1]), os.environ["LOCAL_RANK"]
def transfervae(*words):
    sys.argv[1:] = map(str, words)
    try:
        main()
    except SystemExit as ended:
        if ended.code:
            raise

transfervae("train", *sys.argv[2:], "--out", folder / "run")
torch.distributed.barrier()  # the first process writes what the run has found after the others are done
transfervae("evaluate", folder / "run", *MEASURED, "--devices", "2", "--out", folder / "report")
mine.ENGINE.update(devices=2, strategy="ddp")
result = mine.train(folder / "mine", epochs=2)
if rank == "0":  # the other rank has no file to restore the best epoch from, and is left with the last
    state = SafetensorsIO().load_checkpoint(folder / "mine" / "checkpoints" / "last.safetensors")["state_dict"]
else:
    state = result.vae.trainable_state()
digest = hashlib.sha256(b"".join(state[name].numpy().tobytes() for name in sorted(result.vae.trainable_state())))
rows = [{k: v for k, v in row.items() if k != "images_per_second"} for row in result.rows]
(folder / f"rank{rank}").write_text(digest.hexdigest() + " " + repr(rows))
"""


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of two trainings on two ranks that torchrun has started, and what they printed."""
    folder = tmp_path_factory.mktemp("ddp")
    script = folder / "script.py"
    script.write_text(SCRIPT)
    torchrun = ("-m", "torch.distributed.run", "--nproc-per-node", "2", script)
    screen = assert_succeeds(run_python(*torchrun, folder, *OPTIONS, *RANKS, path=[Path.cwd(), *sys.path]))
    return folder, screen


def test_every_rank_ends_with_the_same_weights_and_figures(two_ranks: tuple[Path, str]) -> None:
    first, second = ((two_ranks[0] / f"rank{rank}").read_text() for rank in (0, 1))
    assert first == second


def test_the_command_line_prints_once(two_ranks: tuple[Path, str]) -> None:
    folder, screen = two_ranks
    assert screen.count("epoch   2/2") == 1
    assert "unused parameters" not in screen
    assert screen.count("RMSE of the mean training image") == 1
    for run_folder in ("run", "mine"):
        assert len((folder / run_folder / "metrics.csv").read_text().splitlines()) == 3


def test_two_ranks_learn_from_different_noise_and_images(two_ranks: tuple[Path, str], tmp_path: Path) -> None:
    assert_succeeds(run("train", *OPTIONS, "--dataset.batch-size", "8", "--out", tmp_path / "one"))
    alone = (tmp_path / "one" / "model" / "model.safetensors").read_bytes()
    assert alone != (two_ranks[0] / "run" / "model" / "model.safetensors").read_bytes()


def test_two_processes_measure_what_one_measures(two_ranks: tuple[Path, str], tmp_path: Path) -> None:
    folder, screen = two_ranks
    assert screen.count("Errors by part") == 1
    assert_succeeds(run("evaluate", folder / "run", *MEASURED, "--out", tmp_path))
    one, two = (json.loads((place / "report.json").read_text()) for place in (tmp_path, folder / "report"))
    assert two["protocol"] == one["protocol"] | {"processes": 2}
    for report in (one, two):
        del report["figures"]["draw_rmse"]  # each process has draws of its own
    assert two["figures"] == pytest.approx(one["figures"], rel=1e-4)
    assert [entry["name"] for entry in two["images"]] == [entry["name"] for entry in one["images"]]
    assert two["parts"]["eyes"] == pytest.approx(one["parts"]["eyes"], rel=1e-4)
    assert np.allclose(two["error_map"], one["error_map"], atol=1e-6)
