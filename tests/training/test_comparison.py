import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import transfervae as tv
from tests.runs import Small
from transfervae.errors import FileWriteError, InvalidOptionError, RunFolderError, UnknownNameError, UnknownOptionError
from transfervae.evaluation import Report
from transfervae.files import read_json
from transfervae.pictures import write_grid
from transfervae.training import Comparison

SMALL = Small(faces=24)


def configuration(node: int, **changes: Any) -> dict[str, Any]:
    small = Small(faces=24, node=node)
    engine = {name: value for name, value in small.engine.items() if name != "cache"}
    return {"model": small.model, "dataset": small.dataset, "engine": engine, "epochs": 1, **changes}


CONFIGURATIONS = {"one": configuration(1), "longer": configuration(1, epochs=2), "two": configuration(2)}


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    out = tmp_path_factory.mktemp("comparison")
    tv.compare({"one": CONFIGURATIONS["one"]}, out=out, metrics=("rmse", "psnr"), parts=True)  # what was done goes on
    return tv.compare(CONFIGURATIONS, out=out, seeds=2, metrics=("rmse", "psnr"), parts=True)


def test_every_configuration_is_trained_with_every_seed(comparison: Comparison) -> None:
    assert [(row.name, row.seed) for row in comparison.rows] == [
        (name, seed) for seed in (0, 1) for name in CONFIGURATIONS
    ]
    for row in comparison.rows:
        folder = comparison.folder / "runs" / f"{row.name}-{row.seed}"
        report = Report.read(folder / "evaluation" / "report.json")
        assert report.figures["rmse"] == row.figures["rmse"]
        assert "removed_eyes" in row.figures
        assert row.seconds > 0
        held_out = (folder / "val_images.txt").read_text().split()
        assert len(held_out) == 2 * len(report.images)  # "item 7"


def test_the_same_images_are_held_out_for_all_models_of_a_seed(comparison: Comparison) -> None:
    for seed in (0, 1):
        hashes = {
            Report.read(comparison.folder / "runs" / f"{name}-{seed}" / "evaluation" / "report.json").protocol[
                "images_sha256"
            ]
            for name in CONFIGURATIONS
        }
        assert len(hashes) == 1


def test_features_are_computed_once_for_those_that_share_them(comparison: Comparison) -> None:
    caches = [path for path in (comparison.folder / "features").iterdir() if path.is_dir()]
    assert len(caches) == 2
    assert comparison.saved_seconds > 0
    one, longer = (row for row in comparison.rows[:2])
    assert one.feature_seconds == longer.feature_seconds
    assert one.cache_bytes == longer.cache_bytes > 0


def test_tables_and_pictures_are_written(comparison: Comparison) -> None:
    summary = comparison.summary()
    values = [row.figures["rmse"] for row in comparison.rows if row.name == "one"]
    assert summary["one"]["rmse"][0] == pytest.approx(sum(values) / 2)
    written = json.loads((comparison.folder / "comparison.json").read_text())
    assert written["summary"]["two"]["psnr"]["mean"] == summary["two"]["psnr"][0]
    with (comparison.folder / "comparison.csv").open() as file:
        assert [row["configuration"] for row in csv.DictReader(file)] == list(CONFIGURATIONS)
    for name in ("sheet.png", "quality.png"):
        assert (comparison.folder / name).stat().st_size > 1000


def test_what_is_done_is_not_done_again(comparison: Comparison) -> None:
    before = {path: path.stat().st_mtime_ns for path in comparison.folder.rglob("*.safetensors")}
    again = tv.compare(CONFIGURATIONS, out=comparison.folder, seeds=2, metrics=("rmse", "psnr"), parts=True)
    assert again.rows == comparison.rows
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize(
    ("configurations", "words"),
    [
        ({}, "at least one"),
        ({"a/b": configuration(1)}, "cannot be named"),
        (
            {"a": configuration(1), "b": {**configuration(1), "model": {**SMALL.model, "image_size": 48}}},
            "one image size",
        ),
        ({"a": {"epochs": 1}}, "model's arguments"),
    ],
)
def test_what_cannot_be_compared_is_refused(configurations: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidOptionError, match=words):
        tv.compare(configurations, out=tmp_path)


def test_a_changed_configuration_does_not_give_the_figures_of_the_old_one(comparison: Comparison) -> None:
    changed = {"one": {**CONFIGURATIONS["one"], "objective": "l1,kl"}}
    with pytest.raises(RunFolderError, match="began with other options: objective"):
        tv.compare(changed, out=comparison.folder, metrics=("rmse", "psnr"), parts=True)


def test_options_that_training_does_not_have_are_named(tmp_path: Path) -> None:
    with pytest.raises(UnknownOptionError, match="Did you mean 'epochs'"):
        tv.compare({"a": configuration(1, epoch=3)}, out=tmp_path)


@pytest.mark.parametrize(
    ("name", "kind"), [("comparison.json", "file"), ("sheet.png", "link"), ("runs", "file"), ("runs", "link")]
)
def test_a_comparison_replaces_nothing_of_the_user_s(name: str, kind: str, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "out").mkdir()
    path = tmp_path / "out" / name
    path.symlink_to(tmp_path / "mine") if kind == "link" else path.write_text("mine")
    with pytest.raises((RunFolderError, FileWriteError)):
        tv.compare({"a": configuration(1)}, out=tmp_path / "out", metrics=("rmse",))
    assert path.read_text() == "mine"
    assert path.is_symlink() == (kind == "link")


def pictures(folder: Path, shade: float) -> None:
    for index in range(12):
        write_grid(folder / f"{index:02d}.png", [torch.full((1, 3, 32, 32), shade * (index + 1) / 12)])


def test_figures_of_images_that_have_changed_are_not_put_beside_new_ones(tmp_path: Path) -> None:
    pictures(tmp_path / "images", 1.0)
    options: dict[str, Any] = {"out": tmp_path / "out", "metrics": ("psnr",)}
    first = tv.compare({"a": configuration(1)}, tmp_path / "images", **options)
    assert {"psnr", "rmse"} <= first.rows[0].figures.keys()
    pictures(tmp_path / "images", 0.5)
    with pytest.raises(RunFolderError, match="images have changed"):
        tv.compare({"a": configuration(1), "b": configuration(2)}, tmp_path / "images", **options)


def test_models_that_hold_out_other_images_are_not_compared(tmp_path: Path) -> None:
    other = {**configuration(1), "dataset": {**SMALL.dataset, "val": 0.5}}
    with pytest.raises(InvalidOptionError, match="hold out the same images"):
        tv.compare({"a": configuration(1), "b": other}, out=tmp_path)


def test_a_recipe_s_backbone_is_read_where_the_recipe_reads_it(tmp_path: Path) -> None:
    given = {**configuration(1), "recipe": "sharp"}
    given["model"] = {"backbone": tv.Spec("timm:test_resnet", weights=None), "image_size": 32}
    compared = tv.compare({"sharp": given}, out=tmp_path, metrics=("rmse",))
    config = read_json(compared.folder / "runs" / "sharp-0" / "config.json")
    assert config["backbone"]["node"] == tv.backbones.fine_nodes("timm:test_resnet")


@pytest.mark.parametrize("text", ['{"a": 1}', '{"asked": {}, "mine": 1}', '{"asked": 1, "my": "precious"}', "[]"])
def test_a_row_that_no_comparison_wrote_is_kept(text: str, tmp_path: Path) -> None:
    row = tmp_path / "runs" / "a-0" / "row.json"
    row.parent.mkdir(parents=True)
    row.write_text(text)
    with pytest.raises(RunFolderError, match="not what a comparison wrote"):
        tv.compare({"a": configuration(1)}, out=tmp_path, metrics=("rmse",))
    assert row.read_text() == text


@pytest.mark.parametrize("place", ["runs/a-0", "runs/a-0/evaluation"])
def test_links_within_a_comparison_are_not_followed(place: str, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "out" / place
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunFolderError, match="is a link"):
        tv.compare({"a": configuration(1)}, out=tmp_path / "out", metrics=("rmse",))
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"metrics": ("pnsr",)}, UnknownNameError),
        ({"recipe": "sede"}, UnknownNameError),
        ({"epochs": 0}, InvalidOptionError),
        ({"model": {"backbone": "packaged", "image_size": 32, "head": "gausian"}}, UnknownNameError),
        ({"engine": "cpu"}, InvalidOptionError),
        ({"objective": "rmsee"}, UnknownNameError),
    ],
)
def test_mistakes_are_found_before_anything_is_computed(change: dict[str, Any], error: Any, tmp_path: Path) -> None:
    metrics = change.pop("metrics", ("rmse",))
    with pytest.raises(error):
        tv.compare({"a": {**configuration(1), **change}}, out=tmp_path / "out", metrics=metrics)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize("given", [[], {"a": 3}, {5: {"model": {}}}])
def test_what_are_no_configurations_is_refused(given: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidOptionError):
        tv.compare(given, out=tmp_path)


def test_photographs_have_no_parts_and_no_runs_among_them(tmp_path: Path) -> None:
    pictures(tmp_path / "images", 1.0)
    with pytest.raises(InvalidOptionError, match="drawn faces"):
        tv.compare({"a": configuration(1)}, tmp_path / "images", out=tmp_path / "out", parts=True)
    with pytest.raises(InvalidOptionError, match="would be taken for images"):
        tv.compare({"a": configuration(1)}, tmp_path / "images", out=tmp_path / "images")
    assert not (tmp_path / "images" / "features").exists()
