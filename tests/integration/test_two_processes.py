import sys
from pathlib import Path

import pytest

from tests.integration.command import TINY, assert_succeeds, run, run_python

SCRIPT = """
import hashlib, os, sys
from pathlib import Path
from rich.console import Console
import transfervae as tv
from tests.extension import mine
from transfervae.training import is_first_process

model = {"backbone": tv.Spec("timm:test_resnet", weights=None), "image_size": 32, "latent_dim": 8}
engine = {"accelerator": "cpu", "devices": 2, "strategy": "ddp"}
out = sys.argv[1]
dataset = {"faces": 50, "batch_size": 4, "workers": 0}
console = Console() if is_first_process() else Console(quiet=True)
result = tv.train(model, out=out, epochs=2, dataset=dataset, engine=engine, console=console)
rank = os.environ.get("LOCAL_RANK", "0")

def digest(state):
    return hashlib.sha256(b"".join(state[name].numpy().tobytes() for name in sorted(state))).hexdigest()

if rank == "0":
    from transfervae.training._checkpoint_io import SafetensorsIO
    state = SafetensorsIO().load_checkpoint(out + "/checkpoints/last.safetensors")["state_dict"]
else:
    state = result.vae.trainable_state()
with open(f"{out}/rank{rank}", "w") as file:
    rows = [{k: v for k, v in row.items() if k != "images_per_second"} for row in result.rows]
    file.write(digest(state) + " " + repr(rows))

mine.ENGINE.update(devices=2, strategy="ddp")
mine.train(Path(out).parent / "mine", epochs=2)
"""


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ddp")
    script = folder / "script.py"
    script.write_text(SCRIPT)
    screen = assert_succeeds(run_python(script, folder / "run", path=[Path.cwd(), *sys.path]))
    assert screen.count("epoch   2/2") == 1
    return folder / "run"


def test_every_rank_ends_with_the_same_weights_and_figures(two_ranks: Path) -> None:
    first, second = ((two_ranks / f"rank{rank}").read_text() for rank in (0, 1))
    assert first == second


def test_terms_with_optimisers_of_their_own_train_on_two_ranks(two_ranks: Path) -> None:
    assert len((two_ranks.parent / "mine" / "metrics.csv").read_text().splitlines()) == 3


def test_two_ranks_learn_from_different_noise_and_images(two_ranks: Path, tmp_path: Path) -> None:
    options = (*TINY, "--dataset.faces", "50", "--dataset.batch-size", "8", "--epochs", "2")
    assert_succeeds(run("train", *options, "--out", tmp_path / "one"))
    alone = (tmp_path / "one" / "model" / "model.safetensors").read_bytes()
    assert alone != (two_ranks / "model" / "model.safetensors").read_bytes()


def test_torchrun_starts_the_processes_too(tmp_path: Path) -> None:
    command = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "transfervae", "train"]
    options = " ".join(TINY).replace("--engine.devices 1", "--engine.devices 2 --engine.strategy ddp").split()
    screen = assert_succeeds(run_python(*command, *options, "--epochs", "2", "--out", str(tmp_path / "run")))
    assert screen.count("epoch   2/2") == 1
    assert "unused parameters" not in screen
    assert screen.count("RMSE of the mean training image") == 1
    assert len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) == 3
