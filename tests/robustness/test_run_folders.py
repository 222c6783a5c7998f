"""Nothing that a run did not make itself is deleted or replaced, whatever lies in its folder."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from tests.cache.small import contents
from tests.runs import Small
from tests.samples import make_backbone
from transfervae.cache import FeatureCache
from transfervae.data import ToyFaces
from transfervae.errors import (
    CacheError,
    CacheMismatchError,
    CheckpointError,
    InvalidOptionError,
    RunFolderError,
    TransferVAEError,
)
from transfervae.files import read_tensors
from transfervae.pictures import write_grid
from transfervae.training._checkpoint_io import SafetensorsIO
from transfervae.training._run_folder import RunFolder

SMALL = Small(faces=12, epochs=2)


def listing(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, with its content; locks left out."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "finished"
    SMALL.train(folder)
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of a finished run."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.mark.parametrize("is_linked", [False, True])
def test_files_of_the_user_in_features_stay(is_linked: bool, tmp_path: Path) -> None:
    home = tmp_path / ("elsewhere" if is_linked else "out/features")
    home.mkdir(parents=True)
    for name in ("00001.npy", "20240101-labels.json", "00000.json", "photo.jpg", "manifest.txt"):
        (home / name).write_text(name)
    if is_linked:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "features").symlink_to(home)
    before = listing(home)
    with pytest.raises((CacheError, RunFolderError), match=r"holds other files .* Or train with another|is a link"):
        SMALL.train(tmp_path / "out")
    assert listing(home) == before


def test_a_finished_cache_is_not_replaced(tmp_path: Path) -> None:
    FeatureCache.build(make_backbone("resnet"), ToyFaces(12, 64, dtype=torch.uint8), tmp_path / "features")
    before = contents(tmp_path / "features")
    with pytest.raises(CacheMismatchError, match="does not fit"):
        SMALL.train(tmp_path)
    assert contents(tmp_path / "features") == before


@pytest.mark.parametrize("name", ["features", "checkpoints", "model", "reconstructions"])
@pytest.mark.parametrize("kind", ["link", "file"])
def test_a_link_or_a_file_where_a_folder_belongs_is_refused(name: str, kind: str, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "best.safetensors").write_text("mine")
    (tmp_path / "out").mkdir()
    if kind == "link":
        (tmp_path / "out" / name).symlink_to(elsewhere)
    else:
        (tmp_path / "out" / name).write_text("mine")
    before = listing(tmp_path)
    with pytest.raises(RunFolderError, match=f"{name}.* is a {kind}"):
        SMALL.train(tmp_path / "out")
    assert listing(tmp_path) == before


def test_only_leftovers_of_writes_are_cleaned_up(tmp_path: Path) -> None:
    ours = [f".config.json.{'0a' * 16}.tmp", f"checkpoints/.last.safetensors.{'f' * 32}.tmp"]
    theirs = [".thesis.tmp", ".config.json.12.tmp", f"notes/.config.json.{'0a' * 16}.tmp", "a.tmp"]
    for name in (*ours, *theirs):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    RunFolder(tmp_path).clean()
    assert set(listing(tmp_path)) == set(theirs)


def rewrite_state(run: Path, **changes: Any) -> None:
    """Craft a checkpoint: its files are consistent, and Lightning's state names what an attacker wants."""
    io, last = SafetensorsIO(), run / "checkpoints" / "last.safetensors"
    checkpoint = io.load_checkpoint(last)
    for state in checkpoint["callbacks"].values():
        if "last_model_path" in state:
            state.update(changes)
    io.save_checkpoint(checkpoint, last)


@pytest.mark.parametrize(
    ("key", "way"),
    [
        ("last_model_path", "checkpoints/../../victim.txt"),
        ("last_model_path", "absolute"),
        ("best_model_path", "link/victim.txt"),
        ("kth_best_model_path", "../victim.txt"),
    ],
)
def test_no_path_in_a_checkpoint_reaches_a_file_outside(run: Path, key: str, way: str, tmp_path: Path) -> None:
    victim = tmp_path / "victim.txt"
    victim.write_text("precious")
    (run / "checkpoints" / "link").symlink_to(tmp_path)
    path = str(victim) if way == "absolute" else str(run / way) if way != "link/victim.txt" else ""
    path = path or str(run / "checkpoints" / way)
    rewrite_state(run, **{key: path}, dirpath=str(run / "checkpoints"), best_k_models={path: torch.tensor(1e9)})
    Small(faces=12, epochs=3).train(run, resume=True)
    assert victim.read_text() == "precious"


def test_a_moved_run_keeps_its_best_epoch(run: Path) -> None:
    before = read_tensors(run / "checkpoints" / "best.safetensors")
    result = Small(faces=12, epochs=3).train(run, resume=True)
    assert len(result.rows) == 3
    assert (run / "checkpoints" / "best.safetensors").exists()
    if result.best["epoch"] < 3:
        after = read_tensors(run / "checkpoints" / "best.safetensors")
        assert all(torch.equal(after.tensors[name], value) for name, value in before.tensors.items())


def test_a_run_without_its_checkpoint_is_not_begun_anew(run: Path) -> None:
    (run / "checkpoints" / "last.safetensors").unlink()
    before = listing(run)
    with pytest.raises(RunFolderError, match="is missing, so the run cannot be continued; to train anew"):
        SMALL.train(run, resume=True)
    assert listing(run) == before


def test_a_flipped_bit_in_a_checkpoint_is_noticed(run: Path) -> None:
    last = run / "checkpoints" / "last.safetensors"
    content = bytearray(last.read_bytes())
    content[-3] ^= 4
    last.write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged"):
        Small(faces=12, epochs=3).train(run, resume=True)


@pytest.mark.parametrize(
    "changes",
    [
        {"state_dict": None},
        {"state_dict": {}},
        {"loops": []},
        {"loops": {"fit_loop": 3}},
        {"optimizer_states": []},
        {"optimizer_states": [{"state": 1}]},
        {"lr_schedulers": ["x"]},
        {"callbacks": []},
        {"epoch": "x", "global_step": None, "loops": None},
        {"callbacks": {"RunRecorder": {"rows": "x"}}},
        {"callbacks": {"RunRecorder": {}}},
        {"callbacks": {"RunRecorder": {"rows": [{"epoch": 1, "val/loss": 1.0}, {"val/loss": 2.0}]}}},
        {"callbacks": {"RunRecorder": {"rows": [{"epoch": 1, "val/loss": "a"}]}}},
        {"callbacks": {"RunRecorder": {"rows": [{"epoch": 1, "val/loss": float("nan")}]}}},
        {"callbacks": {"RunRecorder": {"rows": [{"epoch": 1, "val/loss": 1.0}, {"epoch": 1, "val/loss": 1.0}]}}},
        {"callbacks": {"RunRecorder": {"rows": [["val/loss"]]}}},
    ],
    ids=str,
)
def test_a_checkpoint_of_something_else_is_refused_and_nothing_is_changed(changes: dict[str, Any], run: Path) -> None:
    io, last = SafetensorsIO(), run / "checkpoints" / "last.safetensors"
    io.save_checkpoint({**io.load_checkpoint(last), **changes}, last)
    before = (run / "config.json").read_bytes()
    with pytest.raises(TransferVAEError):
        Small(faces=12, epochs=3).train(run, resume=True)
    assert (run / "config.json").read_bytes() == before


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize(
    "state",
    [
        {"dirpath": None},
        {"dirpath": "/"},
        {"dirpath": None, "kth_best_model_path": "PATH", "best_k_models": {"PATH": torch.tensor(1e9)}},
    ],
)
def test_a_checkpoint_callback_of_ones_own_deletes_nothing_outside(state: dict[str, Any], tmp_path: Path) -> None:
    def callback() -> ModelCheckpoint:
        return ModelCheckpoint(dirpath=tmp_path / "mine", filename="{epoch}", enable_version_counter=False)

    victim = tmp_path / "victim" / "precious.ckpt"
    victim.parent.mkdir()
    victim.write_text("precious")
    Small(faces=8, epochs=1).train(tmp_path / "run", callbacks=[callback()])
    io, last = SafetensorsIO(), tmp_path / "run" / "checkpoints" / "last.safetensors"
    checkpoint = io.load_checkpoint(last)
    path = f"{tmp_path}/mine/../victim/precious.ckpt"
    own = next(value for key, value in checkpoint["callbacks"].items() if key.startswith("ModelCheckpoint"))
    for key, value in {"best_model_path": "PATH", **state}.items():
        filled = {path: torch.tensor(1e9)} if isinstance(value, dict) else value
        own[key] = path if value == "PATH" else filled
        if value is None:
            del own[key]
    io.save_checkpoint(checkpoint, last)
    Small(faces=8, epochs=3).train(tmp_path / "run", resume=True, callbacks=[callback()])
    assert victim.read_text() == "precious"


NAMES = (
    "config.json",
    "metrics.csv",
    "result.json",
    "val_images.txt",
    "history.png",
    "samples.png",
    "architecture.png",
)


@pytest.mark.parametrize("name", [*NAMES, "checkpoints/best.safetensors", "reconstructions/epoch_001.png"])
@pytest.mark.parametrize("kind", ["file", "link"])
def test_no_file_of_the_user_is_replaced(name: str, kind: str, tmp_path: Path) -> None:
    (tmp_path / "out" / name).parent.mkdir(parents=True)
    (tmp_path / "mine").write_text("mine")
    if kind == "link":
        (tmp_path / "out" / name).symlink_to(tmp_path / "mine")
    else:
        (tmp_path / "out" / name).write_text("mine")
    with pytest.raises(RunFolderError, match="which no run has left there"):
        SMALL.train(tmp_path / "out")
    assert (tmp_path / "out" / name).read_text() == "mine"
    assert (tmp_path / "out" / name).is_symlink() == (kind == "link")


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_loggers_do_not_follow_links(name: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).symlink_to(tmp_path)
    with pytest.raises(RunFolderError, match=f"{name}.* is a link"):
        SMALL.train(tmp_path / "out")


@pytest.mark.parametrize("out", ["", "a\udcff", "a\0b", "x" * 300])
def test_names_that_no_folder_can_have_are_refused(out: str) -> None:
    with pytest.raises(InvalidOptionError, match="out "):
        SMALL.train(out)  # type: ignore[arg-type]


def test_a_model_without_its_checkpoint_is_not_replaced(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_text("mine")
    shutil.copy(finished / "config.json", tmp_path)
    with pytest.raises(RunFolderError, match="is missing, so the run cannot be continued"):
        SMALL.train(tmp_path, resume=True)
    assert (tmp_path / "model" / "model.safetensors").read_text() == "mine"


@pytest.mark.parametrize(("name", "value"), [("dataset", []), ("epochs", "2"), ("epochs", None), ("engine", "cpu")])
def test_an_edited_configuration_is_named(run: Path, name: str, value: Any) -> None:
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {name: value}))
    with pytest.raises(CheckpointError, match=f"{name} is not what a run writes"):
        SMALL.train(run, resume=True)


@pytest.mark.parametrize("name", ["metrics.csv", "result.json", "samples.png", "checkpoints/best.safetensors"])
def test_a_configuration_that_was_copied_protects_nothing_from_being_seen(
    name: str, finished: Path, tmp_path: Path
) -> None:
    shutil.copy(finished / "config.json", tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(RunFolderError, match="which no run has left there"):
        SMALL.train(tmp_path)
    assert (tmp_path / name).read_text() == "mine"


def test_a_cache_of_another_run_is_not_built_on(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "features").mkdir()
    shutil.copy(finished / "features" / "manifest.json", tmp_path / "features")
    (tmp_path / "features" / "00000.images.npy").write_text("mine")
    with pytest.raises(CacheError, match="not built by this run"):
        SMALL.train(tmp_path)
    assert (tmp_path / "features" / "00000.images.npy").read_text() == "mine"


def test_names_that_are_not_unicode_are_trained_on(tmp_path: Path) -> None:
    (tmp_path / "photographs").mkdir()
    for index in range(12):
        path = tmp_path / "photographs" / f"{index}.png"
        write_grid(path, [ToyFaces(12, 32)[index][None]])
        path.rename(tmp_path / "photographs" / f"{index}\udcff.png")
    Small(data=tmp_path / "photographs", epochs=1).train(tmp_path / "run")
    assert (tmp_path / "run" / "val_images.txt").read_bytes().count(b"\xff") == 1
