import json
import os
import pickle
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

import transfervae as tv
from tests.cache.small import COUNT, Noise, contents, shard_bytes, tiny_backbone, write_pictures
from tests.samples import make_backbone, shared_backbone
from transfervae.cache import CacheBuilder, CachedItem, FeatureCache, feature_cache, manifest
from transfervae.cache._shards import Shard, open_shard
from transfervae.cache.builder import delete_cache
from transfervae.data import ImageFolder, ToyFaces
from transfervae.errors import CacheError, CacheInUseError, CacheMismatchError, InvalidOptionError


@pytest.fixture
def three_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make shards of three images."""
    monkeypatch.setattr(manifest, "SHARD_BYTES", shard_bytes(3))


@pytest.fixture
def cache(three_rows: None, tmp_path: Path) -> FeatureCache:  # noqa: ARG001 - a fixture
    """Four shards."""
    return FeatureCache.build(tiny_backbone(), Noise(), tmp_path / "cache")


def folder_images(root: Path, size: tuple[int, int] = (8, 8)) -> ImageFolder:
    return ImageFolder(root, size, dtype=torch.uint8)


def test_items_are_images_and_their_features(cache: FeatureCache) -> None:
    assert (len(cache), cache.manifest.feature_shape, cache.manifest.image_size) == (COUNT, (4, 4, 4), (8, 8))
    item = cache[4]
    assert isinstance(item, CachedItem)
    assert (item.image.dtype, item.features.dtype) == (torch.uint8, torch.float16)
    assert torch.equal(item.image, Noise().pixels[4])
    assert torch.equal(cache[-1].image, cache[COUNT - 1].image)
    for row in (COUNT, -COUNT - 1):
        with pytest.raises(IndexError, match=f"row {row} of {COUNT}"):
            cache[row]


def test_items_are_copies(cache: FeatureCache) -> None:
    before = cache[0].features.clone()
    cache[0].features.zero_()
    cache[0].image.zero_()
    assert torch.equal(cache[0].features, before)
    cache.verify()


def test_a_loader_gives_batches_of_the_same_kind(cache: FeatureCache) -> None:
    batches = list(DataLoader(cache, batch_size=4, sampler=cache.sampler(), num_workers=1))
    assert all(isinstance(batch, CachedItem) for batch in batches)
    assert sorted(len(batch.image) for batch in batches) == [3, 4, 4]
    seen = {image.numpy().tobytes() for batch in batches for image in batch.image}
    assert seen == {image.numpy().tobytes() for image in Noise().pixels}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_mirrored_items_are_those_of_mirrored_images(dtype: torch.dtype, tmp_path: Path) -> None:
    cache = FeatureCache.build(tiny_backbone(), Noise(), tmp_path, dtype=dtype, flips=True)
    images = Noise().pixels.flip(-1)
    with torch.no_grad():
        expected = tiny_backbone()(images.float() / 255).to(dtype)
    for row in range(COUNT):
        assert torch.equal(cache[row, True].image, images[row])
        assert torch.equal(cache[row, True].features, expected[row])
        assert torch.equal(cache[row, False].features, cache[row].features)


def test_what_was_not_stored_mirrored_is_not_to_be_had(cache: FeatureCache) -> None:
    assert torch.equal(cache[1, False].image, cache[1].image)
    for ask in (lambda: cache[1, True], lambda: cache.sampler(flips=True), cache.check_flips):
        with pytest.raises(InvalidOptionError, match=r"--dataset\.flips"):
            ask()


@given(window=st.integers(1, 4), world=st.integers(1, 3), epoch=st.integers(0, 3), flips=st.booleans())
@settings(max_examples=10)
def test_an_epoch_maps_every_shard_once(
    *, window: int, world: int, epoch: int, flips: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    mapped: list[int] = []

    def noted_open(folder: Path, of: manifest.Manifest, shard: int) -> Shard:
        mapped.append(shard)
        return open_shard(folder, of, shard)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest, "SHARD_BYTES", shard_bytes(3, flips=flips))
        built = FeatureCache.build(tiny_backbone(), Noise(20), tmp_path_factory.mktemp("caches"), flips=flips)
        patch.setattr(feature_cache, "open_shard", noted_open)
        for rank in range(world):
            mapped.clear()
            cache = FeatureCache(built.folder, window=window * shard_bytes(3, flips=flips))
            sampler = cache.sampler(range(1, 20), rank=rank, world=world, flips=flips)
            sampler.set_epoch(epoch)
            keys: list[Any] = list(sampler)
            padded = keys[: 19 // world]
            for key in padded:
                assert isinstance(cache[key], CachedItem)
            assert max(Counter(mapped).values()) == 1
            assert len(cache._open) <= window + 1


def test_a_copy_in_another_process_opens_its_own_files(cache: FeatureCache) -> None:
    cache[0]
    packed = pickle.dumps(cache)
    assert len(packed) < 20_000
    copy = pickle.loads(packed)
    assert torch.equal(copy[0].features, cache[0].features)


@pytest.mark.usefixtures("without_shape_checks")
def test_a_window_below_one_byte_is_refused(cache: FeatureCache) -> None:
    with pytest.raises(InvalidOptionError, match="window"):
        FeatureCache(cache.folder, window=0)


OTHERS: list[tuple[Callable[[], tv.FrozenBackbone], str]] = [
    (lambda: make_backbone("vit"), "backbone is timm:test_resnet, not timm:test_vit"),
    (lambda: tv.create_backbone("timm:test_resnet", node=1, weights=None), "node is 4, not 1"),
    (lambda: tv.create_backbone("timm:test_resnet", node=(1, 4), weights=None), r"node is 4, not \[1, 4\]"),
    (lambda: _with_mean(make_backbone("resnet")), r"mean is \[0\.5, 0\.5, 0\.5\], not \[0\.0, 0\.0, 0\.0\]"),
    (lambda: _with_other_weights(make_backbone("resnet")), "other weights .fingerprint [0-9a-f]{12}, not"),
]


def _with_mean(backbone: tv.FrozenBackbone) -> tv.FrozenBackbone:
    return tv.FrozenBackbone(backbone.network, backbone.provenance, mean=(0, 0, 0), std=backbone.std.flatten().tolist())


def _with_other_weights(backbone: tv.FrozenBackbone) -> tv.FrozenBackbone:
    with torch.no_grad():
        next(backbone.network.parameters()).flatten()[0].add_(1e-3)
    return backbone


@pytest.mark.parametrize(("make", "words"), OTHERS, ids=[words for _, words in OTHERS])
def test_another_backbone_is_refused_and_what_differs_is_named(
    make: Callable[[], tv.FrozenBackbone], words: str, tmp_path: Path
) -> None:
    cache = FeatureCache.build(shared_backbone("resnet"), ToyFaces(2, 32, dtype=torch.uint8), tmp_path)
    cache.check(make_backbone("resnet"))
    with pytest.raises(CacheMismatchError, match=words):
        cache.check(make())


def test_a_cast_backbone_is_the_same(cache: FeatureCache) -> None:
    cache.check(tiny_backbone().to(torch.bfloat16), Noise())


def rename(root: Path) -> None:
    (root / "05.png").rename(root / "055.png")


def change_size(root: Path) -> None:
    path, status = root / "05.png", (root / "05.png").stat()
    path.write_bytes(path.read_bytes() + b"more")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def change_time(root: Path) -> None:
    status = (root / "05.png").stat()
    os.utime(root / "05.png", ns=(status.st_atime_ns, status.st_mtime_ns + 1))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (change_size, r"'05\.png' has changed since \(\d+ bytes then, \d+ now\)"),
        (change_time, r"'05\.png' has changed since \(its time of change\)"),
        (rename, r"the data set has '055\.png' where '05\.png' was"),
        (lambda root: (root / "05.png").unlink(), f"data items is {COUNT}, not {COUNT - 1}"),
        (lambda root: shutil.copy(root / "05.png", root / "5.png"), f"data items is {COUNT}, not {COUNT + 1}"),
        (lambda root: (root / "05.png").replace(root / "z.png"), r"'06\.png' where '05\.png' was"),
    ],
)
def test_files_that_have_changed_are_named(change: Callable[[Path], object], words: str, tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "pictures")
    cache = FeatureCache.build(tiny_backbone(), folder_images(root), tmp_path / "cache")
    cache.check(tiny_backbone(), folder_images(root))
    change(root)
    with pytest.raises(CacheMismatchError, match=words):
        cache.check(tiny_backbone(), folder_images(root))


def test_files_elsewhere_are_the_same_if_their_names_sizes_and_times_are(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "pictures")
    cache = FeatureCache.build(tiny_backbone(), folder_images(root), tmp_path / "cache")
    shutil.copytree(root, tmp_path / "moved")
    cache.check(tiny_backbone(), folder_images(tmp_path / "moved"))


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (lambda root: folder_images(root, (8, 6)), "image size is 8x8, not 8x6"),
        (lambda _: ToyFaces(COUNT, 8, dtype=torch.uint8), "data kind is folder, not toyfaces"),
        (lambda _: Noise(), "data kind is folder, not Noise"),
    ],
)
def test_other_images_are_refused(images: Callable[[Path], Any], words: str, tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "pictures")
    cache = FeatureCache.build(tiny_backbone(), folder_images(root), tmp_path / "cache")
    with pytest.raises(CacheMismatchError, match=words):
        cache.check(tiny_backbone(), images(root))


def test_faces_of_another_seed_are_refused(tmp_path: Path) -> None:
    cache = FeatureCache.build(tiny_backbone(), ToyFaces(3, 8, seed=1, dtype=torch.uint8), tmp_path)
    with pytest.raises(CacheMismatchError, match="data seed is 1, not 2"):
        cache.check(tiny_backbone(), ToyFaces(3, 8, seed=2, dtype=torch.uint8))


def spoil_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("kind", ["features", "images"])
def test_a_changed_bit_is_found_on_the_first_reading_and_by_verifying(cache: FeatureCache, kind: str) -> None:
    spoil_a_bit(cache.folder / f"00002.{kind}.npy")
    reopened = FeatureCache(cache.folder)
    assert torch.equal(reopened[5].image, Noise().pixels[5])
    for read in (lambda: reopened[6], lambda: reopened[8], FeatureCache(cache.folder).verify):
        with pytest.raises(CacheError, match=rf"00002\.{kind}\.npy' was changed"):
            read()


@pytest.mark.parametrize("spoil", [Path.unlink, spoil_a_bit, lambda path: path.write_bytes(b"")])
def test_the_advice_for_a_damaged_shard_mends_it(cache: FeatureCache, spoil: Callable[[Path], object]) -> None:
    before = contents(cache.folder)
    spoil(cache.folder / "00001.features.npy")
    with pytest.raises(CacheError, match=r"delete .*00001\.json.* and run the command that built the cache again"):
        FeatureCache(cache.folder).verify()
    (cache.folder / "00001.json").unlink()
    FeatureCache.build(tiny_backbone(), Noise(), cache.folder).verify()
    assert contents(cache.folder) == before


def test_verifying_counts_shards(cache: FeatureCache) -> None:
    seen: list[tuple[int, int]] = []
    cache.verify(lambda *counts: seen.append(counts))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_cache_that_is_incomplete_says_how_to_go_on(cache: FeatureCache) -> None:
    (cache.folder / "00003.json").unlink()
    values = json.loads((cache.folder / "manifest.json").read_bytes())
    (cache.folder / "manifest.json").write_text(json.dumps({**values, "shards": None}))
    with pytest.raises(CacheError, match=r"incomplete \(3 of 4 shards\); run the command that began it again"):
        FeatureCache(cache.folder)


def test_shards_of_another_cache_are_refused(cache: FeatureCache, tmp_path: Path) -> None:
    other = FeatureCache.build(tiny_backbone(seed=1), Noise(), tmp_path / "other")
    shutil.copy(other.folder / "00000.features.npy", cache.folder)
    with pytest.raises(CacheError, match="was changed"):
        FeatureCache(cache.folder)[0]


def test_a_list_of_items_that_is_gone_is_no_proof_that_the_images_are_the_same(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "pictures")
    cache = FeatureCache.build(tiny_backbone(), folder_images(root), tmp_path / "cache")
    (cache.folder / "00000.json").unlink()
    change_time(root)
    with pytest.raises(CacheError, match=r"00000\.json"):
        FeatureCache(cache.folder).check(tiny_backbone(), folder_images(root))


@pytest.mark.parametrize("items", [[], [["00.png", 1]] * COUNT, [["00.png", 1, 2]] * (COUNT + 1), [None] * COUNT])
def test_an_edited_list_of_items_is_refused(items: list[Any], tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "pictures")
    cache = FeatureCache.build(tiny_backbone(), folder_images(root), tmp_path / "cache")
    values = json.loads((cache.folder / "00000.json").read_bytes())
    (cache.folder / "00000.json").write_text(json.dumps({**values, "items": items}))
    with pytest.raises(CacheError, match=r"00000\.json"):
        cache.check(tiny_backbone(), folder_images(root))


PLAIN = st.none() | st.booleans() | st.integers(-3, 20) | st.floats() | st.text(max_size=3)
JSON_VALUES = PLAIN | st.lists(PLAIN, max_size=3) | st.dictionaries(st.text(max_size=3), PLAIN, max_size=2)


@pytest.mark.usefixtures("without_shape_checks")
@given(field=st.sampled_from(sorted(manifest.Manifest.__dataclass_fields__)), value=JSON_VALUES)
@settings(max_examples=100)
def test_any_edit_of_the_manifest_ends_in_an_error_of_ours(
    field: str, value: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("caches")
    FeatureCache.build(tiny_backbone(), Noise(2), folder)
    values = json.loads((folder / "manifest.json").read_bytes())
    (folder / "manifest.json").write_text(json.dumps({**values, field: value}))
    try:
        cache = FeatureCache(folder)
        cache.check(tiny_backbone(), Noise(2))
        cache[1]
        cache.verify()
        FeatureCache.build(tiny_backbone(), Noise(2), folder)
    except (CacheError, CacheMismatchError):
        return
    assert values[field] == value or field in ("computed_in", "preprocessing", "data", "backbone", "owner"), (
        field,
        value,
    )


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize("key", [slice(0, 2), [0], "3", None, 1.5, (1,), (1, True, 2)])
def test_only_a_row_or_a_row_and_its_mirroring_is_an_index(key: object, tmp_path: Path) -> None:
    cache = FeatureCache.build(tiny_backbone(), Noise(), tmp_path)
    with pytest.raises(TypeError, match="indexed by a row"):
        cache[key]  # type: ignore[index]


def test_rows_that_do_not_exist_are_not_dealt(tmp_path: Path) -> None:
    cache = FeatureCache.build(tiny_backbone(), Noise(), tmp_path)
    for rows in ([0, COUNT], [-1, 2]):
        with pytest.raises(InvalidOptionError, match=f"from 0 to {COUNT - 1}"):
            cache.sampler(rows)


def test_an_edited_list_of_images_is_found(tmp_path: Path) -> None:
    cache = FeatureCache.build(tiny_backbone(), Noise(), tmp_path)
    path = tmp_path / "00000.json"
    path.write_text(path.read_text().replace("item 3", "item 4"))
    with pytest.raises(CacheError, match=r"00000\.json. was changed"):
        cache.verify()


def test_a_cache_that_is_being_built_is_not_deleted(tmp_path: Path) -> None:
    builder = CacheBuilder(tiny_backbone(), Noise(), tmp_path)
    with builder.holding():
        before = contents(tmp_path)
        with pytest.raises(CacheInUseError, match="Another process is building"):
            delete_cache(tmp_path, "run")
        assert contents(tmp_path) == before != {}
