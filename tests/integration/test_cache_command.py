import resource
import signal
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from tests.cache.small import contents
from tests.integration.command import (
    TINY,
    assert_one_line_error,
    run,
    start,
)
from tests.samples import make_backbone
from tests.warm import Warm
from transfervae.cache import FeatureCache
from transfervae.data import ToyFaces
from transfervae.errors import CacheError
from transfervae.shapes import unit_images

FACES = 60
ROW_BYTES = 3 * 32 * 32 + 2 * 96
CACHE = (
    "cache",
    *" ".join(TINY)
    .replace("--head.latent-dim 8 --decoder.width 32 --dataset.faces 48", f"--dataset.faces {FACES}")
    .split(),
)


class Answer(NamedTuple):
    """What a command left behind."""

    returncode: int
    stdout: str
    stderr: str


def finish(process: Warm) -> Answer:
    try:
        screen, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    return Answer(process.returncode or 0, screen, errors)


def wait_for_shards(folder: Path, count: int) -> None:
    deadline = time.monotonic() + 120
    while len(list(folder.glob("0*.json"))) < count:
        assert time.monotonic() < deadline
        time.sleep(0.001)


class Build(NamedTuple):
    """A build that was held up for a while, and what another one said meanwhile."""

    folder: Path
    own: Answer
    other: Answer
    opened: str


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Build:
    folder = tmp_path_factory.mktemp("caches") / "whole"
    process = start(*CACHE, "--out", folder, shard_bytes=ROW_BYTES)
    try:
        wait_for_shards(folder, 1)
        process.send_signal(signal.SIGSTOP)
        other = finish(start(*CACHE, "--out", folder, shard_bytes=ROW_BYTES))
        with pytest.raises(CacheError) as opened:
            FeatureCache(folder)
    finally:
        process.send_signal(signal.SIGCONT)
    return Build(folder, finish(process), other, str(opened.value))


def test_a_build_says_what_it_does_and_stores_what_the_backbone_gives(whole: Build) -> None:
    assert whole.own.returncode == 0, whole.own.stderr
    assert whole.own.stderr == ""
    for words in ("features of 60 images go to", "to write", "features computed in", "--engine.cache"):
        assert words in whole.own.stdout
    cache = FeatureCache(whole.folder)
    assert (cache.manifest.count, len(cache)) == (FACES, FACES)
    faces = ToyFaces(FACES, 32, dtype=torch.uint8)
    cache.check(make_backbone("resnet"), faces)
    cache.verify()
    images = torch.stack([faces[row] for row in range(FACES)])
    with torch.no_grad():
        features = make_backbone("resnet")(unit_images(images))
    for row in range(FACES):
        assert torch.equal(cache[row].image, images[row])
        torch.testing.assert_close(cache[row].features.float(), features[row], rtol=2.0**-10, atol=1e-5)


def test_a_second_build_is_refused_in_one_line_and_the_first_ends_well(whole: Build) -> None:
    assert whole.other.returncode == 2
    assert whole.other.stderr.strip().splitlines()[0].startswith("Error: Another process is building")
    assert len(whole.other.stderr.strip().splitlines()) == 1
    assert "another process is building it; wait for that" in whole.opened
    assert whole.own.returncode == 0


def test_a_killed_build_goes_on_to_the_same_files(whole: Build, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    process = start(*CACHE, "--out", folder, shard_bytes=ROW_BYTES)
    wait_for_shards(folder, 5)
    process.kill()
    process.communicate()
    done = len(list(folder.glob("0*.json")))
    assert 5 <= done < FACES
    with pytest.raises(CacheError, match=rf"\({done} of {FACES} shards\); run the command that began it again"):
        FeatureCache(folder)
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("0*.json")}
    process = start(*CACHE, "--out", folder, shard_bytes=ROW_BYTES)
    wait_for_shards(folder, done + 5)
    process.send_signal(signal.SIGINT)
    interrupted = finish(process)
    if interrupted.returncode:  # it may have ended before the signal came
        assert interrupted.returncode == 130, interrupted.stderr
        assert "To go on where it stopped, give the same command again." in interrupted.stdout
        assert "Traceback" not in interrupted.stderr
        continued = finish(start(*CACHE, "--out", folder, shard_bytes=2**26))
        assert continued.returncode == 0, continued.stderr
        assert " of " in continued.stdout.partition("to write")[0]
    assert contents(folder) == contents(whole.folder)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_a_file_too_large_for_the_disk_ends_in_one_line_and_goes_on_later(tmp_path: Path) -> None:
    folder = tmp_path / "full"
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (102400, 102400))
    limited = run(*CACHE, "--out", folder, before=limit)
    assert_one_line_error(limited, "00000.images.npy", "cannot be written", "File too large")
    assert not list(folder.glob("*.tmp"))
    assert run(*CACHE, "--out", folder).returncode == 0
    FeatureCache(folder).verify()


def test_the_same_command_again_has_nothing_to_do(whole: Build) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.folder.iterdir()}
    answer = run(*CACHE, "--out", whole.folder)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert "features computed" not in answer.stdout
    assert {path: path.stat().st_mtime_ns for path in whole.folder.iterdir()} == before


def test_other_options_are_refused_and_named(whole: Build) -> None:
    for options, words in (
        (("--backbone.node", "1"), "node is 4, not 1"),
        (("--dtype", "bfloat16"), "dtype is float16, not bfloat16"),
        (("--dataset.faces", "61"), f"rows is {FACES}, not 61"),
        (("--dataset.flips",), "flips is False, not True"),
    ):
        answer = run(*CACHE, *options, "--out", whole.folder)
        assert answer.returncode == 2
        assert words in answer.stderr
        assert len(answer.stderr.strip().splitlines()) == 1
    FeatureCache(whole.folder).verify()


def test_verify_finds_a_changed_file(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    FeatureCache.build(make_backbone("resnet"), ToyFaces(3, 32, dtype=torch.uint8), folder)
    answer = run("cache", "--verify", "--out", folder)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert "are as they were written" in answer.stdout
    content = bytearray((folder / "00000.features.npy").read_bytes())
    content[-1] ^= 1
    (folder / "00000.features.npy").write_bytes(content)
    answer = run("cache", "--verify", "--out", folder)
    assert answer.returncode == 2
    assert "00000.features.npy' was changed after it was written" in answer.stderr
    (folder / "00000.json").unlink()
    assert run(*CACHE, "--dataset.faces", "3", "--out", folder).returncode == 0
    assert run("cache", "--verify", "--out", folder).returncode == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--dtype", "float8"), "float16, bfloat16"),
        (("--image-size", "wide"), "wide"),
        (("--backbone", "vg19"), "vgg19"),
        (("nowhere",), "no folder 'nowhere'"),
        (("--out", "pyproject.toml"), "is a file"),
        (("--out", "src"), "holds other files (transfervae)"),
    ],
)
def test_wrong_options_are_answered_in_one_line(options: tuple[str, ...], words: str, tmp_path: Path) -> None:
    answer = run(*CACHE, "--out", tmp_path / "cache", *options)
    assert answer.returncode == 2
    assert words in answer.stderr
    assert len(answer.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "cache").exists()


def test_verify_needs_a_cache(tmp_path: Path) -> None:
    answer = run("cache", "--verify", "--out", tmp_path / "nowhere")
    assert answer.returncode == 2
    assert "no feature cache" in answer.stderr
