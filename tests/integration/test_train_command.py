import csv
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import transfervae as tv
from tests.integration.command import TINY, assert_succeeds, run
from tests.runs import Small
from transfervae.heads import HEADS


@pytest.fixture(scope="module")
def faces_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("runs") / "faces"
    options = (
        "--backbone",
        "packaged",
        "--dataset.faces",
        60,
        "--image-size",
        "48x64",
        "--epochs",
        2,
        "--dataset.workers",
        1,
    )
    return out, assert_succeeds(run("train", *map(str, options), "--out", out))


def test_run_folder_is_complete(faces_run: tuple[Path, str]) -> None:
    out, _ = faces_run
    for name in ("history", "reconstructions", "samples", "architecture", "reconstructions/epoch_001"):
        with Image.open(out / f"{name}.png") as picture:
            picture.load()
    assert {path.name for path in (out / "checkpoints").iterdir()} == {"best.safetensors", "last.safetensors"}
    assert json.loads((out / "config.json").read_text())["image_size"] == [48, 64]
    assert json.loads((out / "result.json").read_text())["latent_size"] == 16 * 6 * 8
    assert not list(out.rglob("*.tmp"))
    assert not [path for path in out.rglob("*") if path.suffix in {".ckpt", ".pt", ".pth", ".pkl"}]


def test_metrics_hold_one_row_an_epoch(faces_run: tuple[Path, str]) -> None:
    with (faces_run[0] / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    for row in rows:
        assert all(math.isfinite(float(value)) for value in row.values())
        total = sum(float(row[f"train/weighted/{name}"]) for name in ("l1", "features", "kl"))
        assert float(row["train/weighted/kl"]) == pytest.approx(
            float(row["train/term/kl"]) * float(row["weight/kl"]), rel=1e-4
        )
        assert float(row["train/loss"]) == pytest.approx(total, rel=1e-4)


def test_screen_shows_epochs_and_final_figures(faces_run: tuple[Path, str]) -> None:
    out, screen = faces_run
    assert "54 images to train on, 6 held out" in screen
    assert "epoch   2/2" in screen
    assert "images/s" in screen
    for word in ("RMSE of the mean training image", "KL (nats)", "active units", str(out / "reconstructions.png")):
        assert word in screen


def test_reported_figures_are_those_of_the_saved_model(faces_run: tuple[Path, str]) -> None:
    out, _ = faces_run
    vae = tv.TransferVAE.from_pretrained(out / "model")
    faces = tv.data.ToyFaces(60, (48, 64), seed=0, dtype=torch.uint8)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0)).tolist()
    held_out = torch.stack([faces[i] for i in order[:6]]) / 255
    with torch.no_grad():
        rmse = tv.losses.rmse(vae.reconstruct(held_out), held_out).mean().item()
    with (out / "metrics.csv").open() as file:
        best = min(csv.DictReader(file), key=lambda row: float(row["val/loss"]))
    assert json.loads((out / "result.json").read_bytes())["metrics"]["rmse"] == pytest.approx(rmse, rel=1e-5)
    assert float(best["val/rmse"]) == pytest.approx(rmse, rel=1e-2)  # from features in half precision


def test_model_and_checkpoints_hold_no_backbone(faces_run: tuple[Path, str]) -> None:
    out, _ = faces_run
    vae = tv.TransferVAE.from_pretrained(out / "model")
    trainable = 4 * sum(parameter.numel() for parameter in vae.trainable_parameters())
    assert (out / "model" / "model.safetensors").stat().st_size < 1.1 * trainable
    assert (out / "checkpoints" / "last.safetensors").stat().st_size < 3.2 * trainable


def test_reconstruct_writes_pairs_and_errors(faces_run: tuple[Path, str], tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    Image.new("RGB", (120, 90), "teal").save(photo)
    screen = assert_succeeds(run("reconstruct", faces_run[0], photo, "--out", tmp_path / "pairs.png"))
    assert "photo.jpg" in screen
    assert "48x64" in screen
    with Image.open(tmp_path / "pairs.png") as picture:
        assert picture.width > 64
    shutil.copy(photo, tmp_path / "other.jpg")
    assert_succeeds(run("reconstruct", faces_run[0], photo, tmp_path / "other.jpg", "--out", tmp_path / "single"))
    with Image.open(tmp_path / "single" / "0001_other.png") as picture:
        picture.load()


def test_sample_is_reproducible(faces_run: tuple[Path, str], tmp_path: Path) -> None:
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert_succeeds(run("sample", faces_run[0], "-n", "3", "--seed", seed, "--out", tmp_path / f"{name}.png"))
    first, same, other = ((tmp_path / f"{name}.png").read_bytes() for name in "abc")
    assert first == same != other


def test_encode_writes_the_posterior_of_every_image(faces_run: tuple[Path, str], tmp_path: Path) -> None:
    folder = tmp_path / "photos" / "nested"
    folder.mkdir(parents=True)
    for number in range(3):
        Image.new("RGB", (64, 48), (80 * number, 40, 200)).save(folder / f"{number}.png")
    assert_succeeds(run("encode", faces_run[0], tmp_path / "photos", "--out", tmp_path / "latents.npz"))
    vae = tv.TransferVAE.from_pretrained(faces_run[0] / "model")
    images = torch.stack([tv.data.read_image(folder / f"{number}.png") for number in range(3)])
    with torch.no_grad():
        posterior = vae.encode(images)
    assert isinstance(posterior, tv.DiagonalGaussian)
    with np.load(tmp_path / "latents.npz", allow_pickle=False) as latents:
        assert [Path(path).name for path in latents["paths"]] == ["0.png", "1.png", "2.png"]
        torch.testing.assert_close(torch.from_numpy(latents["mean"]), posterior.mean)
        torch.testing.assert_close(torch.from_numpy(latents["logvar"]), posterior.logvar)


def test_summary_counts_parameters(faces_run: tuple[Path, str]) -> None:
    vae = tv.TransferVAE.from_pretrained(faces_run[0] / "model")
    screen = assert_succeeds(run("summary", faces_run[0]))
    assert f"{sum(parameter.numel() for parameter in vae.trainable_parameters()):,}" in screen
    assert f"{sum(parameter.numel() for parameter in vae.backbone.parameters()):,}" in screen
    screen = assert_succeeds(run("summary", "--backbone", "vgg19", "--image-size", "32"))
    assert "20,024,384" in screen
    assert "512 x 1 x 1" in screen


def test_random_weights_are_announced(tmp_path: Path) -> None:
    screen = assert_succeeds(run("train", *TINY, "--epochs", "1", "--out", tmp_path / "run"))
    assert "not pretrained" in screen


@pytest.mark.parametrize("head", HEADS)
def test_every_head_trains_and_resumes(head: str, tmp_path: Path) -> None:
    options = Small(head=head, latent_dim=None, faces=24, epochs=1)
    options.train(tmp_path)
    result = replace(options, epochs=2).train(tmp_path, resume=True)
    assert [row["epoch"] for row in result.rows] == [1, 2]
    assert all(math.isfinite(value) for row in result.rows for value in row.values())
    assert (result.vae.scaling is not None) == (head == "deterministic")


def test_latents_of_a_deterministic_head_are_encoded_without_a_log_variance(tmp_path: Path) -> None:
    options = " ".join(TINY).replace("--head.latent-dim 8", "--head deterministic").split()
    assert "kl 0 " in assert_succeeds(run("train", *options, "--epochs", "1", "--out", tmp_path / "run"))
    Image.new("RGB", (40, 40), "teal").save(tmp_path / "photo.png")
    assert_succeeds(run("encode", tmp_path / "run", tmp_path / "photo.png", "--out", tmp_path / "latents.npz"))
    vae = tv.TransferVAE.from_pretrained(tmp_path / "run" / "model")
    with np.load(tmp_path / "latents.npz", allow_pickle=False) as latents:
        assert latents["mean"].shape == (1, *vae.latent_shape)
        assert sorted(latents) == ["mean", "paths"]


@pytest.mark.parametrize("command", [(), ("train",), ("reconstruct",), ("sample",), ("encode",), ("summary",)])
def test_help_explains_itself(command: tuple[str, ...]) -> None:
    screen = assert_succeeds(run(*command, "--help"))
    assert "Usage" in screen
    assert "--help" in screen


def test_a_run_is_resumed_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(8):
        Image.new("RGB", (32, 32), (30 * number, 90, 160)).save(tmp_path / "photos" / f"{number}.png")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    assert_succeeds(run("train", "photos", *TINY, "--epochs", "1", "--out", "run"))
    monkeypatch.chdir(tmp_path / "elsewhere")
    screen = assert_succeeds(run("train", "--resume", "--epochs", "2", "--out", tmp_path / "run"))
    assert "epoch   2/2" in screen
    assert len((tmp_path / "run" / "val_images.txt").read_text().split()) == 1


def test_two_folders_and_held_out_images_of_their_own_can_be_given(tmp_path: Path) -> None:
    for name in ("one", "two", "val"):
        (tmp_path / name).mkdir()
        for number in range(4):
            Image.new("RGB", (32, 32), (60 * number, 90, 160)).save(tmp_path / name / f"{number}.png")
    folders = (tmp_path / "one", tmp_path / "two", "--val-data", tmp_path / "val")
    screen = assert_succeeds(run("train", *folders, *TINY, "--epochs", "2", "--out", tmp_path / "run"))
    assert "8 images to train on, 4 held out" in screen
