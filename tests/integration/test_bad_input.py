import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import transfervae as tv
from tests.integration.command import TINY, assert_one_line_error, assert_succeeds, run
from tests.samples import save_config


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "model"
    tv.build_vae(
        tv.Spec("timm:test_resnet", weights=None), image_size=32, latent_dim=8, decoder=tv.Spec("resize", width=32)
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(6):
        Image.new("RGB", (40, 40), (40 * number, 90, 160)).save(folder / f"{number}.png")
    return folder


def train(*options: str | Path, out: Path) -> tuple[str | Path, ...]:
    return ("train", *options, *TINY, "--epochs", "1", "--out", out)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--backbone", "vg19"), ("'vg19'", "'vgg19'")),
        (("--backbone", "resnet50"), ("timm:resnet50",)),
        (("--backbone", "timm:resnt50"), ("'resnet50'",)),
        (("--backbone", "vgg19", "--backbone.node", "block5_pol"), ("'block5_pool'",)),
        (("--backbone.node", "9"), ("node", "0, 1, 2, 3, 4")),
        (("--decoder", "resise"), ("'resize'",)),
        (("--objective", "rsme,kl"), ("'rmse'",)),
        (("--objective.kl.schedule", "cycle"), ("'cyclic'",)),
        (("--backbone", "vgg19", "--image-size", "20"), ("20x20", "32x32")),
        (("--backbone", "timm:test_vit", "--image-size", "100"), ("100x100", "96x96")),
        (("--backbone", "timm:test_coatnet", "--image-size", "100"), ("100x100", "created for: 96x96")),
        (("--image-size", "wide"), ("image size", "'wide'")),
        (("--head.latent-dim", "0"), ("latent_dim", "0")),
        (("--decoder.width", "30"), ("width", "multiple of 8")),
        (("--dataset.val", "1.5"), ("val", "1.5")),
        (("--optimizer.learning-rate", "-1"), ("learning_rate",)),
        (("--optimizer.learning-rate", "inf"), ("learning_rate",)),
        (("--objective.kl.weight", "-1"), ("weight",)),
        (("--objective.kl.weight", "inf"), ("weight",)),
        (("--dataset.workers", "-1"), ("workers",)),
        (("--seed", "99999999999999999999"), ("seed",)),
        (("--epochs", "0"), ("epochs",)),
        (("--dataset.faces", "1"), ("at least 2",)),
        (("--engine.precision", "7-bit"), ("engine", "7-bit")),
        (("--engine.accelerator", "warp"), ("engine", "warp")),
        (("--engine.strategy", "magic"), ("engine", "magic")),
        (("--backbone.weights", "nowhere.pth"), ("nowhere.pth",)),
    ],
)
def test_wrong_options(options: tuple[str, ...], words: tuple[str, ...], tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert_one_line_error(run("train", *TINY, *options, "--out", out), *words)
    assert not out.exists()


def test_missing_folder(tmp_path: Path) -> None:
    assert_one_line_error(run(*train(tmp_path / "nowhere", out=tmp_path / "run")), "nowhere")


def test_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "void").mkdir()
    assert_one_line_error(run(*train(tmp_path / "void", out=tmp_path / "run")), "void", "empty")


def test_folder_without_images(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "notes.txt").write_text("no image")
    assert_one_line_error(run(*train(tmp_path / "texts", out=tmp_path / "run")), "texts", "no images", "*.png")


def test_bad_files_are_named_and_can_be_skipped(photos: Path, tmp_path: Path) -> None:
    whole = (photos / "0.png").read_bytes()
    (photos / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (photos / "zero.jpg").touch()
    (photos / "text.webp").write_text("not an image")
    process = run(*train(photos, out=tmp_path / "run"))
    assert_one_line_error(process, "truncated.png", "zero.jpg", "text.webp", "--skip-bad")
    screen = assert_succeeds(run(*train(photos, "--dataset.skip-bad", out=tmp_path / "run")))
    assert "3 unreadable files skipped" in screen


def test_folder_with_another_run(tmp_path: Path) -> None:
    assert_succeeds(run(*train(out=tmp_path / "run")))
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert_one_line_error(run(*train(out=tmp_path / "run")), "another run", "--resume")
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}


@pytest.mark.parametrize("recipe", ["seed", "sharp", "sharp-gan"])
def test_a_run_that_diverges_says_so_and_saves_nothing_wrong(recipe: str, tmp_path: Path) -> None:
    given = train("--optimizer.learning-rate", "1e30", out=tmp_path / "run")
    process = run(*given, "--recipe", recipe)
    assert_one_line_error(process, "diverged", "learning rate")
    assert not (tmp_path / "run" / "model").exists()
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert_succeeds(run(*train(out=tmp_path / "run")))


def test_pictures_and_latents_have_their_own_suffix(model: Path, photos: Path, tmp_path: Path) -> None:
    assert_one_line_error(run("sample", model, "--out", tmp_path / "samples.jpg"), ".png")
    assert_one_line_error(run("encode", model, photos, "--out", tmp_path / "latents.txt"), ".npz")
    assert_one_line_error(run("reconstruct", model, photos, "--out", tmp_path / "pairs.jpg"), ".png")


def test_paths_are_printed_as_they_are(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "[/x] [red]s.png"
    assert str(out) in assert_succeeds(run("sample", model, "-n", "1", "--out", out))


def test_nothing_to_resume(tmp_path: Path) -> None:
    assert_one_line_error(run("train", "--resume", "--out", tmp_path / "run"), "no run to resume")


def test_output_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    assert_one_line_error(run(*train(out=tmp_path / "run")), "is a file")


def truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def replace_by_foreign(folder: Path) -> None:
    save_file({"weight": torch.zeros(3)}, folder / "model.safetensors")


def garble_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def drop_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def edit_config(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"image_size": [64, 64]}))


def forge_fingerprint(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["backbone"]["fingerprint"] = "0" * 64
    save_config(folder, config)


def change_node(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["backbone"]["node"] = 3
    save_config(folder, config)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (truncate, ("model.safetensors", "damaged")),
        (replace_by_foreign, ("model.safetensors", "not written by")),
        (garble_config, ("config.json", "JSON")),
        (drop_weights, ("model.safetensors",)),
        (edit_config, ("config.json", "is not the one that was saved with model.safetensors")),
        (forge_fingerprint, ("fingerprint", "000000000000")),
        (change_node, ("test_resnet at 3", "fingerprint")),
        (shutil.rmtree, ("no model folder",)),
    ],
)
def test_harmed_models(harm: Callable[[Path], None], words: tuple[str, ...], model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(model, copy)
    harm(copy)
    assert_one_line_error(run("sample", copy, "--out", tmp_path / "samples.png"), *words)


def test_commands_with_bad_images(model: Path, photos: Path, tmp_path: Path) -> None:
    (photos / "broken.png").write_bytes(b"broken")
    out = tmp_path / "latents.npz"
    assert_one_line_error(run("encode", model, photos, "--out", out), "broken.png")
    assert_one_line_error(run("reconstruct", model, tmp_path / "missing.png"), "missing.png")
    assert "1 unreadable" in assert_succeeds(run("encode", model, photos, "--skip-bad", "--out", out))


def test_a_device_that_is_not_there(model: Path) -> None:
    assert_one_line_error(run("sample", model, "--device", "warp:9"), "warp:9")


def test_samples_below_one(model: Path, tmp_path: Path) -> None:
    assert_one_line_error(run("sample", model, "-n", "0", "--out", tmp_path / "samples.png"), "count")


def test_summary_needs_one_source(model: Path) -> None:
    assert_one_line_error(run("summary"), "--backbone")
    assert_one_line_error(run("summary", model, "--backbone", "vgg19"), "--backbone")
