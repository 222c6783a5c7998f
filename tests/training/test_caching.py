import io
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor
from torch.utils.data import Dataset

from tests.cache.small import Noise, assert_holds, contents, tiny_backbone, write_pictures
from tests.runs import Small
from tests.samples import make_backbone, shared_backbone
from transfervae.backbones import FrozenBackbone
from transfervae.cache import FeatureCache
from transfervae.data import ToyFaces
from transfervae.errors import CacheError, CacheMismatchError, InvalidOptionError
from transfervae.execution import Execution
from transfervae.training import EngineOptions, TrainResult, _run_folder, run
from transfervae.training._caching import build_cache

COUNT, HELD_OUT = 40, 8
PICTURES = (
    (run, "write_architecture"),
    (run, "write_history"),
    (run, "write_reconstructions"),
    (run, "write_samples"),
    (_run_folder, "write_history"),
    (_run_folder, "write_reconstructions"),
)
"""What takes most of the time, and sends images through the backbone too."""

FINAL = 1
"""The saved model's figures come from the whole model: held-out images go through the backbone once more."""


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """A short run on a folder of noise, which is read faster than faces are drawn."""
    folder = write_pictures(tmp_path_factory.mktemp("data") / "pictures", COUNT, size=(32, 32))
    return Small(data=str(folder), val=HELD_OUT / COUNT)


class Ran:
    """A training without pictures, what it said, and how often each of its images went through the backbone."""

    def __init__(self, out: Path, options: Small, *, cache: str = "auto", **more: Any) -> None:
        self.counts: Counter[bytes] = Counter()
        self._pixels = options.open()
        screen = io.StringIO()
        forward = FrozenBackbone.forward

        def count(backbone: FrozenBackbone, images: Tensor) -> Tensor:
            self.counts.update(_key((255 * image).round().to(torch.uint8)) for image in images)
            return forward(backbone, images)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(FrozenBackbone, "forward", count)
            for module, name in PICTURES:
                patch.setattr(module, name, lambda *_, **__: None)
            self.result: TrainResult = replace(options, cache=cache).train(out, console=Console(file=screen), **more)
        self.said = " ".join(screen.getvalue().split())

    def times(self, rows: list[int], *, is_mirrored: bool = False) -> set[int]:
        images = [self._pixels[row].flip(-1) if is_mirrored else self._pixels[row] for row in rows]
        return {self.counts[_key(image)] for image in images}


def _key(image: Tensor) -> bytes:
    return image.contiguous().numpy().tobytes()


def rows_of(options: Small) -> tuple[list[int], list[int]]:
    """Rows to train on, and held-out ones."""
    images = options.images()
    return images.training, images.val


@pytest.fixture(scope="module")
def cached(options: Small, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return Ran(tmp_path_factory.mktemp("runs") / "cached", replace(options, epochs=3))


@pytest.fixture(scope="module")
def live(options: Small, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return Ran(tmp_path_factory.mktemp("runs") / "live", replace(options, epochs=3), cache="off")


def test_every_image_goes_through_the_backbone_once(options: Small, cached: Ran) -> None:
    training, held_out = rows_of(options)
    assert cached.times(training) == {1}
    assert cached.times(held_out) == {1 + FINAL}


def test_without_a_cache_it_does_so_in_every_epoch(options: Small, live: Ran) -> None:
    training, held_out = rows_of(options)
    assert live.times(training) == {3}
    assert live.times(held_out) == {3 + FINAL}
    assert "features" not in live.said


def test_cached_and_live_runs_learn_the_same(cached: Ran, live: Ran) -> None:
    for one, other in zip(cached.result.rows, live.result.rows, strict=True):
        for name in ("train/loss", "val/rmse", "val/loss"):
            assert one[name] == pytest.approx(other[name], rel=0.01), name
    assert cached.result.mean_image_rmse == live.result.mean_image_rmse


def test_mirrored_images_go_through_the_backbone_once_and_teach_the_same(options: Small, tmp_path: Path) -> None:
    ran = Ran(tmp_path, replace(options, flips=True))
    training, held_out = rows_of(options)
    for is_mirrored in (False, True):
        assert ran.times(training, is_mirrored=is_mirrored) == {1}
    assert (ran.times(held_out), ran.times(held_out, is_mirrored=True)) == ({1 + FINAL}, {1})
    assert FeatureCache(tmp_path / "features").manifest.flips
    learned_live = Ran(tmp_path / "live", replace(options, flips=True), cache="off")
    for one, other in zip(ran.result.rows, learned_live.result.rows, strict=True):
        assert one["train/loss"] == pytest.approx(other["train/loss"], rel=0.01)
        assert one["val/rmse"] == pytest.approx(other["val/rmse"], rel=0.01)


def test_transformed_images_are_not_cached(options: Small, tmp_path: Path) -> None:
    ran = Ran(tmp_path, options, transform=lambda image: image.roll(1, -1))
    assert "features are computed in every epoch: training images pass through a transform" in ran.said
    assert not (tmp_path / "features").exists()


def test_one_epoch_needs_no_cache(options: Small, tmp_path: Path) -> None:
    ran = Ran(tmp_path, replace(options, epochs=1))
    assert "features are computed in every epoch: there is only one" in ran.said
    assert not (tmp_path / "features").exists()


def test_a_disk_that_is_too_small_needs_no_cache(
    options: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10**6))
    ran = Ran(tmp_path, options)
    assert "features are computed in every epoch: The features need" in ran.said
    assert "1.0 MB are free" in ran.said
    assert ran.times(rows_of(options)[0]) == {2}
    assert not (tmp_path / "features").exists()


def test_features_beyond_float16_are_not_cached(
    options: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = FrozenBackbone.forward
    monkeypatch.setattr(FrozenBackbone, "forward", lambda *given: 1e6 * forward(*given))
    ran = Ran(tmp_path, replace(options, learning_rate=1e-9))
    assert "features are computed in every epoch: The features of '00.png' are not finite" in ran.said
    assert "float16" in ran.said


def test_a_named_cache_that_does_not_fit_leaves_no_run(options: Small, tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="no feature cache"):
        replace(options, cache=tmp_path / "nowhere").train(tmp_path / "run")
    assert not list((tmp_path / "run").glob("*.json"))


@pytest.mark.parametrize("given", [None, 5, torch.zeros(3, 4, 4)])
def test_a_transform_that_gives_no_image_is_refused(given: object, options: Small, tmp_path: Path) -> None:
    with pytest.raises(InvalidOptionError, match=r"transform must give a tensor \[3, 32, 32\]"):
        options.train(tmp_path / "run", transform=lambda _: given)


def test_a_cache_of_other_features_in_its_folder_is_refused(options: Small, tmp_path: Path) -> None:
    left = FeatureCache.build(make_backbone("vit"), ToyFaces(5, 32, dtype=torch.uint8), tmp_path / "features")
    before = contents(left.folder)
    with pytest.raises(
        CacheMismatchError, match=r"does not fit.* Or train with another --out, or with --engine\.cache"
    ):
        Ran(tmp_path, options)
    assert contents(left.folder) == before


@pytest.mark.parametrize("spoil", ["manifest.json", "00000.json"])
def test_a_damaged_cache_in_its_folder_is_refused(options: Small, spoil: str, tmp_path: Path) -> None:
    FeatureCache.build(make_backbone("resnet"), options.open(), tmp_path / "features")
    (tmp_path / "features" / spoil).write_text("{")
    before = contents(tmp_path / "features")
    with pytest.raises(CacheError, match=r"cannot be read.* Or train with another --out"):
        Ran(tmp_path, options)
    assert contents(tmp_path / "features") == before


@pytest.fixture(scope="module")
def named(options: Small, tmp_path_factory: pytest.TempPathFactory) -> FeatureCache:
    folder = tmp_path_factory.mktemp("caches") / "named"
    return FeatureCache.build(shared_backbone("resnet"), options.open(), folder)


def test_a_named_cache_is_read(options: Small, named: FeatureCache, cached: Ran, tmp_path: Path) -> None:
    ran = Ran(tmp_path, replace(options, epochs=3), cache=str(named.folder))
    assert ran.times(rows_of(options)[0]) == {0}
    assert not (tmp_path / "features").exists()
    for one, other in zip(ran.result.rows, cached.result.rows, strict=True):
        assert one["val/rmse"] == pytest.approx(other["val/rmse"], rel=0.01)


def test_a_named_cache_serves_a_single_epoch(options: Small, named: FeatureCache, tmp_path: Path) -> None:
    assert Ran(tmp_path, replace(options, epochs=1), cache=str(named.folder)).times(rows_of(options)[0]) == {0}


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"node": 1}, CacheMismatchError, "node is 4, not 1"),
        ({"image_size": (32, 64)}, CacheMismatchError, "image size is 32x32, not 32x64"),
        ({"data": None, "faces": 4}, CacheMismatchError, "data items is 40, not 4; data kind is folder, not toyfaces"),
        ({"flips": True}, InvalidOptionError, "--dataset.flips"),
        ({"backbone": "timm:test_vit"}, CacheMismatchError, "backbone is timm:test_resnet, not timm:test_vit"),
    ],
)
def test_a_named_cache_that_does_not_fit_is_refused(
    options: Small,
    changes: dict[str, Any],
    error: type[Exception],
    words: str,
    named: FeatureCache,
    tmp_path: Path,
) -> None:
    with pytest.raises(error, match=words):
        Ran(tmp_path, replace(options, **changes), cache=str(named.folder))


def test_a_named_cache_and_a_transform_do_not_go_together(options: Small, named: FeatureCache, tmp_path: Path) -> None:
    with pytest.raises(InvalidOptionError, match="leave the transform or the cache out"):
        Ran(tmp_path, options, cache=str(named.folder), transform=lambda image: image)


def test_a_named_cache_that_is_not_there_is_not_built(options: Small, tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="no feature cache"):
        Ran(tmp_path / "run", options, cache=str(tmp_path / "nowhere"))
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("precision", ["bf16-true", "64-true", "bf16-mixed"])
def test_features_are_computed_in_what_the_cache_says(precision: str, tmp_path: Path) -> None:
    cache = build_cache(
        tiny_backbone(), Noise(), tmp_path, engine=EngineOptions(accelerator="cpu", devices=1, precision=precision)
    )
    assert cache.manifest.computed_in == "float32"
    assert_holds(cache, tiny_backbone(), Noise().pixels)


def test_a_begun_build_keeps_its_precision(tmp_path: Path) -> None:
    engine = EngineOptions(accelerator="cpu", devices=1)
    whole = build_cache(tiny_backbone(), Noise(), tmp_path, execution=Execution("bfloat16"), engine=engine)
    before = whole.folder.joinpath("00000.features.npy").read_bytes()
    (tmp_path / "00000.json").unlink()
    again = build_cache(tiny_backbone(), Noise(), tmp_path, execution=Execution("float32"), engine=engine)
    assert again.manifest.computed_in == "bfloat16"
    assert again.folder.joinpath("00000.features.npy").read_bytes() == before
    assert len(again) == len(Noise())


class Jittered(Dataset[Tensor]):
    """A data set with a random transform of its own."""

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> Tensor:
        return (torch.full((3, 32, 32), index / 24) + 0.02 * torch.rand(3, 32, 32)).clamp(0, 1)


@pytest.mark.parametrize("val", [None, Jittered()])
def test_a_data_set_that_is_random_itself_is_not_cached_and_trains(val: Any, tmp_path: Path) -> None:
    screen = io.StringIO()
    result = Small(data=Jittered()).train(tmp_path, val_data=val, console=Console(file=screen, width=300))
    assert len(result.rows) == 2
    assert "features are computed in every epoch: the data set gives other images" in screen.getvalue()
    assert not (tmp_path / "features").exists()


def test_a_data_set_without_files_is_said_to_be_told_by_its_pixels(tmp_path: Path) -> None:
    screen = io.StringIO()
    images = torch.rand(24, 3, 32, 32)
    Small(data=images, epochs=1).train(tmp_path, console=Console(file=screen, width=300))
    assert "told from others by the pixels of some of its images" in screen.getvalue()
