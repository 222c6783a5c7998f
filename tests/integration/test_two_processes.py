import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.command import TINY, assert_succeeds, environment, run

SCRIPT = """
import hashlib, os, sys
from transfervae.training import EngineOptions, TrainOptions, train

options = TrainOptions(
    backbone="timm:test_resnet", weights=None, image_size=(32, 32), latent_dim=8, width=32, faces=50, batch_size=4,
    epochs=2,
)
engine = EngineOptions(accelerator="cpu", devices=2, strategy="ddp", workers=0)
out = sys.argv[1]
result = train(options, out, engine=engine)
rank = os.environ.get("LOCAL_RANK", "0")

def digest(state):
    return hashlib.sha256(b"".join(state[name].numpy().tobytes() for name in sorted(state))).hexdigest()

if rank == "0":
    from transfervae.training.checkpoint_io import SafetensorsIO
    state = SafetensorsIO().load_checkpoint(out + "/checkpoints/last.safetensors")["state_dict"]
else:
    state = result.vae.trainable_state()
with open(f"{out}/rank{rank}", "w") as file:
    rows = [{k: v for k, v in row.items() if k != "images_per_second"} for row in result.rows]
    file.write(digest(state) + " " + repr(rows))
"""


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ddp")
    script = folder / "script.py"
    script.write_text(SCRIPT)
    process = subprocess.run(
        [sys.executable, script, folder / "run"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return folder / "run"


def test_every_rank_ends_with_the_same_weights_and_figures(two_ranks: Path) -> None:
    first, second = ((two_ranks / f"rank{rank}").read_text() for rank in (0, 1))
    assert first == second


def test_two_ranks_learn_from_different_noise_and_images(two_ranks: Path, tmp_path: Path) -> None:
    options = (*TINY, "--faces", "50", "--batch-size", "8", "--epochs", "2")
    assert_succeeds(run("train", *options, "--out", tmp_path / "one"))
    alone = (tmp_path / "one" / "model" / "model.safetensors").read_bytes()
    assert alone != (two_ranks / "model" / "model.safetensors").read_bytes()


def test_the_command_prints_once(tmp_path: Path) -> None:
    options = (*TINY, "--epochs", "1", "--devices", "2", "--strategy", "ddp")
    screen = assert_succeeds(run("train", *options, "--out", tmp_path / "run"))
    assert screen.count("epoch   1/1") == 1
    assert screen.count("RMSE of the mean training image") == 1
    assert "unused parameters" not in screen
