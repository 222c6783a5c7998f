import csv
import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import transfervae as tv
from tests.extension import mine
from tests.integration.command import environment, run
from tests.warm import Warm
from transfervae.cache import FeatureCache
from transfervae.errors import CheckpointError, RunFolderError
from transfervae.training import TrainResult
from transfervae.training._checkpoint_io import SafetensorsIO

PARTS = ("head", "decoder", "prior")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    return mine.train(tmp_path_factory.mktemp("runs") / "mine")


def rows_of(folder: Path) -> list[dict[str, str]]:
    if not (folder / "metrics.csv").exists():
        return []
    with (folder / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if k != "images_per_second"} for row in csv.DictReader(file)]


def test_every_term_and_metric_has_its_columns(trained: TrainResult) -> None:
    row = rows_of(trained.folder)[-1]
    for term in ("rmse", "kl", "sharpness", "critic"):
        assert {f"train/term/{term}", f"val/term/{term}", f"weight/{term}"} <= row.keys()
    assert {"val/rmse", "val/LargestError"} <= row.keys()
    assert [float(row["weight/critic"]) for row in rows_of(trained.folder)] == [0, 1e-3, 1e-3, 1e-3]
    best = min(rows_of(trained.folder), key=lambda row: float(row["val/LargestError"]))
    assert float(best["epoch"]) == trained.best["epoch"]


def test_terms_are_trained_by_their_own_and_by_the_model_s_optimiser(trained: TrainResult) -> None:
    checkpoint = SafetensorsIO().load_checkpoint(trained.folder / "checkpoints" / "last.safetensors")
    assert len(checkpoint["optimizer_states"]) == 2
    weights = checkpoint["state_dict"]
    assert weights["objective.terms.sharpness.term.scale"] != 0
    assert weights["objective.terms.critic.term.judge.0.weight"].isfinite().all()
    steps = [state["step"].item() for state in checkpoint["optimizer_states"][1]["state"].values()]
    assert set(steps) == {3 * 6}  # three epochs of six batches, after the first
    assert not [name for name in weights if "network" in name or "backbone" in name]


def test_the_run_folder_has_pictures_cache_and_names(trained: TrainResult) -> None:
    for name in ("history", "reconstructions", "samples", "architecture"):
        with Image.open(trained.folder / f"{name}.png") as picture:
            picture.load()
    assert len(FeatureCache(trained.folder / "features")) == 60
    names = (trained.folder / "val_images.txt").read_text().split("\n")
    assert len(names) == 13
    assert names[0].startswith("item ")
    config = json.loads((trained.folder / "config.json").read_text())
    assert config["head"] == {"name": "own:TanhHead"}
    assert config["data"] == "own:Stripes"
    assert "own:critic" in config["objective"]


def test_a_killed_run_resumes_to_the_same_result(trained: TrainResult, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    process = Warm(["-m", "tests.extension.mine", out], environment())
    deadline = time.monotonic() + 120
    while len(rows_of(out)) < 2:
        assert time.monotonic() < deadline
        assert process.is_running(), process.communicate()
        time.sleep(0.01)
    process.kill()
    process.communicate()
    mine.train(out, resume=True)
    assert rows_of(out) == rows_of(trained.folder)
    for name in ("model/model.safetensors", "checkpoints/last.safetensors"):
        one, other = load_file(out / name), load_file(trained.folder / name)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_the_model_loads_with_its_parts_and_not_without(trained: TrainResult) -> None:
    parts: dict[str, Any] = mine.make_parts()
    backbone = parts.pop("backbone")
    for missing in PARTS:
        given = {name: part for name, part in parts.items() if name != missing}
        with pytest.raises(CheckpointError, match=f"its {missing} is .*{missing}="):
            tv.TransferVAE.from_pretrained(trained.folder / "model", backbone=backbone, **given)
    again = tv.TransferVAE.from_pretrained(trained.folder / "model", **parts)
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(again.reconstruct(images), trained.vae.reconstruct(images))
    assert torch.equal(
        again.trainable_state()["head.moments.weight"], trained.vae.trainable_state()["head.moments.weight"]
    )


def test_the_prior_is_fitted_and_saved_with_the_model(trained: TrainResult, tmp_path: Path) -> None:
    vae: Any = trained.vae
    images = torch.stack([mine.Stripes()[index]["image"][:, :32, :32] for index in range(8)])
    with torch.no_grad():
        vae.prior.fit(vae.encode(images).mode())
        assert vae.prior.log_prob(vae.encode(images).mode()).isfinite().all()
    vae.save_pretrained(tmp_path)
    parts: dict[str, Any] = mine.make_parts()
    again: Any = tv.TransferVAE.from_pretrained(tmp_path, **parts)
    first, second = (model.sample(3, generator=torch.Generator().manual_seed(5)) for model in (vae, again))
    assert torch.equal(first, second)
    assert torch.equal(again.prior.low, vae.prior.low)


def test_the_command_line_says_that_it_cannot_resume_such_a_run(trained: TrainResult) -> None:
    process = run("train", "--resume", "--out", trained.folder)
    assert process.returncode == 2
    assert "parts of your own" in process.stderr
    assert "TanhHead" in process.stderr


def test_another_objective_is_refused_on_resuming(trained: TrainResult) -> None:
    with pytest.raises(RunFolderError, match="began with other options"):
        tv.train(tv.Spec("timm:test_resnet", weights=None), None, out=trained.folder, resume=True)
