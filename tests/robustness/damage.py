"""Damaged files by the thousand: each must give what the whole file gave, or an error of ours.

`python -m tests.robustness.damage --cases 10000` runs many and prints what came of them.
"""

import argparse
import hashlib
import json
import math
import random
import shutil
import signal
import struct
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

import transfervae as tv
from tests.cache.small import Noise, tiny_backbone
from tests.runs import Small
from tests.samples import make_vae, random_images
from transfervae.cache import FeatureCache
from transfervae.data import read_pixels
from transfervae.errors import TransferVAEError
from transfervae.training._checkpoint_io import SafetensorsIO

SECONDS = 20
"""Longest time that a case may take."""

ODD_VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1e308, math.nan, math.inf, 2**63, 10**30, "", "x" * 5000, "../../etc", "\x00", "ü" * 300,
    [], {}, [[]], [1, "a"], {"a": {"a": {}}},
)  # fmt: skip


class Hang(BaseException):
    """A case took too long; no handler of errors is to catch it."""


class Target(NamedTuple):
    """Files that are damaged, and what reads them.

    Attributes:
        name: For the report.
        folder: The whole files.
        read: What they give, given a copy of the folder.
        is_checked: Whether a checksum is to notice every change, so that anything else given is a fault.
        share: How often it is chosen, relative to the others.
    """

    name: str
    folder: Path
    read: Callable[[Path], Any]
    is_checked: bool = True
    share: int = 10


class Result(NamedTuple):
    """Outcomes by target, and the faults in words."""

    counts: Counter[tuple[str, str]]
    faults: list[str]


def damage_files(cases: int, seed: int, root: Path) -> Result:
    """Damage files at random, and read them.

    Args:
        cases: How many.
        seed: Which ones.
        root: An empty folder to work in.
    """
    targets = make_targets(root / "whole")
    expected = {}
    for target in targets:
        copy = Path(shutil.copytree(target.folder, root / "copy"))
        expected[target.name] = target.read(copy)
        shutil.rmtree(copy)
    before = listing(root)
    counts: Counter[tuple[str, str]] = Counter()
    faults: list[str] = []
    for case in range(cases):
        draw = random.Random(f"{seed} {case}")
        target = draw.choices(targets, [each.share for each in targets])[0]
        copy = Path(shutil.copytree(target.folder, root / "copy"))
        path = draw.choice(sorted(path for path in copy.rglob("*") if path.is_file() and path.name != ".lock"))
        done = spoil(path, draw)
        words = f"case {case} of seed {seed}: {target.name}/{path.relative_to(copy)}, {done}"
        outcome = read_in_time(target, copy, expected[target.name])
        shutil.rmtree(copy)
        counts[target.name, outcome.partition(":")[0]] += 1
        if outcome not in ("refused", "the same", "other values"):
            faults.append(f"{words}: {outcome}")
        if listing(root) != before:
            faults.append(f"{words}: files outside were touched")
            before = listing(root)
    return Result(counts, faults)


def read_in_time(target: Target, folder: Path, expected: Any) -> str:
    """Outcome of reading: "refused", "the same", "other values" where nothing can tell, or a fault."""
    try:
        with time_limit(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = target.read(folder)
    except TransferVAEError:
        return "refused"
    except Hang:
        return "hang"
    except Exception as error:  # noqa: BLE001 - this is what is looked for
        return f"other exception: {type(error).__name__}: {str(error)[:200]}"
    if equal(found, expected):
        return "the same"
    return "silent difference" if target.is_checked else "other values"


def make_targets(root: Path) -> list[Target]:
    """Write whole files of every kind."""
    backbone, vae = make_vae().backbone, make_vae().eval()
    images = random_images()
    vae.save_pretrained(root / "model")

    def load_model(folder: Path) -> Tensor:
        reconstructions: Tensor = tv.TransferVAE.from_pretrained(folder, backbone=backbone).reconstruct(images)
        return reconstructions

    frozen, noise = tiny_backbone(), Noise()
    FeatureCache.build(frozen, noise, root / "cache")

    def read_cache(folder: Path) -> list[Tensor]:
        cache = FeatureCache(folder)
        cache.check(frozen, noise)
        return [part for row in range(len(cache)) for part in cache[row]]

    run = Small(faces=8, epochs=1)
    run.train(root / "run")
    (root / "checkpoint").mkdir()
    shutil.copy(root / "run" / "checkpoints" / "last.safetensors", root / "checkpoint")

    def read_checkpoint(folder: Path) -> dict[str, Any]:
        return SafetensorsIO().load_checkpoint(folder / "last.safetensors")

    def resume(folder: Path) -> list[dict[str, float]]:
        rows = run.train(folder, resume=True).rows
        return [{name: value for name, value in row.items() if name != "images_per_second"} for row in rows]

    for name in ("pth", "safetensors"):
        (root / name).mkdir()
    state = timm.create_model("test_resnet").state_dict()
    torch.save(state, root / "pth" / "w.pth")
    save_file(state, root / "safetensors" / "w.safetensors")

    def load_weights(folder: Path) -> str:
        return tv.create_backbone("timm:test_resnet", weights=next(folder.iterdir())).fingerprint

    (root / "images").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    for suffix in ("png", "jpg", "tiff", "webp", "bmp", "gif"):
        Image.fromarray(pixels).save(root / "images" / f"x.{suffix}")

    def read_images(folder: Path) -> list[Tensor]:
        return [read_pixels(path, 8) for path in sorted(folder.iterdir())]

    return [
        Target("model", root / "model", load_model, share=30),
        Target("cache", root / "cache", read_cache, share=30),
        Target("checkpoint", root / "checkpoint", read_checkpoint, share=20),
        Target("run", root / "run", resume, is_checked=False, share=1),
        Target("weights (pth)", root / "pth", load_weights, is_checked=False, share=6),
        Target("weights (safetensors)", root / "safetensors", load_weights, is_checked=False, share=6),
        Target("images", root / "images", read_images, is_checked=False, share=20),
    ]


def spoil(path: Path, draw: random.Random) -> str:
    """Damage a file, and say how."""
    ways = [flip, truncate, fill, splice, replace]
    if path.suffix == ".json":
        ways += 3 * [edit_json]
    if path.suffix == ".safetensors":
        ways += 2 * [edit_header]
    if path.suffix == ".npy":
        ways += [edit_array]
    way = draw.choice(ways)
    path.write_bytes(way(path.read_bytes(), draw))
    return way.__name__


def flip(content: bytes, draw: random.Random) -> bytes:
    """Flip some bits."""
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 8))):
        if changed:
            changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def truncate(content: bytes, draw: random.Random) -> bytes:
    """Cut the end off."""
    return content[: draw.randrange(len(content) + 1)]


def fill(content: bytes, draw: random.Random) -> bytes:
    """Overwrite a part with zeros or garbage."""
    start = draw.randrange(len(content) + 1)
    count = draw.randrange(1, 1 + max(1, len(content) - start))
    part = bytes(count) if draw.random() < 0.5 else draw.randbytes(count)
    return content[:start] + part + content[start + count :]


def splice(content: bytes, draw: random.Random) -> bytes:
    """Repeat, drop or insert a part."""
    start, end = sorted(draw.randrange(len(content) + 1) for _ in range(2))
    return content[:start] + draw.choice((content[start:end] * 2, b"", draw.randbytes(9))) + content[end:]


def replace(_: bytes, draw: random.Random) -> bytes:
    """Put something else in the file's place."""
    deep = b"[" * 100_000 + b"]" * 100_000
    nested = b'{"a":' * 5000 + b"1" + b"}" * 5000
    return draw.choice(
        (b"", b"\n", b"null", b"{}", b"[]", deep, nested, draw.randbytes(100), b"PK\x03\x04", b"\x80\x04.")
    )


def edit_json(content: bytes, draw: random.Random) -> bytes:
    """Change, drop or add a value."""
    tree = json.loads(content)
    place = draw.choice(list(containers(tree)))
    if isinstance(place, dict):
        key = draw.choice([*place, "new"])
        if key in place and draw.random() < 0.3:
            del place[key]
        else:
            place[key] = draw.choice(ODD_VALUES)
    else:
        place.insert(draw.randrange(len(place) + 1), draw.choice(ODD_VALUES))
    return json.dumps(tree).encode()


def edit_header(content: bytes, draw: random.Random) -> bytes:
    """Change the header of a safetensors file: types, shapes, places, text, or its length."""
    (length,) = struct.unpack("<Q", content[:8])
    if draw.random() < 0.2:
        return struct.pack("<Q", draw.choice((0, 1, length - 1, length + 1, 2**40, 2**63))) + content[8:]
    header = edit_json(content[8 : 8 + length], draw)
    if draw.random() < 0.3:
        header = header.replace(b'"F32"', draw.choice((b'"I32"', b'"F64"', b'"BOOL"', b'"F99"')), 1)
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


def edit_array(content: bytes, draw: random.Random) -> bytes:
    """Change the header of an NPY file."""
    old, new = draw.choice(
        ((b"<f2", b"<i2"), (b"<f2", b"|O8"), (b"(11", b"(-1"), (b"(11", b"(99"), (b"False", b"True "), (b"|u1", b"|b1"))
    )
    return content.replace(old, new, 1)


def containers(tree: Any) -> Iterator[Any]:
    """All mappings and lists within."""
    if isinstance(tree, dict | list):
        yield tree
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from containers(value)


def equal(one: Any, other: Any) -> bool:
    """Whether two values are the same, tensors within them too."""
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        both = isinstance(one, Tensor) and isinstance(other, Tensor)
        return both and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(equal(value, other[name]) for name, value in one.items())
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other) or (
        isinstance(one, float) and isinstance(other, float) and math.isnan(one) and math.isnan(other)
    )


def listing(root: Path) -> dict[str, str]:
    """Every file below a folder with its checksum."""
    paths = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {str(path): hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() for path in paths}


@contextmanager
def time_limit() -> Iterator[None]:
    """Raise `Hang` once a case takes too long."""

    def ring(_: int, __: FrameType | None) -> None:
        raise Hang

    previous = signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def main() -> None:
    """Run many cases, and print what came of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        counts, faults = damage_files(options.cases, options.seed, Path(folder))
    for (target, outcome), count in sorted(counts.items()):
        print(f"{target:24} {outcome:20} {count:6}")
    print(f"{options.cases} cases in {time.monotonic() - began:.0f} s, {len(faults)} faults")
    print(*faults, sep="\n")
    raise SystemExit(bool(faults))


if __name__ == "__main__":
    main()
