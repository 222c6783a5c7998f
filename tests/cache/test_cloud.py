import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import transfervae as tv
from tests.samples import shared_backbone
from transfervae.cache import CachedItem, FeatureCache
from transfervae.data import ToyFaces
from transfervae.errors import CacheError, CacheMismatchError, InvalidOptionError

litdata = pytest.importorskip("litdata")

from transfervae.cache.cloud import StreamedFeatures, write_streaming  # noqa: E402 - needs litdata

COUNT = 23
PER_CHUNK = 4
BATCH = 5


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[torch.dtype, bool], FeatureCache]:
    """Caches of the same images, by the type of the features and whether mirrored ones are stored."""
    faces = ToyFaces(COUNT, 32, dtype=torch.uint8)
    return {
        (dtype, flips): FeatureCache.build(
            shared_backbone("resnet"), faces, tmp_path_factory.mktemp("cache") / "features", dtype=dtype, flips=flips
        )
        for dtype in (torch.float16, torch.bfloat16)
        for flips in (False, True)
    }


@pytest.fixture(scope="module")
def cache(caches: dict[tuple[torch.dtype, bool], FeatureCache]) -> FeatureCache:
    return caches[torch.float16, False]


@pytest.fixture(scope="module")
def mirrored_cache(caches: dict[tuple[torch.dtype, bool], FeatureCache]) -> FeatureCache:
    return caches[torch.bfloat16, True]


def write(cache: FeatureCache, folder: Path, *, per_chunk: int = PER_CHUNK) -> Path:
    write_streaming(cache, folder, chunk_bytes=per_chunk * cache.manifest.row_bytes)
    return folder


def batches(streamed: StreamedFeatures) -> list[CachedItem]:
    return list(litdata.StreamingDataLoader(streamed, batch_size=BATCH))


def rows(items: Iterable[CachedItem], cache: FeatureCache) -> list[int]:
    """Which of a cache's rows the images of batches are, mirrored or not."""
    known = {cache[row].image.numpy().tobytes(): row for row in range(len(cache))}
    known |= {cache[row].image.flip(-1).numpy().tobytes(): row for row in range(len(cache))}
    return [known[image.numpy().tobytes()] for item in items for image in item.image]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("flips", [False, True])
@pytest.mark.parametrize("scheme", ["", "local:"])
def test_every_item_is_that_of_the_cache(
    caches: dict[tuple[torch.dtype, bool], FeatureCache], dtype: torch.dtype, flips: bool, scheme: str, tmp_path: Path
) -> None:
    cache = caches[dtype, flips]
    folder = write(cache, tmp_path / "chunks")
    streamed = StreamedFeatures(f"{scheme}{folder}", cache_dir=tmp_path / "fetched")
    assert len(streamed) == len(cache)
    for row, item in enumerate(streamed):
        assert item.features.dtype == dtype
        for ours, theirs in zip(item, cache[row], strict=True):
            assert torch.equal(ours, theirs)
    assert torch.equal(streamed[COUNT - 1].features, cache[COUNT - 1].features)


def test_items_lie_in_several_chunks(cache: FeatureCache, tmp_path: Path) -> None:
    assert len(list(write(cache, tmp_path / "chunks").glob("*.bin"))) == -(-COUNT // PER_CHUNK)


def test_a_chunk_holds_at_least_one_item(cache: FeatureCache, tmp_path: Path) -> None:
    write_streaming(cache, tmp_path / "chunks", chunk_bytes=1)
    assert rows(batches(StreamedFeatures(tmp_path / "chunks")), cache) == list(range(COUNT))


@pytest.mark.parametrize("workers", [0, 2])
def test_shuffling_gives_every_item_once_and_in_another_order_in_every_epoch(
    cache: FeatureCache, workers: int, tmp_path: Path
) -> None:
    streamed = StreamedFeatures(write(cache, tmp_path / "chunks"), shuffle=True)
    loader = litdata.StreamingDataLoader(streamed, batch_size=BATCH, num_workers=workers)
    first, second = rows(loader, cache), rows(loader, cache)
    assert sorted(first) == sorted(second) == list(range(COUNT))
    assert len({tuple(first), tuple(second), tuple(range(COUNT))}) == 3


def test_the_order_depends_on_the_seed(cache: FeatureCache, tmp_path: Path) -> None:
    folder = write(cache, tmp_path / "chunks")
    first, again, other = (
        rows(batches(StreamedFeatures(folder, shuffle=True, seed=seed)), cache) for seed in (1, 1, 2)
    )
    assert first == again != other


def test_two_processes_get_different_items_and_equally_many(
    cache: FeatureCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(cache, tmp_path / "chunks")
    monkeypatch.setenv("WORLD_SIZE", "2")
    shares = []
    for rank in ("0", "1"):
        monkeypatch.setenv("GLOBAL_RANK", rank)
        shares.append(rows(batches(StreamedFeatures(folder, shuffle=True)), cache))
    assert len(shares[0]) == len(shares[1]) == BATCH * (COUNT // 2 // BATCH)
    assert len({*shares[0], *shares[1]}) == len(shares[0]) + len(shares[1])


def test_mirroring_takes_image_and_features_together(mirrored_cache: FeatureCache, tmp_path: Path) -> None:
    folder = write(mirrored_cache, tmp_path / "chunks")
    loaders = [
        litdata.StreamingDataLoader(StreamedFeatures(folder, shuffle=True, flips=True), batch_size=BATCH)
        for _ in range(2)
    ]
    drawn = [mirrorings(list(loader), mirrored_cache) for loader in (loaders[0], *loaders)]
    assert set(drawn[0].values()) == {False, True}
    assert drawn[0] != drawn[1]
    assert drawn[0] == drawn[2]
    assert torch.equal(StreamedFeatures(folder, flips=True)[3].image, mirrored_cache[3].image)


def mirrorings(epoch: list[CachedItem], cache: FeatureCache) -> dict[int, bool]:
    """Which rows are mirrored; every item must be as the cache has it."""
    drawn = {}
    for item, row in zip(unbatched(epoch), rows(epoch, cache), strict=True):
        drawn[row] = not torch.equal(item.image, cache[row].image)
        assert torch.equal(item.image, cache[row, drawn[row]].image)
        assert torch.equal(item.features, cache[row, drawn[row]].features)
    return drawn


def unbatched(epoch: list[CachedItem]) -> list[CachedItem]:
    return [CachedItem(image, features) for batch in epoch for image, features in zip(*batch, strict=True)]


def test_batches_are_of_the_same_type_and_train_a_model(cache: FeatureCache, tmp_path: Path) -> None:
    batch = batches(StreamedFeatures(write(cache, tmp_path / "chunks")))[0]
    assert isinstance(batch, CachedItem)
    assert batch.image.shape == (BATCH, 3, 32, 32)
    vae = tv.build_vae(shared_backbone("resnet"), image_size=32, latent_dim=4)
    images: Tensor = tv.shapes.unit_images(batch.image)
    output = vae.forward_from_features(batch.features.float())
    tv.losses.elbo(output, images).total.backward()


def test_an_epoch_goes_on_where_it_was_left(cache: FeatureCache, tmp_path: Path) -> None:
    folder = write(cache, tmp_path / "chunks")
    first, second = (
        litdata.StreamingDataLoader(StreamedFeatures(folder, shuffle=True), batch_size=BATCH) for _ in range(2)
    )
    epoch = iter(first)
    next(epoch)
    second.load_state_dict(first.state_dict())
    assert rows(second, cache) == rows(epoch, cache)


def test_a_part_can_be_held_out(cache: FeatureCache, tmp_path: Path) -> None:
    streamed = StreamedFeatures(write(cache, tmp_path / "chunks"), shuffle=True)
    parts = [rows(batches(part), cache) for part in litdata.train_test_split(streamed, splits=[0.75, 0.25])]
    assert [len(part) for part in parts] == [int(0.75 * COUNT), int(0.25 * COUNT)]
    assert not set(parts[0]) & set(parts[1])


def test_features_of_another_backbone_are_refused(cache: FeatureCache, tmp_path: Path) -> None:
    streamed = StreamedFeatures(write(cache, tmp_path / "chunks"))
    assert streamed.manifest.backbone == cache.manifest.backbone
    streamed.check(shared_backbone("resnet"))
    with pytest.raises(CacheMismatchError, match=r"backbone is timm:test_resnet"):
        streamed.check(shared_backbone("efficientnet"))


def test_mirrored_features_that_were_not_stored_are_refused(cache: FeatureCache, tmp_path: Path) -> None:
    with pytest.raises(InvalidOptionError, match="no mirrored features"):
        StreamedFeatures(write(cache, tmp_path / "chunks"), flips=True)


@pytest.mark.parametrize("scheme", ["", "local:"])
def test_a_place_without_chunks_is_refused(tmp_path: Path, scheme: str) -> None:
    with pytest.raises(CacheError, match=r"no streamed features at .*nowhere"):
        StreamedFeatures(f"{scheme}{tmp_path / 'nowhere'}", cache_dir=tmp_path / "fetched")


def test_the_chunks_of_others_are_refused(tmp_path: Path) -> None:
    writer = litdata.streaming.Cache(str(tmp_path / "chunks"), chunk_size=2)
    writer[0] = b"no features"
    writer.done()
    litdata.complete_dataset(str(tmp_path / "chunks"))
    with pytest.raises(CacheError, match="are no features; write_streaming"):
        StreamedFeatures(tmp_path / "chunks")


def test_nothing_is_written_over(cache: FeatureCache, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for place in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(CacheError, match="no empty folder"):
            write_streaming(cache, place)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("options", [{"chunk_bytes": 0}])
def test_options_out_of_range_are_refused(cache: FeatureCache, options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InvalidOptionError, match=next(iter(options))):
        write_streaming(cache, tmp_path / "chunks", **options)


def test_progress_counts_to_the_number_of_items(cache: FeatureCache, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    write_streaming(cache, tmp_path / "chunks", progress=lambda done, total: calls.append((done, total)))
    assert calls == [(done, COUNT) for done in range(1, COUNT + 1)]


NO_LITDATA = """
import sys
sys.modules["litdata"] = None
import transfervae.cache
from transfervae.errors import MissingExtraError
try:
    import transfervae.cache.cloud
except MissingExtraError as error:
    print(error)
"""


def test_without_litdata_the_extra_is_named() -> None:
    process = subprocess.run([sys.executable, "-c", NO_LITDATA], capture_output=True, text=True, check=True)
    assert "transfervae[cloud]" in process.stdout


def test_the_cache_itself_does_not_import_litdata() -> None:
    program = "import sys, transfervae.cache; print('litdata' in sys.modules)"
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "False"
