import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.cache.small import (
    COUNT,
    Noise,
    assert_holds,
    contents,
    shard_bytes,
    tiny_backbone,
    write_pictures,
)
from tests.samples import make_backbone
from transfervae.cache import CacheBuilder, FeatureCache, Manifest, manifest
from transfervae.cache.builder import SPARE_BYTES, delete_cache
from transfervae.data import ImageFolder, ToyFaces
from transfervae.errors import (
    CacheError,
    CacheMismatchError,
    FeatureValueError,
    FileWriteError,
    InvalidOptionError,
    UnknownNameError,
)


@pytest.fixture
def three_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make shards of three images."""
    monkeypatch.setattr(manifest, "SHARD_BYTES", shard_bytes(3))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own: 20 MB in memory."""
    place = tmp_path / "disk"
    place.mkdir()
    mounting = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", place], capture_output=True, text=True, check=False
    )
    if mounting.returncode:
        pytest.skip(f"no disk can be mounted here: {mounting.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


class Killed(BaseException):
    """What ends a build at once, as a signal would."""


def kill_after(images: int) -> Any:
    def progress(done: int, _total: int) -> None:
        if done >= images:
            raise Killed

    return progress


def folder_images(root: Path) -> ImageFolder:
    return ImageFolder(root, (8, 8), dtype=torch.uint8)


@pytest.mark.usefixtures("three_rows")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("batch_size", [1, 2, 64])
@pytest.mark.parametrize("workers", [0, 1])
def test_every_image_is_stored_with_its_features(
    dtype: torch.dtype, batch_size: int, workers: int, tmp_path: Path
) -> None:
    done = []
    cache = FeatureCache.build(
        tiny_backbone(),
        Noise(),
        tmp_path,
        dtype=dtype,
        batch_size=batch_size,
        workers=workers,
        progress=lambda *counts: done.append(counts),
    )
    assert cache.manifest.count == 4
    assert_holds(cache, tiny_backbone(), Noise().pixels)
    assert done[-1] == (COUNT, COUNT)
    assert not list(tmp_path.glob("*.tmp"))


@settings(max_examples=10)
@given(seen=st.integers(0, COUNT), batch_size=st.integers(1, 5), flips=st.booleans())
def test_a_build_that_was_killed_goes_on_to_the_same_files(
    *, seen: int, batch_size: int, flips: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    whole, killed = (tmp_path_factory.mktemp("caches") / name for name in ("whole", "killed"))
    options: dict[str, Any] = {"batch_size": batch_size, "flips": flips}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest, "SHARD_BYTES", shard_bytes(3, flips=flips))
        FeatureCache.build(tiny_backbone(), Noise(), whole, **options)
        with suppress(Killed):
            FeatureCache.build(tiny_backbone(), Noise(), killed, **options, progress=kill_after(seen))
    kept = {path: path.stat().st_mtime_ns for path in killed.glob("0*.npy")}
    FeatureCache.build(tiny_backbone(), Noise(), killed, **options)  # the size of shards is that of the begun ones
    assert contents(killed) == contents(whole)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


@pytest.mark.usefixtures("three_rows")
def test_only_shards_that_are_missing_or_damaged_are_computed(tmp_path: Path) -> None:
    FeatureCache.build(tiny_backbone(), Noise(), tmp_path)
    before = contents(tmp_path)
    (tmp_path / "00001.json").unlink()
    (tmp_path / "00002.features.npy").write_bytes(b"cut")
    (tmp_path / f".00003.json.{'0' * 32}.tmp").touch()
    plan = CacheBuilder(tiny_backbone(), Noise(), tmp_path)
    assert not plan.is_whole
    assert [row for batch in plan.batches() for row in batch] == [3, 4, 5, 6, 7, 8]
    assert plan.disk.needed == shard_bytes(6)
    FeatureCache.build(tiny_backbone(), Noise(), tmp_path)
    assert contents(tmp_path) == before


def test_a_whole_cache_is_left_as_it_is(tmp_path: Path) -> None:
    FeatureCache.build(tiny_backbone(), Noise(), tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert CacheBuilder(tiny_backbone(), Noise(), tmp_path).is_whole
    FeatureCache.build(tiny_backbone(), Noise(), tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


@given(count=st.integers(1, 40), ranks=st.integers(1, 6), batch_size=st.integers(1, 7))
def test_ranks_share_the_rows(
    count: int, ranks: int, batch_size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest, "SHARD_BYTES", shard_bytes(5))
        plan = CacheBuilder(
            tiny_backbone(), Noise(count), tmp_path_factory.mktemp("plans") / "new", batch_size=batch_size, ranks=ranks
        )
    hands = [plan.batches(rank) for rank in range(ranks)]
    assert sorted(row for hand in hands for batch in hand for row in batch) == list(range(count))
    for hand in hands:
        for batch in hand:
            assert len({row // plan.manifest.rows_per_shard for row in batch}) == 1
            assert batch == list(range(batch[0], batch[0] + len(batch)))
            assert len(batch) <= batch_size


def test_floating_point_images_are_stored_in_8_bits(tmp_path: Path) -> None:
    faces = ToyFaces(3, 8)
    as_stored = torch.stack([ToyFaces(3, 8, dtype=torch.uint8)[row] for row in range(3)])
    cache = FeatureCache.build(tiny_backbone(), faces, tmp_path)
    assert_holds(cache, tiny_backbone(), as_stored)


class Unsteady(Noise):
    """Mirrors at random, as torchvision's RandomHorizontalFlip does."""

    def __getitem__(self, index: int) -> Tensor:
        image = super().__getitem__(index)
        return image.flip(-1) if torch.rand(()) < 0.5 else image


@pytest.mark.parametrize("count", [1, 2, COUNT])
@pytest.mark.parametrize("seed", range(8))
def test_random_images_are_refused(count: int, seed: int, tmp_path: Path) -> None:
    torch.manual_seed(seed)
    with pytest.raises(InvalidOptionError, match=r"at random.*flips"):
        FeatureCache.build(tiny_backbone(), Unsteady(count), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_no_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidOptionError, match="no images"):
        FeatureCache.build(tiny_backbone(), Noise(0), tmp_path / "cache")


class Uneven(Noise):
    """Images of two sizes."""

    def __getitem__(self, index: int) -> Tensor:
        return super().__getitem__(index)[:, : 8 - index % 2]


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize(
    ("images", "words"),
    [
        ([(1, 2)] * 3, "Items must be images.*got int"),
        (torch.zeros(3, 2, 8, 8), r"got \[2, 8, 8\]"),
        (Uneven(), "one size"),
    ],
)
def test_what_gives_no_images_of_one_size_is_refused(images: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidOptionError, match=words):
        FeatureCache.build(tiny_backbone(), images, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"dtype": torch.float32}])
def test_impossible_options_are_refused(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises((InvalidOptionError, UnknownNameError), match=r"batch_size|float32.*Known: float16, bfloat16"):
        FeatureCache.build(tiny_backbone(), Noise(), tmp_path / "cache", **options)


def test_features_beyond_float16_name_the_image_and_the_way_out(tmp_path: Path) -> None:
    backbone, images = tiny_backbone(scale=1e6), folder_images(write_pictures(tmp_path / "pictures"))
    with pytest.raises(FeatureValueError, match=r"'00\.png'.*65504.*bfloat16"):
        FeatureCache.build(backbone, images, tmp_path / "cache")
    shutil.rmtree(tmp_path / "cache")
    FeatureCache.build(backbone, images, tmp_path / "cache", dtype=torch.bfloat16)


class Spoiled(torch.nn.Module):
    """Gives no number for the image whose first pixel is the brightest."""

    def forward(self, images: Tensor) -> Tensor:
        features = images[:, :, ::2, ::2]
        return torch.where(images[:, :1, :1, :1] >= 1, torch.full_like(features, torch.nan), features)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_an_image_whose_features_are_not_finite_is_named(dtype: torch.dtype, tmp_path: Path) -> None:
    images = Noise()
    images.pixels[:, :, 0, 0] = 7
    images.pixels[5, :, 0, 0] = 255
    backbone = tiny_backbone().from_module(Spoiled(), mean=(0, 0, 0), std=(1, 1, 1))
    with pytest.raises(FeatureValueError, match="'item 5' are not finite"):
        FeatureCache.build(backbone, images, tmp_path, dtype=dtype, batch_size=4)


@pytest.mark.usefixtures("three_rows")
@pytest.mark.parametrize("spoiled", [6, 7, 8])
@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_a_shard_with_a_spoiled_image_is_not_written(spoiled: int, batch_size: int, tmp_path: Path) -> None:
    images = Noise()
    images.pixels[:, :, 0, 0] = 7
    images.pixels[spoiled, :, 0, 0] = 255
    backbone = tiny_backbone().from_module(Spoiled(), mean=(0, 0, 0), std=(1, 1, 1))
    with pytest.raises(FeatureValueError, match=f"'item {spoiled}'"):
        FeatureCache.build(backbone, images, tmp_path, batch_size=batch_size)
    assert {path.name for path in tmp_path.glob("0*.json")} == {"00000.json", "00001.json"}


class Change(NamedTuple):
    """A way to build that does not go with the build that was begun, and what is said of it."""

    options: dict[str, Any]
    words: str


@pytest.mark.parametrize(
    "change",
    [
        Change({"dtype": torch.bfloat16}, "dtype is float16, not bfloat16"),
        Change({"flips": True}, "flips is False, not True"),
        Change({"autocast": torch.bfloat16}, "computed in is float32, not bfloat16"),
        Change({"backbone": tiny_backbone(seed=3)}, "other weights"),
        Change({"backbone": tiny_backbone(std=(1, 1, 1))}, "std is"),
        Change({"dataset": Noise(COUNT + 1)}, f"rows is {COUNT}, not {COUNT + 1}"),
        Change({"dataset": Noise(size=(8, 6))}, "image size is 8x8, not 8x6"),
        Change({"dataset": ToyFaces(COUNT, 8, dtype=torch.uint8)}, "data kind is Noise, not toyfaces"),
    ],
    ids=lambda change: change.words,
)
@pytest.mark.parametrize("is_whole", [True, False])
@pytest.mark.usefixtures("three_rows")
def test_other_features_are_not_added_to_a_cache(change: Change, *, is_whole: bool, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"backbone": tiny_backbone(), "dataset": Noise(), "folder": tmp_path}
    with suppress(Killed):
        FeatureCache.build(**asked, progress=None if is_whole else kill_after(7))
    before = contents(tmp_path)
    with pytest.raises(CacheMismatchError, match=change.words):
        FeatureCache.build(**{**asked, **change.options})
    assert contents(tmp_path) == before


@pytest.mark.usefixtures("three_rows")
def test_a_begun_cache_is_not_continued_with_changed_files(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "pictures")
    with pytest.raises(Killed):
        FeatureCache.build(tiny_backbone(), folder_images(root), tmp_path / "cache", progress=kill_after(9))
    os.utime(root / "01.png", ns=(0, 0))
    with pytest.raises(CacheMismatchError, match=r"'01\.png' has changed since \(its time of change\)"):
        FeatureCache.build(tiny_backbone(), folder_images(root), tmp_path / "cache")


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(CacheError, match=r"holds other files \(thesis\.txt\)"):
        FeatureCache.build(tiny_backbone(), Noise(), tmp_path)
    assert contents(tmp_path) == {"thesis.txt": b"years of work"}


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    with pytest.raises(CacheError, match="is a file"):
        FeatureCache.build(tiny_backbone(), Noise(), tmp_path / "cache")


def owned(folder: Path, owner: str | None = "run") -> Path:
    """A whole cache that was built for a run."""
    FeatureCache.build(tiny_backbone(), Noise(), folder)
    replace(Manifest.read(folder), owner=owner).write(folder)
    return folder


def test_a_run_deletes_its_own_cache(tmp_path: Path) -> None:
    folder = owned(tmp_path / "cache")
    (folder / f".00000.json.{'0' * 32}.tmp").touch()
    delete_cache(folder, "run")
    assert not set(contents(folder))


@pytest.mark.parametrize("owner", [None, "other"])
def test_a_cache_of_another_run_or_of_nobody_is_not_deleted(owner: str | None, tmp_path: Path) -> None:
    before = contents(owned(tmp_path / "cache", owner))
    with pytest.raises(CacheError, match="not built for this run"):
        delete_cache(tmp_path / "cache", "run")
    assert contents(tmp_path / "cache") == before


@pytest.mark.parametrize("name", ["notes.json", "features.npy", "00007.features.npy", ".thesis.tmp", "20240101.json"])
def test_a_cache_with_other_files_in_it_is_not_deleted(name: str, tmp_path: Path) -> None:
    (owned(tmp_path / "cache") / name).touch()
    before = contents(tmp_path / "cache")
    with pytest.raises(CacheError, match="holds other files"):
        delete_cache(tmp_path / "cache", "run")
    assert contents(tmp_path / "cache") == before


def test_what_a_link_leads_to_is_not_deleted(tmp_path: Path) -> None:
    elsewhere = owned(tmp_path / "elsewhere")
    before = contents(elsewhere)
    (tmp_path / "cache").symlink_to(elsewhere)
    with pytest.raises(CacheError, match="no folder of a feature cache"):
        delete_cache(tmp_path / "cache", "run")
    shard = elsewhere / "00000.features.npy"
    shard.rename(tmp_path / "kept.npy")
    shard.symlink_to(tmp_path / "kept.npy")
    delete_cache(elsewhere, "run")
    assert (tmp_path / "kept.npy").read_bytes() == before["00000.features.npy"]


def test_a_disk_that_is_too_small_is_noticed_before_anything_is_computed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    usage = shutil.disk_usage(tmp_path)
    for spare, is_enough in ((-1, False), (0, True)):
        free = shard_bytes(COUNT) + SPARE_BYTES + spare
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: usage._replace(free=free))
        plan = CacheBuilder(tiny_backbone(), Noise(), tmp_path / "cache")
        assert plan.disk == (shard_bytes(COUNT), free)
        if is_enough:
            plan.check_disk()
            continue
        monkeypatch.setattr(CacheBuilder, "run", lambda *_, **__: pytest.fail("computed"))
        with pytest.raises(FileWriteError, match=r"need 3\.5 kB .* 16\.8 MB are free"):
            FeatureCache.build(tiny_backbone(), Noise(), tmp_path / "cache")
        assert not (tmp_path / "cache").exists()


@pytest.mark.usefixtures("three_rows")
def test_a_disk_that_fills_up_ends_the_build_and_space_continues_it(small_disk: Path, tmp_path: Path) -> None:
    filler, cache = small_disk / "filler", small_disk / "cache"

    def fill_up(done: int, _total: int) -> None:
        if done == 7:
            with suppress(OSError), filler.open("wb", buffering=0) as file:
                while True:
                    file.write(b"0" * 4096)

    FeatureCache.build(tiny_backbone(), Noise(), tmp_path / "whole", batch_size=1)
    with pytest.raises(FileWriteError, match="No space left on device"):
        FeatureCache.build(tiny_backbone(), Noise(), cache, batch_size=1, progress=fill_up)
    with pytest.raises(CacheError, match="is incomplete"):
        FeatureCache(cache)
    filler.unlink()
    FeatureCache.build(tiny_backbone(), Noise(), cache, batch_size=1)
    assert contents(cache) == contents(tmp_path / "whole")


def test_a_disk_that_cannot_be_written_to_can_be_read(small_disk: Path) -> None:
    folder = small_disk / "cache"
    FeatureCache.build(tiny_backbone(), Noise(), folder)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    cache = FeatureCache.build(tiny_backbone(), Noise(), folder)  # nothing is left to do
    cache.verify()
    cache.check(tiny_backbone(), Noise())
    assert_holds(cache, tiny_backbone(), Noise().pixels)
    with pytest.raises(FileWriteError, match="Read-only"):
        FeatureCache.build(tiny_backbone(), Noise(), small_disk / "other")


@pytest.mark.usefixtures("three_rows")
def test_shards_that_are_missing_at_the_end_are_counted(tmp_path: Path) -> None:
    plan = CacheBuilder(tiny_backbone(), Noise(), tmp_path / "cache", ranks=2)
    with plan.holding():
        plan.run(0)
        with pytest.raises(CacheError, match="2 of 4 shards are missing"):
            plan.finish()
    assert Manifest.read(tmp_path / "cache").shards is None


def test_two_builders_do_not_share_a_folder(tmp_path: Path) -> None:
    first, second = (CacheBuilder(tiny_backbone(), Noise(), tmp_path / "cache") for _ in range(2))
    with first.holding():
        with pytest.raises(CacheError, match="Another process is building"), second.holding():
            pytest.fail("both hold it")
        with pytest.raises(CacheError, match=r"0 of 1 shards.*another process is building it; wait"):
            FeatureCache(tmp_path / "cache")
        first.run()
        first.finish()
    assert_holds(FeatureCache(tmp_path / "cache"), tiny_backbone(), Noise().pixels)


def test_a_build_goes_on_that_was_killed_in_its_first_write(tmp_path: Path) -> None:
    leftover = tmp_path / f".manifest.json.{'0a' * 16}.tmp"
    leftover.write_text("{")
    FeatureCache.build(make_backbone("resnet"), ToyFaces(3, 32, dtype=torch.uint8), tmp_path).verify()
    assert not leftover.exists()


@pytest.mark.parametrize("name", [".manifest.json.tmp", ".manifest.json.0a.tmp", f"manifest.json.{'0a' * 16}.tmp"])
def test_a_build_leaves_files_alone_that_only_look_like_its_own(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(CacheError, match="holds other files"):
        FeatureCache.build(make_backbone("resnet"), ToyFaces(3, 32, dtype=torch.uint8), tmp_path)
    assert (tmp_path / name).read_text() == "mine"
