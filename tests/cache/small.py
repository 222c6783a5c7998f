"""A backbone and images so small that a cache of them takes no time."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.data import Dataset

import transfervae as tv
from transfervae.cache import FeatureCache
from transfervae.cache.manifest import row_bytes

SIZE = 8
COUNT = 11
MEAN = (0.5, 0.5, 0.5)
STD = (0.25, 0.25, 0.25)


class Noise(Dataset[Tensor]):
    """Uint8 images that have no files and say nothing of themselves."""

    def __init__(self, count: int = COUNT, size: tuple[int, int] = (SIZE, SIZE)) -> None:
        generator = torch.Generator().manual_seed(0)
        self.pixels = torch.randint(0, 256, (count, 3, *size), generator=generator, dtype=torch.uint8)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Tensor:
        return self.pixels[index]


def tiny_backbone(
    *, seed: int = 0, scale: float = 1.0, mean: Sequence[float] = MEAN, std: Sequence[float] = STD
) -> tv.FrozenBackbone:
    """One convolution with stride 2: features are [4, 4, 4]."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        network = nn.Conv2d(3, 4, kernel_size=3, stride=2, padding=1)
        network.weight.mul_(scale)
    return tv.FrozenBackbone.from_module(network, mean=mean, std=std)


def write_pictures(folder: Path, count: int = COUNT, size: tuple[int, int] = (SIZE, SIZE)) -> Path:
    """Image files named 00.png, 01.png, …"""
    folder.mkdir()
    for number, pixels in enumerate(Noise(count, size).pixels):
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / f"{number:02d}.png")
    return folder


def shard_bytes(rows: int, *, flips: bool = False) -> int:
    """What `SHARD_BYTES` must be for shards of so many rows."""
    return rows * row_bytes((SIZE, SIZE), (4, SIZE // 2, SIZE // 2), flips=flips)


def contents(folder: Path) -> dict[str, bytes]:
    """All that is in a folder but its lock."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def assert_holds(cache: FeatureCache, backbone: tv.FrozenBackbone, images: Tensor) -> None:
    """A cache holds these images, in this order, and their features as they are stored, however they were batched."""
    assert len(cache) == len(images)
    with torch.no_grad():
        expected = backbone(images.float() / 255).to(cache.manifest.torch_dtype)
    for row, item in enumerate(cache[row] for row in range(len(cache))):
        assert torch.equal(item.image, images[row])
        assert_close(item.features, expected[row], rtol=2 * torch.finfo(expected.dtype).eps, atol=1e-6)
