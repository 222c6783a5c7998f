"""What a feature cache belongs to, and what is in it: its `manifest.json`."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from transfervae.backbones import FrozenBackbone
from transfervae.errors import CacheError, CacheMismatchError, InvalidOptionError
from transfervae.files import write_json

FORMAT_KEY = "transfervae_cache"
FORMAT = 1
MANIFEST_FILE = "manifest.json"

DTYPES: Mapping[str, torch.dtype] = MappingProxyType({"float16": torch.float16, "bfloat16": torch.bfloat16})
"""What features are stored as. The largest relative error is 2^-11 (0.05 %) for float16, between 6.1e-5 and 65504, and
2^-8 (0.4 %) for bfloat16, over all of float32's range."""

SHARD_BYTES = 2**26
"""About so many bytes of features and images make a shard."""


@dataclass(frozen=True)
class Manifest:
    """What a feature cache belongs to, and what is in it.

    Attributes:
        backbone: Name, node, weights, options and fingerprint, as `FrozenBackbone.config` gives them.
        preprocessing: Mean and standard deviation that images in [0, 1] are normalised with, per RGB channel.
        image_size: (height, width).
        feature_shape: (c, h', w') of the features of one image.
        dtype: A name from `DTYPES`.
        flips: Whether the features of mirrored images are there too.
        data: What the data set says of itself: plain values.
        rows: Number of images.
        rows_per_shard: Number of images in every shard but the last.
        computed_in: Precision that the backbone ran in; for information.
        shards: For each shard its files' bytes and CRC-32s; None until the cache is whole.
        owner: The run that the cache was built for, and that may delete it; None for a cache of nobody's.
    """

    backbone: Mapping[str, Any]
    preprocessing: Mapping[str, Sequence[float]]
    image_size: tuple[int, int]
    feature_shape: tuple[int, int, int]
    dtype: str
    flips: bool
    data: Mapping[str, Any]
    rows: int
    rows_per_shard: int
    computed_in: str
    shards: Sequence[Mapping[str, Any]] | None = None
    owner: str | None = None

    @property
    def count(self) -> int:
        """Number of shards."""
        return -(-self.rows // self.rows_per_shard)

    @property
    def torch_dtype(self) -> torch.dtype:
        """What the features are stored as."""
        return DTYPES[self.dtype]

    @property
    def row_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of one row in each of a shard's two files."""
        features = (2, *self.feature_shape) if self.flips else self.feature_shape
        return {"features": features, "images": (3, *self.image_size)}

    @property
    def row_bytes(self) -> int:
        """Bytes of one image and its features."""
        return row_bytes(self.image_size, self.feature_shape, flips=self.flips)

    def shard_rows(self, shard: int) -> range:
        """The rows of one shard."""
        return range(shard * self.rows_per_shard, min(self.rows, (shard + 1) * self.rows_per_shard))

    def write(self, folder: Path) -> None:
        """Write `manifest.json`.

        Raises:
            FileWriteError: If it cannot be written.
        """
        write_json(folder / MANIFEST_FILE, {FORMAT_KEY: FORMAT, **asdict(self)})

    @staticmethod
    def read(folder: Path) -> "Manifest":
        """Read `manifest.json`.

        Raises:
            CacheError: If it is missing, damaged, or of another version.
        """
        path = folder / MANIFEST_FILE
        try:
            values = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise CacheError(
                f"There is no feature cache in {str(folder)!r}; build one with transfervae cache DATA --out"
                f" {str(folder)!r}."
            ) from None
        except (OSError, ValueError, RecursionError) as error:
            raise CacheError(f"{str(path)!r} cannot be read as a cache's manifest: {error}") from error
        return parse_manifest(values, path)

    @staticmethod
    def is_whole(folder: Path) -> bool:
        """Whether a folder holds the manifest of a cache that was built to the end.

        Raises:
            CacheError: If the manifest is damaged, or of another version.
        """
        return (folder / MANIFEST_FILE).exists() and Manifest.read(folder).shards is not None

    def check_backbone(self, backbone: FrozenBackbone, image_size: Sequence[int], folder: Path | str) -> None:
        """Make sure that these are the features that a backbone gives for images of a size.

        Raises:
            CacheMismatchError: Naming what differs.
        """
        check_backbone_type(backbone)
        mine = {**_identity_of(self.backbone, self.preprocessing), "image size": tuple(self.image_size)}
        theirs = {**backbone_identity(backbone), "image size": tuple(image_size)}
        self.refuse(_differences(mine, theirs), folder)

    @staticmethod
    def refuse(differences: Sequence[str], folder: Path | str) -> None:
        """Raise `CacheMismatchError` if there are differences."""
        if differences:
            raise CacheMismatchError(
                f"The feature cache in {str(folder)!r} does not fit: {'; '.join(differences)}. Build another in"
                " another folder."
            )

    def check_same(self, other: "Manifest", folder: Path) -> None:
        """Make sure that another manifest asks for the very same features.

        Raises:
            CacheMismatchError: Naming what differs.
        """
        self.refuse(_differences(self.as_asked(), other.as_asked()), folder)

    def as_asked(self) -> dict[str, Any]:
        """All that decides what is stored, by the name that a message gives it."""
        names = ("dtype", "flips", "rows", "computed_in")
        asked = {name.replace("_", " "): getattr(self, name) for name in names}
        data = {f"data {key}": value for key, value in self.data.items()}
        size = {"image size": tuple(self.image_size)}
        return {**_identity_of(self.backbone, self.preprocessing), **size, **asked, **data}


def check_backbone_type(backbone: object) -> None:
    """Make sure that what is said to be a backbone is one.

    Raises:
        InvalidOptionError: If it is not.
    """
    if not isinstance(backbone, FrozenBackbone):
        name = type(backbone).__name__
        advice = "; pass vae.backbone" if hasattr(backbone, "backbone") else "; create_backbone makes one"
        raise InvalidOptionError(f"backbone must be a FrozenBackbone, got {name}{advice}.")


def row_bytes(image_size: Sequence[int], feature_shape: Sequence[int], *, flips: bool) -> int:
    """Bytes of one image and its features in a cache."""
    return 3 * math.prod(image_size) + 2 * (1 + flips) * math.prod(feature_shape)


def choose_rows(bytes_a_row: int, rows: int, ranks: int) -> int:
    """Rows of a shard: about `SHARD_BYTES`, and so few that every rank gets one."""
    return max(1, min(SHARD_BYTES // bytes_a_row, math.ceil(rows / ranks)))


def preprocessing_of(backbone: FrozenBackbone) -> dict[str, list[float]]:
    """Mean and standard deviation that a backbone normalises images with, per RGB channel."""
    return {"mean": backbone.mean.flatten().tolist(), "std": backbone.std.flatten().tolist()}


def backbone_identity(backbone: FrozenBackbone) -> dict[str, Any]:
    """What features depend on, by the name that a message gives it."""
    return _identity_of(backbone.config, preprocessing_of(backbone))


def _identity_of(config: Mapping[str, Any], preprocessing: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    own = {key: value for key, value in config.items() if key not in ("name", "fingerprint", "weights")}
    identity = {"backbone": config["name"], **own, **{key: list(value) for key, value in preprocessing.items()}}
    identity["fingerprint"] = config["fingerprint"]
    plain: dict[str, Any] = json.loads(json.dumps(identity))  # tuples become lists, as they do in the file
    return plain


def _differences(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """What differs, in words; the fingerprint alone only if nothing else explains it."""
    missing = "none"
    names = [name for name in {**mine, **theirs} if mine.get(name, missing) != theirs.get(name, missing)]
    if len(names) > 1 and "fingerprint" in names:
        names.remove("fingerprint")
    return [_describe(name, mine.get(name, missing), theirs.get(name, missing)) for name in names]


def _describe(name: str, mine: object, theirs: object) -> str:
    if name == "fingerprint":
        return f"its backbone has other weights (fingerprint {str(mine)[:12]}, not {str(theirs)[:12]})"
    if name == "image size" and isinstance(mine, tuple) and isinstance(theirs, tuple):
        return f"{name} is {mine[0]}x{mine[1]}, not {theirs[0]}x{theirs[1]}"
    return f"{name} is {mine}, not {theirs}"


def parse_manifest(values: Any, place: Path | str) -> Manifest:
    """Read a manifest's values, with its format among them.

    Args:
        values: As `json.loads` gives them.
        place: Where they are from, for messages.

    Raises:
        CacheError: If they are no manifest, or one of another version.
    """
    if not isinstance(values, dict):
        raise CacheError(f"{str(place)!r} holds no JSON object.")
    version = values.get(FORMAT_KEY)
    if version != FORMAT:
        raise CacheError(
            f"{str(place)!r} has format {version}, this version of transfervae reads {FORMAT}; build the cache again."
        )
    try:
        shapes = {name: tuple(values[name]) for name in ("feature_shape", "image_size")}
        manifest = Manifest(**{name: value for name, value in {**values, **shapes}.items() if name != FORMAT_KEY})
        _check_sense(manifest)
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        raise CacheError(f"{str(place)!r} is no manifest of a cache: {error}.") from error
    return manifest


def _check_sense(manifest: Manifest) -> None:
    numbers = (*manifest.feature_shape, *manifest.image_size, manifest.rows, manifest.rows_per_shard)
    if len(numbers) != 7 or not all(isinstance(number, int) and number >= 1 for number in numbers):
        raise ValueError("its shapes make no sense")
    kinds = {"flips": bool, "computed_in": str, "data": Mapping, "owner": str | None}
    wrong = [name for name, kind in kinds.items() if not isinstance(getattr(manifest, name), kind)]
    if wrong or manifest.dtype not in DTYPES:
        raise ValueError(f"{(wrong or ['dtype'])[0]} makes no sense")
    if manifest.shards is not None and len(manifest.shards) != manifest.count:
        raise ValueError(f"it lists {len(manifest.shards)} shards of {manifest.count}")
    _identity_of(manifest.backbone, manifest.preprocessing)
