import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cache.small import contents
from tests.integration.command import TINY, assert_succeeds, run, run_python, start
from tests.integration.test_cache_command import ROW_BYTES, wait_for_shards
from tests.integration.test_interruption import assert_same_run, wait_for_epoch
from tests.runs import Small
from tests.samples import make_backbone
from transfervae.cache import FeatureCache, Manifest
from transfervae.data import ToyFaces
from transfervae.errors import FileWriteError

FACES = 80
OPTIONS = Small(width=32, faces=FACES, epochs=4)
COMMAND = ("train", *TINY, "--dataset.faces", str(FACES), "--epochs", str(OPTIONS.epochs))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    OPTIONS.train(out)
    return out


def resume(out: Path) -> None:
    OPTIONS.train(out, resume=True, engine=None)
    FeatureCache(out / "features").verify()


def without_owner(folder: Path) -> dict[str, bytes]:
    """Contents of a cache, without the run that it was built for."""
    manifest = Manifest.read(folder)
    assert manifest.owner
    return {**contents(folder), "manifest.json": repr(replace(manifest, owner=None)).encode()}


def test_a_run_that_is_killed_in_training_resumes_to_the_same_result(uninterrupted: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    process = start(*COMMAND, "--out", out, shard_bytes=2**26)
    wait_for_epoch(out, 2)
    process.kill()
    process.communicate()
    built = contents(out / "features")
    resume(out)
    assert_same_run(out, uninterrupted)
    assert contents(out / "features") == built
    assert without_owner(out / "features") == without_owner(uninterrupted / "features")


def test_a_run_that_is_killed_while_features_are_computed_resumes_to_the_same_result(
    uninterrupted: Path, tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    process = start(*COMMAND, "--out", out, shard_bytes=OPTIONS.batch_size * ROW_BYTES)
    wait_for_shards(out / "features", 2)
    process.kill()
    process.communicate()
    assert not (out / "metrics.csv").exists()
    kept = {path: path.stat().st_mtime_ns for path in (out / "features").glob("0*.json")}
    resume(out)
    assert_same_run(out, uninterrupted)
    assert FeatureCache(out / "features").manifest.count == FACES // OPTIONS.batch_size
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_a_longer_run_reads_the_features_that_are_there(uninterrupted: Path, tmp_path: Path) -> None:
    out = tmp_path / "longer"
    shutil.copytree(uninterrupted, out)
    before = {path: path.stat().st_mtime_ns for path in (out / "features").iterdir()}
    result = replace(OPTIONS, epochs=OPTIONS.epochs + 1).train(out, resume=True)
    assert len(result.rows) == OPTIONS.epochs + 1
    assert {path: path.stat().st_mtime_ns for path in (out / "features").iterdir()} == before


def test_the_folder_says_how_it_was_run(uninterrupted: Path) -> None:
    engine = json.loads((uninterrupted / "config.json").read_text())["engine"]
    assert (engine["cache"], engine["precision"], engine["memory_format"]) == ("auto", "32-true", "contiguous")


def test_a_compiled_run_ends_well_and_learns_nearly_the_same(tmp_path: Path) -> None:
    cache = tmp_path / "features"
    few = replace(OPTIONS, faces=16, val=0.5, width=8, epochs=1, cache=cache)
    FeatureCache.build(make_backbone("resnet"), ToyFaces(few.faces, 32, dtype=torch.uint8), cache)
    command = ("train", *TINY, "--dataset.faces", "16", "--dataset.val", "0.5", "--decoder.width", "8")
    compiled = ("--epochs", "1", "--engine.compile", "--engine.cache", cache)
    assert_succeeds(run(*command, *compiled, "--out", tmp_path / "run"))
    engine = json.loads((tmp_path / "run" / "config.json").read_text())["engine"]
    assert engine["compile"] is True
    plain = few.train(tmp_path / "plain")
    figures = json.loads((tmp_path / "run" / "result.json").read_text())
    assert figures["metrics"]["rmse"] == pytest.approx(plain.best["val/rmse"], rel=0.05)


TWO_PROCESSES = """
import dataclasses, json, os, shutil, sys
from pathlib import Path

import torch
from transfervae.backbones import FrozenBackbone
from transfervae.errors import TransferVAEError
import transfervae as tv
from transfervae.training import cache_features, train

out, rank = Path(sys.argv[1]), int(os.environ.get("LOCAL_RANK", "0"))
backbone = tv.Spec("timm:test_resnet", weights=None)
model = {"backbone": backbone, "image_size": 32, "latent_dim": 8}
dataset = {"faces": 41, "batch_size": 4, "workers": 0}
engine = {
    "accelerator": "cpu", "devices": 2, "strategy": "ddp", "precision": "32-true", "memory_format": "contiguous"
}
seen = {}

def count(folder):
    options = {"image_size": 32, "recipe": "seed", "dataset": dataset, "engine": engine}
    return len(cache_features(backbone, None, out / folder, **options))

def refusal(folder):
    try:
        return count(folder)
    except TransferVAEError as error:
        return f"{type(error).__name__}: {error}"

def learn(name):
    result = train(model, out=out / name, recipe="seed", epochs=2, dataset=dataset, engine=engine)
    rows = [{k: v for k, v in row.items() if k != "images_per_second"} for row in result.rows]
    return rows, (out / name / "features" / "manifest.json").exists()

seen["new"] = count("new")
seen["continued"] = count("continued")
seen["one shard"] = count("one shard")
seen["auto"] = learn("auto")

disk_usage, forward = shutil.disk_usage, FrozenBackbone.forward
if rank == 0:
    shutil.disk_usage = lambda path: disk_usage(path)._replace(free=1000)
seen["small disk"] = refusal("small disk")
seen["small disk, auto"] = learn("small disk, auto")[0]
shutil.disk_usage = disk_usage
if rank == 1:
    FrozenBackbone.forward = lambda *given: forward(*given) * 1e9
seen["not finite"] = refusal("not finite")
FrozenBackbone.forward = forward
seen["mended"] = count("not finite")
Path(f"{out}/rank{rank}").write_text(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """What two processes left behind, and what each of them has seen."""
    root = tmp_path_factory.mktemp("together")
    (root / "script.py").write_text(TWO_PROCESSES)
    faces = ToyFaces(41, 32, dtype=torch.uint8)
    for name in ("continued", "one shard"):
        FeatureCache.build(make_backbone("resnet"), faces, root / name)
        (root / name / "00000.json").unlink()
    assert_succeeds(run_python(root / "script.py", root))
    return root, [json.loads((root / f"rank{rank}").read_text()) for rank in (0, 1)]


def test_two_processes_build_what_one_builds(together: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    root, seen = together
    faces = ToyFaces(41, 32, dtype=torch.uint8)
    alone = FeatureCache.build(make_backbone("resnet"), faces, tmp_path)
    both = FeatureCache(root / "new")
    both.check(make_backbone("resnet"), faces)
    both.verify()
    assert [one["new"] for one in seen] == [41, 41]
    assert (alone.manifest.count, both.manifest.count) == (1, 2)
    for row in range(41):
        assert torch.equal(both[row].image, alone[row].image)
        torch.testing.assert_close(both[row].features, alone[row].features, rtol=2.0**-9, atol=1e-4)


@pytest.mark.parametrize("name", ["continued", "one shard"])
def test_there_may_be_more_processes_than_shards(name: str, together: tuple[Path, list[dict[str, Any]]]) -> None:
    root, seen = together
    assert [one[name] for one in seen] == [41, 41]
    assert FeatureCache(root / name).manifest.count == 1
    FeatureCache(root / name).verify()


def test_two_processes_learn_the_same_from_one_cache(together: tuple[Path, list[dict[str, Any]]]) -> None:
    root, seen = together
    assert seen[0]["auto"] == seen[1]["auto"]
    rows, is_cached = seen[0]["auto"]
    assert is_cached
    assert [row["epoch"] for row in rows] == [1, 2]
    FeatureCache(root / "auto" / "features").check(make_backbone("resnet"), ToyFaces(41, 32, dtype=torch.uint8))


def test_what_stops_one_process_stops_the_other(together: tuple[Path, list[dict[str, Any]]]) -> None:
    _, seen = together
    assert seen[0]["small disk"] == seen[1]["small disk"]
    assert "FileWriteError: The features need" in seen[0]["small disk"]
    assert seen[0]["not finite"] == seen[1]["not finite"]
    assert "FeatureValueError" in seen[0]["not finite"]
    assert "bfloat16" in seen[0]["not finite"]
    assert [one["mended"] for one in seen] == [41, 41]


def test_two_processes_do_without_a_cache_together(together: tuple[Path, list[dict[str, Any]]]) -> None:
    _, seen = together
    assert seen[0]["small disk, auto"] == seen[1]["small disk, auto"]
    for live, cached in zip(seen[0]["small disk, auto"], seen[0]["auto"][0], strict=True):
        assert live["val/rmse"] == pytest.approx(cached["val/rmse"], rel=0.01)


def test_a_folder_that_cannot_be_written_to_stops_several_processes_before_they_begin(tmp_path: Path) -> None:
    (tmp_path / "features" / ".lock").mkdir(parents=True)
    with pytest.raises(FileWriteError, match="cannot be written to"):
        replace(OPTIONS, devices=2, strategy="ddp").train(tmp_path)


def test_one_process_does_without_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "features" / ".lock").mkdir(parents=True)
    result = replace(OPTIONS, faces=20, epochs=2).train(tmp_path)
    assert len(result.rows) == 2
