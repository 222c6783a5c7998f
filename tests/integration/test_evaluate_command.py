import json
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.integration.command import TINY, assert_one_line_error, assert_succeeds, run
from transfervae.data import ToyFaces
from transfervae.pictures import write_grid


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    assert_succeeds(run("train", *TINY, "--epochs", "1", "--out", out))
    return out


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    faces = ToyFaces(12, 32)
    for index in range(12):
        write_grid(folder / f"class{index % 2}" / f"{index}.png", [faces[index][None]])
    return folder


def test_a_run_is_measured_on_what_it_held_out(trained: Path) -> None:
    screen = assert_succeeds(run("evaluate", trained, "--parts"))
    for words in ("RMSE of the mean of these images", "Errors by part", "eyes", "report.html", "5 images"):
        assert words in screen
    report = json.loads((trained / "evaluation" / "report.json").read_text())
    result = json.loads((trained / "result.json").read_text())
    for name in ("rmse", "psnr", "ssim", "kl"):
        assert report["figures"][name] == pytest.approx(result["metrics"][name], rel=1e-4)
    with Image.open(trained / "evaluation" / "parts.png") as picture:
        picture.load()


def test_photographs_are_measured_with_their_classes_and_an_extractor(
    trained: Path, photographs: Path, tmp_path: Path
) -> None:
    screen = assert_succeeds(run("evaluate", trained, photographs, "--extractor", "packaged", "--out", tmp_path / "a"))
    assert "Frechet distance of features" in screen
    assert "from 12 images, fewer than its" in " ".join(screen.split())
    report = json.loads((tmp_path / "a" / "report.json").read_text())
    assert report["classes"].keys() == {"class0", "class1"}
    assert len(report["images"]) == 12


def test_reports_are_compared_if_they_were_measured_alike(trained: Path, photographs: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert_succeeds(run("evaluate", trained, photographs, "--metrics", "rmse,psnr", "--out", tmp_path / name))
    reports = [tmp_path / name / "report.json" for name in ("a", "b")]
    assert "PSNR (dB)" in assert_succeeds(run("evaluate", "--compare", *reports))
    assert_succeeds(run("evaluate", trained, "--metrics", "rmse", "--out", tmp_path / "c"))
    process = run("evaluate", "--compare", reports[0], tmp_path / "c" / "report.json")
    assert_one_line_error(process, "cannot be compared", "images is 12 and 5")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--metrics", "psrn"), ("Did you mean 'psnr'",)),
        (("--extractor", "pakaged"), ("Did you mean 'packaged'",)),
        (("nowhere",), ("nowhere",)),
        (("--batch-size", "0"), ("batch_size",)),
    ],
)
def test_wrong_options_are_answered_in_one_line(
    arguments: tuple[str, ...], words: tuple[str, ...], trained: Path
) -> None:
    assert_one_line_error(run("evaluate", trained, *arguments), *words)


def test_parts_need_drawn_faces(trained: Path, photographs: Path) -> None:
    assert_one_line_error(run("evaluate", trained, photographs, "--parts"), "need drawn faces")


def test_a_model_without_a_run_needs_images(trained: Path) -> None:
    assert_one_line_error(run("evaluate", trained / "model"), "name the images to measure")


def test_changed_held_out_images_are_refused(photographs: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert_succeeds(run("train", photographs, *TINY, "--epochs", "1", "--out", out))
    assert_succeeds(run("evaluate", out, "--metrics", "rmse"))
    (photographs / "class0" / "0.png").rename(photographs / "class0" / "renamed.png")
    assert_one_line_error(run("evaluate", out), "not those that the run")


def test_models_are_compared(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        "decoder: {name: resize, width: 16}\ndataset: {faces: 24, batch_size: 8, workers: 0}\n"
        "engine: {accelerator: cpu, precision: 32-true, memory_format: contiguous}\n"
    )
    options = ("--config", tmp_path / "c.yaml", "--image-size", "32", "--epochs", "1", "--out", tmp_path / "out")
    screen = assert_succeeds(run("compare", "--backbone", "packaged@1", "--backbone", "packaged@1,2", *options))
    for words in ("packaged@1,2", "RMSE", "seconds", "Shared features saved", "sheet.png"):
        assert words in screen
    assert_one_line_error(run("compare", "--backbone", "pakaged", *options), "Did you mean 'packaged'")


def test_a_report_does_not_follow_a_link(trained: Path, tmp_path: Path) -> None:
    run_folder = tmp_path / "run"
    shutil.copytree(trained, run_folder, ignore=shutil.ignore_patterns("evaluation"))
    (tmp_path / "elsewhere").mkdir()
    (run_folder / "evaluation").symlink_to(tmp_path / "elsewhere")
    assert_one_line_error(run("evaluate", run_folder, "--metrics", "rmse"), "is a link", "--out")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_names_that_are_not_unicode_are_printed_and_reported(trained: Path, photographs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photographs"
    shutil.copytree(photographs / "class0", folder / "one")
    shutil.copytree(photographs / "class1", folder / os.fsdecode(b"tw\xff"))
    out = tmp_path / os.fsdecode(b"\xffreport")
    screen = assert_succeeds(run("evaluate", trained, folder, "--metrics", "rmse", "--out", out))
    assert "report.html" in screen
    assert "<td>one" in (out / "report.html").read_text()
    assert len(json.loads((out / "report.json").read_text())["classes"]) == 2


def test_images_are_not_counted_twice(trained: Path, photographs: Path, tmp_path: Path) -> None:
    for again in (photographs, photographs / "class0", photographs / "class1" / "1.png"):
        process = run("evaluate", trained, photographs, again, "--out", tmp_path)
        assert_one_line_error(process, "is given twice")


def test_a_run_is_not_put_among_its_images(photographs: Path) -> None:
    process = run("train", photographs, *TINY, "--epochs", "1", "--out", photographs / "runs" / "one")
    assert_one_line_error(process, "would be taken for images")
    assert not (photographs / "runs").exists()


def test_further_figures_are_printed_as_json(trained: Path, photographs: Path, tmp_path: Path) -> None:
    metrics = "[rmse, {name: kd, extractor: 'timm:test_resnet', weights: null}]"
    options = ("--metrics", metrics, "--latents", "--likelihood", "2", "--json", "--out", tmp_path)
    printed = json.loads(assert_succeeds(run("evaluate", trained, photographs, *options)))
    names = {"rmse", "kd", "nll", "linear_probe", "features_nearest_class", "mutual_information"}
    assert names <= printed["figures"].keys()
    assert "images" not in printed
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["figures"] == printed["figures"]
    shutil.copy(tmp_path / "report.json", tmp_path / "other.json")
    both = (tmp_path / "report.json", tmp_path / "other.json")
    compared = json.loads(assert_succeeds(run("evaluate", "--compare", "--json", *both)))
    assert compared["rmse"] == {str(path): printed["figures"]["rmse"] for path in both}
    assert_one_line_error(run("evaluate", trained, "--metrics", "[rmse, {"), "no list in YAML")
    assert_one_line_error(run("evaluate", trained, "--likelihood", "0"), "likelihood_draws")


def test_neighbours_and_outliers_are_named_and_drawn(trained: Path, photographs: Path, tmp_path: Path) -> None:
    image = photographs / "class1" / "1.png"
    out = tmp_path / "nearest.png"
    screen = assert_succeeds(run("nearest", trained, image, photographs, "-n", "3", "--out", out))
    assert screen.count(".png") == 4
    assert str(image) not in screen
    with Image.open(out) as picture:
        assert picture.height > picture.width / 2
    out = tmp_path / "outliers.png"
    screen = assert_succeeds(run("outliers", trained, photographs, "-n", "20", "--out", out))
    assert screen.count("class") == 12
    assert "log-density" in screen
    with Image.open(out) as picture:
        picture.load()
    assert_one_line_error(run("nearest", trained, "nowhere.png", photographs), "no image 'nowhere.png'")
    assert_one_line_error(run("nearest", trained, image, image), "no other image")
    assert_one_line_error(run("outliers", trained, photographs, "-n", "0"), "count")


def test_images_are_not_replaced_by_pictures(trained: Path, photographs: Path) -> None:
    image = photographs / "class1" / "1.png"
    before = image.read_bytes()
    commands = {"nearest": (image, photographs), "outliers": (photographs,), "reconstruct": (image,)}
    for command, arguments in commands.items():
        assert_one_line_error(run(command, trained, *arguments, "--out", image), "is one of the images")
    assert image.read_bytes() == before


def test_reports_are_named_by_their_folders_and_each_once(trained: Path, photographs: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert_succeeds(run("evaluate", trained, photographs, "--metrics", "rmse", "--out", tmp_path / name))
    assert "RMSE" in assert_succeeds(run("evaluate", "--compare", tmp_path / "a", tmp_path / "b"))
    assert_one_line_error(run("evaluate", "--compare", tmp_path / "a", tmp_path / "a"), "each once")


def test_figures_of_draws_are_compared_only_if_they_were_drawn_alike(
    trained: Path, photographs: Path, tmp_path: Path
) -> None:
    for size in ("4", "5"):
        options = ("--metrics", "rmse", "--batch-size", size, "--out", tmp_path / size)
        assert_succeeds(run("evaluate", trained, photographs, *options))
    compared = json.loads(assert_succeeds(run("evaluate", "--compare", "--json", tmp_path / "4", tmp_path / "5")))
    assert compared.keys() == {"rmse"}
