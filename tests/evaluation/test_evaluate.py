import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

import transfervae as tv
from tests.runs import Small
from tests.samples import make_vae
from transfervae.data import SelectedImages
from transfervae.errors import (
    CacheMismatchError,
    CheckpointError,
    FeatureValueError,
    InvalidOptionError,
    RunFolderError,
    ShapeError,
    TransferVAEError,
    UnknownNameError,
)
from transfervae.evaluation import Report, compare_reports, write_report
from transfervae.evaluation.parts import PartErrors, face_masks, radial_energy
from transfervae.files import read_json, write_json
from transfervae.losses import rmse
from transfervae.pictures import write_grid
from transfervae.training.held_out import held_out_images, history_of

FACES = tv.ToyFaces(11, 32, dtype=torch.uint8)
QUICK = ("rmse", "kl")


@pytest.fixture(scope="module")
def report() -> Report:
    return tv.evaluate(make_vae("resnet").eval(), FACES, batch_size=4)


def all_images() -> Tensor:
    return torch.stack([FACES[index] for index in range(len(FACES))]).float() / 255


def test_figures_are_those_of_all_images_at_once(report: Report) -> None:
    vae, images = make_vae("resnet").eval(), all_images()
    with torch.no_grad():
        errors = rmse(vae.reconstruct(images), images)
    assert report.figures["rmse"] == pytest.approx(errors.mean().item(), rel=1e-5)
    assert [entry.rmse for entry in report.images] == pytest.approx(errors.tolist(), rel=1e-5)
    assert report.figures["draw_rmse"] > 0
    mean = images.mean(dim=0).expand_as(images)
    assert report.baseline["rmse"] == pytest.approx(rmse(mean, images).mean().item(), rel=1e-5)
    assert np.mean(report.error_map) == pytest.approx(report.figures["l1"], rel=1e-4)


def test_batches_make_no_difference_and_the_same_is_repeated(report: Report) -> None:
    again = tv.evaluate(make_vae("resnet").eval(), FACES, batch_size=4)
    assert again == report
    other = tv.evaluate(make_vae("resnet").eval(), FACES, batch_size=11)
    for name in ("rmse", "psnr", "ssim", "kl", "chroma", "information"):
        assert other.figures[name] == pytest.approx(report.figures[name], rel=1e-4)


def test_the_model_keeps_its_mode() -> None:
    vae = make_vae("resnet").train()
    tv.evaluate(vae, FACES, metrics=QUICK)
    assert vae.training
    assert vae.decoder.training


def test_the_protocol_names_images_by_their_content(report: Report) -> None:
    same = tv.evaluate(make_vae("resnet"), all_images().mul(255).round().byte(), metrics=QUICK)
    assert same.protocol["images_sha256"] == report.protocol["images_sha256"]
    other = tv.evaluate(make_vae("resnet"), tv.ToyFaces(11, 32, seed=1, dtype=torch.uint8), metrics=QUICK)
    assert other.protocol["images_sha256"] != report.protocol["images_sha256"]
    assert compare_reports({"a": report, "b": same})["rmse"].keys() == {"a", "b"}
    with pytest.raises(InvalidOptionError, match="a and b cannot be compared: images_sha256 is"):
        compare_reports({"a": report, "b": other})


def test_an_extractor_is_part_of_the_protocol() -> None:
    def measured(node: int) -> Report:
        metric = {"name": "fd", "extractor": "timm:test_resnet", "weights": None, "node": node}
        return tv.evaluate(make_vae("resnet"), FACES, metrics=[metric])

    one, other = measured(0), measured(1)
    assert one.protocol["extractors"] != other.protocol["extractors"]
    with pytest.raises(InvalidOptionError, match="extractors is"):
        compare_reports({"one": one, "other": other})


def test_reports_are_written_and_read(report: Report, tmp_path: Path) -> None:
    vae = make_vae("resnet")
    write_report(tmp_path, report, vae, FACES)
    assert Report.read(tmp_path / "report.json").figures == report.figures
    assert Report.read(tmp_path / "report.json").images == report.images
    page = (tmp_path / "report.html").read_text()
    assert page.count("<img") == 6
    assert "http" not in page.replace("http://www.w3.org", "")
    for name in ("best", "median", "worst", "errors", "error_map", "frequencies"):
        assert (tmp_path / f"{name}.png").stat().st_size > 500


@pytest.mark.parametrize(
    "text", ["{}", "[]", '{"schema": 2}', '{"schema": 1}', '{"schema": 1, "images": 3, "parts": {}}']
)
def test_files_that_are_no_reports_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"report\.json"):
        Report.read(tmp_path / "report.json")


def test_errors_by_part_are_those_of_their_pixels() -> None:
    generator = torch.Generator().manual_seed(0)
    images, reconstructions = torch.rand(2, 6, 3, 8, 8, generator=generator)
    masks = torch.rand(6, 8, 8, generator=generator) < 0.3
    mean = images.mean(dim=0)
    errors = PartErrors(mean)
    named = [{"part": mask, "rest": ~mask, "nowhere": torch.zeros(8, 8) > 0} for mask in masks]
    for part in (slice(0, 4), slice(4, 6)):
        errors.update(named[part], images[part], reconstructions[part])
    figures = errors.compute()
    assert figures.keys() == {"part", "rest"}
    inside = masks[:, None].expand_as(images)
    own = (reconstructions - images).square()[inside].mean().sqrt().item()
    contrast = (mean - images).square()[inside].mean().sqrt().item()
    assert figures["part"].rmse == pytest.approx(own, rel=1e-5)
    assert figures["part"].contrast == pytest.approx(contrast, rel=1e-5)
    assert figures["part"].removed == pytest.approx(1 - (own / contrast) ** 2, rel=1e-4)
    assert figures["part"].low <= figures["part"].removed <= figures["part"].high
    assert figures["part"].pixels + figures["rest"].pixels == pytest.approx(1)


@pytest.mark.usefixtures("without_shape_checks")
def test_a_perfect_part_has_all_of_its_error_removed() -> None:
    image = torch.rand(1, 3, 8, 8)
    errors = PartErrors(torch.zeros(3, 8, 8))
    errors.update([{"all": torch.ones(8, 8) > 0}], image, image)
    assert errors.compute()["all"].removed == 1
    with pytest.raises(ShapeError, match="mask 'small'"):
        errors.update([{"small": torch.ones(4, 4) > 0}], image, image)


def test_energy_by_frequency_is_that_of_a_wave() -> None:
    wave = torch.cos(2 * torch.pi * 3 * torch.arange(16) / 16).expand(1, 3, 16, 16)
    energy = radial_energy(wave)
    assert energy.argmax() == 3
    assert energy[3] == pytest.approx(wave.square().sum().item(), rel=1e-6)


def test_what_is_not_finite_is_an_error() -> None:
    vae = make_vae("resnet")
    with torch.no_grad():
        next(vae.decoder.parameters()).fill_(float("nan"))
    with pytest.raises(FeatureValueError, match="not finite"):
        tv.evaluate(vae, FACES, metrics=QUICK)


def test_wrong_names_are_answered() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'psnr'"):
        tv.evaluate(make_vae("resnet"), FACES, metrics=["psrn"])
    with pytest.raises(UnknownNameError, match="Did you mean 'packaged'"):
        tv.evaluate(make_vae("resnet"), FACES, metrics=[{"name": "fd", "extractor": "pakaged"}])


def test_a_run_s_held_out_images_are_found_again(tmp_path: Path) -> None:
    small = Small(faces=20, epochs=1)
    small.train(tmp_path / "run")
    images = held_out_images(tmp_path / "run")
    names = (tmp_path / "run" / "val_images.txt").read_text().split("\n")[:-1]
    assert [images.name_of(index) for index in range(len(images))] == names
    assert len(history_of(tmp_path / "run")) == 1
    expected = small.images()
    assert isinstance(images, SelectedImages)
    assert images.indices == expected.val
    assert torch.equal(images[0], expected.dataset[expected.val[0]])


def test_a_run_on_images_of_ones_own_asks_for_them(tmp_path: Path) -> None:
    data: Any = torch.randint(0, 256, (12, 3, 32, 32), dtype=torch.uint8)
    Small(data=data, epochs=1).train(tmp_path / "run")
    with pytest.raises(RunFolderError, match="data set of your own"):
        held_out_images(tmp_path / "run")


@pytest.fixture(scope="module")
def photographed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run on photographs of its own, and their folder."""
    folder = tmp_path_factory.mktemp("photographed")
    for index in range(12):
        write_grid(folder / "photographs" / f"{index:02d}.png", [all_images()[index % 11][None] * (index + 1) / 12])
    Small(data=folder / "photographs", epochs=1).train(folder / "run")
    return folder / "run", folder / "photographs"


def test_held_out_images_that_changed_are_noticed(photographed: tuple[Path, Path]) -> None:
    run, photographs = photographed
    held_out_images(run)
    image = photographs / (run / "val_images.txt").read_text().split("\n")[0]
    before = image.read_bytes()
    write_grid(image, [torch.zeros(1, 3, 32, 32)])
    with pytest.raises(RunFolderError, match="have changed since"):
        held_out_images(run)
    image.write_bytes(before)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 5}, "names others"),
        ({"seed": "a"}, "edited or damaged"),
        ({"image_size": 3.5}, "edited or damaged"),
        ({"dataset": {"val": 0.5}}, "names others|held out"),
        ({"dataset": {"val": "a"}}, "edited or damaged"),
        ({"dataset": {"val": -3}}, "edited or damaged"),
    ],
)
def test_an_edited_run_does_not_give_other_images(
    change: dict[str, Any], words: str, photographed: tuple[Path, Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(photographed[0], run)
    config = read_json(run / "config.json")
    merged = {name: {**config[name], **v} if isinstance(v, dict) else v for name, v in change.items()}
    write_json(run / "config.json", config | merged)
    with pytest.raises(TransferVAEError, match=words):
        held_out_images(run)


@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_report_replaces_nothing_of_the_user_s(kind: str, report: Report, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "out").mkdir()
    best = tmp_path / "out" / "best.png"
    best.symlink_to(tmp_path / "mine") if kind == "link" else best.write_text("mine")
    with pytest.raises(RunFolderError, match="no report has left there"):
        write_report(tmp_path / "out", report, make_vae("resnet"), FACES)
    assert best.read_text() == "mine"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["best.png"]


def test_a_file_beside_a_report_is_kept(report: Report, tmp_path: Path) -> None:
    write_report(tmp_path, report, make_vae("resnet"), FACES)
    (tmp_path / "parts.png").write_text("mine")
    with pytest.raises(RunFolderError, match=r"'parts\.png', which no report"):
        write_report(tmp_path, report, make_vae("resnet"), FACES)
    assert (tmp_path / "parts.png").read_text() == "mine"


def test_a_report_without_parts_takes_the_place_of_one_with_them(report: Report, tmp_path: Path) -> None:
    vae = make_vae("resnet")
    with_parts = tv.evaluate(vae, FACES, metrics=QUICK, masks=face_masks(FACES))
    write_report(tmp_path, with_parts, vae, FACES)
    assert (tmp_path / "parts.png").exists()
    write_report(tmp_path, report, vae, FACES)
    assert not (tmp_path / "parts.png").exists()


def test_a_report_replaces_an_earlier_one(report: Report, tmp_path: Path) -> None:
    write_report(tmp_path, report, make_vae("resnet"), FACES)
    write_report(tmp_path, report, make_vae("resnet"), FACES)
    with pytest.raises(InvalidOptionError, match="other images"):
        write_report(tmp_path, report, make_vae("resnet"), tv.ToyFaces(5, 32, dtype=torch.uint8))


@pytest.mark.parametrize("labels", [[0, 1, -1], [0.0, 1.5, 1.0], ["a", "b", "c"]])
def test_labels_that_are_no_places_of_classes_are_none(labels: list[Any]) -> None:
    class Labelled:
        targets = labels

        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> Tensor:
            return FACES[index]

    assert tv.evaluate(make_vae("resnet"), Labelled(), metrics=QUICK).classes == {}


@pytest.mark.parametrize(
    "change", [{"figures": [1]}, {"figures": {"rmse": "abc"}}, {"figures": {"rmse": "nan"}}, {"protocol": None}]
)
def test_edited_reports_are_refused(change: dict[str, Any], report: Report, tmp_path: Path) -> None:
    report.write(tmp_path / "report.json")
    write_json(tmp_path / "report.json", read_json(tmp_path / "report.json") | change)
    with pytest.raises(CheckpointError, match=r"report\.json"):
        Report.read(tmp_path / "report.json")


def test_rows_without_the_monitored_figure_are_no_evidence() -> None:
    assert tv.evaluate(make_vae("resnet"), FACES, metrics=QUICK, rows=[{"epoch": 1.0}]).verdicts is not None


def test_a_backbone_that_changes_in_a_cached_run_is_noticed(tmp_path: Path) -> None:
    class Change(pl.Callback):
        def on_train_epoch_start(self, trainer: pl.Trainer, module: Any) -> None:
            if trainer.current_epoch == 1:
                for parameter in module.vae.backbone.parameters():
                    parameter.data.mul_(1.5)

    with pytest.raises(CacheMismatchError):
        Small(faces=20, epochs=3).train(tmp_path, callbacks=[Change()])


def test_an_interrupted_report_leaves_no_page_of_other_figures(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_report(tmp_path, report, make_vae("resnet"), FACES)
    assert (tmp_path / "report.html").exists()

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("transfervae.evaluation.sheet.write_pairs", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_report(tmp_path, report, make_vae("resnet"), FACES)
    assert not (tmp_path / "report.html").exists()
    monkeypatch.undo()
    write_report(tmp_path, report, make_vae("resnet"), FACES)
    assert (tmp_path / "report.html").exists()


@pytest.mark.usefixtures("without_shape_checks")
def test_only_models_are_measured() -> None:
    with pytest.raises(InvalidOptionError, match="must be a TransferVAE, got NoneType"):
        tv.evaluate(None, FACES)  # type: ignore[arg-type]


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"metrics": None}, "list of metrics"),
        ({"masks": lambda _: None}, "masks by name"),
        ({"rows": ["a"]}, "one mapping an epoch"),
        ({"likelihood_draws": 0}, "likelihood_draws"),
    ],
)
def test_arguments_of_other_kinds_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidOptionError, match=words):
        tv.evaluate(make_vae("resnet"), FACES, **{"metrics": QUICK, **options})


@pytest.mark.parametrize("change", [{"figures": {"rmse": 10**400}}, {"figures": {"\ud800": 1.0}}, {"protocol": {}}])
def test_reports_with_impossible_entries_are_refused(change: dict[str, Any], report: Report, tmp_path: Path) -> None:
    report.write(tmp_path / "report.json")
    write_json(tmp_path / "report.json", read_json(tmp_path / "report.json") | change)
    with pytest.raises(CheckpointError, match=r"report\.json"):
        Report.read(tmp_path / "report.json")


def test_a_run_that_has_not_ended_has_no_images_to_be_sure_of(photographed: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(photographed[0], tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    with pytest.raises(RunFolderError, match="has not ended"):
        held_out_images(tmp_path / "run")
