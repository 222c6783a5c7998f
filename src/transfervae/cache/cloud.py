"""A feature cache in remote storage, streamed with litdata (extra `cloud`)."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from transfervae.backbones import FrozenBackbone
from transfervae.cache.feature_cache import CachedItem, FeatureCache
from transfervae.cache.manifest import FORMAT, FORMAT_KEY, Manifest, parse_manifest
from transfervae.errors import CacheError, FileWriteError, InvalidOptionError, MissingExtraError
from transfervae.files import write_json
from transfervae.shapes import check_positive, check_seed

try:
    import litdata
    from litdata.streaming import Cache as ChunkWriter
    from litdata.streaming.sampler import ChunkedIndex
except ImportError as error:
    raise MissingExtraError("Streaming features from remote storage", "cloud") from error

INDEX_FILE = "index.json"
MANIFEST_KEY = "transfervae"
CHUNK_BYTES = 2**26
"""About so many bytes make a chunk: what litdata fetches at once, and shuffles within."""


def write_streaming(
    cache: FeatureCache,
    folder: str | os.PathLike[str],
    *,
    chunk_bytes: int = CHUNK_BYTES,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a cache as chunks that litdata streams; one process does so.

    The folder is then copied to the store with the store's own tool, and opened there with `StreamedFeatures`. The
    manifest lies in litdata's index, so that it comes along with it.

    Args:
        cache: What is written.
        folder: A new or empty folder.
        chunk_bytes: About so many bytes make a chunk, at least one item.
        progress: Called with (items done, items in all).

    Raises:
        CacheError: If the folder holds files already, or the cache is damaged.
        FileWriteError: If a file cannot be written, for example because the disk is full.
        InvalidOptionError: If `chunk_bytes` is below 1.
    """
    check_positive(chunk_bytes=chunk_bytes)
    path = Path(folder)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise CacheError(f"{str(path)!r} is there already and is no empty folder; choose a new one.")
    try:
        writer = ChunkWriter(str(path), chunk_size=max(1, chunk_bytes // cache.manifest.row_bytes))
        for row in range(len(cache)):
            writer[row] = _encode(cache, row)
            if progress is not None:
                progress(row + 1, len(cache))
        writer.done()
        litdata.complete_dataset(str(path))
    except CacheError:
        raise
    except OSError as error:
        raise FileWriteError(f"{str(path)!r} cannot be written to: {error.strerror or error}.") from error
    index = json.loads((path / INDEX_FILE).read_bytes())
    manifest = {FORMAT_KEY: FORMAT, **asdict(replace(cache.manifest, shards=None))}
    write_json(path / INDEX_FILE, {**index, MANIFEST_KEY: manifest})


class StreamedFeatures(litdata.StreamingDataset):  # type: ignore[misc]  # litdata is not typed
    """What `write_streaming` wrote, read from a folder or from remote storage; items are `CachedItem`.

    Give it to litdata's `StreamingDataLoader`. Shuffling is litdata's: chunks in random order, and items within a
    chunk. Of several processes (`torch.distributed`), each gets other items, and equally many: whole batches, the rest
    is left out of the epoch.

    Attributes:
        url: Where it is read from.
        manifest: What the features belong to.
        flips: Whether items are mirrored at random.
    """

    def __init__(
        self,
        url: str | os.PathLike[str],
        *,
        shuffle: bool = False,
        seed: int = 0,
        flips: bool = False,
        cache_dir: str | os.PathLike[str] | None = None,
        max_cache_size: int | str | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        """Fetch the index; chunks are fetched while iterating.

        Args:
            url: A folder, or what else litdata reads from: "s3://...", "gs://...", "azure://...".
            shuffle: Iterate in another order in every epoch.
            seed: Of the order and the mirroring.
            flips: Mirror an item with probability 1/2, drawn anew in every epoch. Those asked for by number are not.
            cache_dir: Where fetched chunks are kept; litdata's own folder if None.
            max_cache_size: Bytes that they may take, or a size such as "100GB"; a part of the free disk if None.
            storage_options: Handed to the store's client, for example credentials.

        Raises:
            CacheError: If there is no such data, or it holds no features.
            InvalidOptionError: If mirrored features are asked for and were not stored, or the seed is none.
        """
        check_seed(seed)
        self.url = os.fspath(url)
        self.flips = flips
        try:
            super().__init__(
                self.url,
                cache_dir=None if cache_dir is None else os.fspath(cache_dir),
                shuffle=shuffle,
                seed=seed,
                max_cache_size=max_cache_size,
                storage_options=None if storage_options is None else dict(storage_options),
                batch_decode=0,
                item_shuffle_window="full",
            )
        except (OSError, ValueError) as error:
            raise CacheError(f"There are no streamed features at {self.url!r}: {error}") from error
        self.manifest = _read_manifest(Path(self.input_dir.path) / INDEX_FILE, self.url)
        if flips and not self.manifest.flips:
            raise InvalidOptionError("These chunks hold no mirrored features; build a cache with flips.")

    @override
    def __getitem__(self, index: int | ChunkedIndex) -> CachedItem:
        stored = super().__getitem__(index)
        image = _decode(stored["image"], torch.uint8, self.manifest.row_shapes["images"])
        features = _decode(stored["features"], self.manifest.torch_dtype, self.manifest.row_shapes["features"])
        if not self.manifest.flips:
            return CachedItem(image, features)
        is_mirrored = self.flips and isinstance(index, ChunkedIndex) and self._draw(index.index)
        return CachedItem(image.flip(-1) if is_mirrored else image, features[int(is_mirrored)].clone())

    def check(self, backbone: FrozenBackbone) -> None:
        """Make sure that these are the features that a backbone gives.

        Args:
            backbone: The backbone.

        Raises:
            CacheMismatchError: Naming what differs.
        """
        self.manifest.check_backbone(backbone, self.manifest.image_size, Path(self.url))

    def _draw(self, row: int) -> bool:
        return bool(np.random.default_rng([self.seed, self.current_epoch, row]).random() < 0.5)


def _encode(cache: FeatureCache, row: int) -> dict[str, bytes]:
    """An item as bytes: litdata stores no bfloat16, and shapes stand in the manifest."""
    image, features = cache[row]
    if cache.manifest.flips:
        features = torch.stack([features, cache[row, True].features])
    return {"image": _to_bytes(image), "features": _to_bytes(features)}


def _to_bytes(values: Tensor) -> bytes:
    return values.contiguous().view(torch.uint8).numpy().tobytes()


def _decode(content: bytes | memoryview, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=dtype).view(shape)


def _read_manifest(index: Path, url: str) -> Manifest:
    values = json.loads(index.read_bytes()).get(MANIFEST_KEY)
    if values is None:
        raise CacheError(f"The data at {url!r} are no features; write_streaming makes such.")
    return parse_manifest(values, url)
