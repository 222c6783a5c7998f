import zlib
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import Subset

from tests.cache.small import COUNT, Noise, tiny_backbone
from transfervae.cache import FeatureCache
from transfervae.cache._dataset import as_pixels, describe_item
from transfervae.data import ItemRecord
from transfervae.errors import CacheMismatchError, InvalidImageError, InvalidOptionError


class Listed(Noise):
    """Images as they are listed."""

    def __init__(self, images: list[Tensor]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


@pytest.mark.parametrize(
    "item",
    [
        torch.full((3, 8, 8), -1.0),
        torch.full((3, 8, 8), 125.0),
        torch.full((3, 8, 8), torch.nan),
        torch.full((3, 8, 8), 125),
        torch.full((3, 8, 8), 5, dtype=torch.int8),
        torch.ones(3, 8, 8, dtype=torch.bool),
        torch.ones(3, 8, 8, dtype=torch.complex64),
    ],
)
def test_what_is_neither_eight_bits_nor_in_the_unit_range_is_refused(item: Tensor) -> None:
    with pytest.raises(InvalidImageError):
        as_pixels(item)


@pytest.mark.parametrize("item", [torch.zeros(2, 8, 8), torch.zeros(8), "image", (1, torch.zeros(3, 8, 8)), None])
def test_what_is_no_image_is_refused(item: object) -> None:
    with pytest.raises(InvalidOptionError, match="Items must be images"):
        as_pixels(item)


@pytest.mark.parametrize("image", [torch.rand(3, 8, 6), torch.rand(1, 8, 6), torch.rand(8, 6)])
def test_an_image_may_be_gray_or_come_with_a_label(image: Tensor) -> None:
    expected = (image.expand(3, 8, 6) * 255).round().to(torch.uint8)
    for item in (image, (image, 1), [image, "label"], {"image": image, "label": 3}, {"photo": image, "label": 3}):
        assert torch.equal(as_pixels(item), expected)


def test_every_eight_bit_value_survives_as_a_floating_point_image() -> None:
    values = torch.arange(256, dtype=torch.uint8).repeat(3).view(3, 16, 16)
    assert torch.equal(as_pixels(values.float() / 255), values)


def test_an_item_without_a_file_is_told_by_its_pixels() -> None:
    noise = Noise()
    record = describe_item(noise, 2)
    assert record == ItemRecord("item 2", 192, zlib.crc32(noise[2].numpy().tobytes()))
    assert describe_item(noise, 2, noise[3]) != record


def test_other_images_of_the_same_class_and_number_are_not_taken_for_these(tmp_path: Path) -> None:
    first, second = Subset(Noise(), range(5)), Subset(Noise(), range(5, 10))
    backbone = tiny_backbone()
    cache = FeatureCache.build(backbone, first, tmp_path / "cache")
    cache.check(backbone, first)
    with pytest.raises(CacheMismatchError, match="item 0"):
        cache.check(backbone, second)
    with pytest.raises(CacheMismatchError, match="item 0"):
        FeatureCache.build(backbone, second, tmp_path / "cache")


def test_images_of_another_size_are_not_taken_for_these(tmp_path: Path) -> None:
    cache = FeatureCache.build(tiny_backbone(), Noise(), tmp_path / "cache")
    with pytest.raises(CacheMismatchError, match="image size is 8x8, not 12x8"):
        cache.check(tiny_backbone(), Noise(size=(12, 8)))


def test_one_image_of_another_size_is_named(tmp_path: Path) -> None:
    images = list(Noise(100).pixels)
    images[50] = images[50][:, :4]
    with pytest.raises(InvalidOptionError, match=r"item 50 is \[3, 4, 8\]"):
        FeatureCache.build(tiny_backbone(), Listed(images), tmp_path / "cache")


@pytest.mark.usefixtures("without_shape_checks")
def test_a_model_is_no_backbone(tmp_path: Path) -> None:
    class Model(torch.nn.Module):
        backbone = tiny_backbone()

    with pytest.raises(InvalidOptionError, match=r"got Model; pass vae.backbone"):
        FeatureCache.build(Model(), Noise(), tmp_path / "cache")  # type: ignore[arg-type]
    cache = FeatureCache.build(tiny_backbone(), Noise(), tmp_path / "cache")
    with pytest.raises(InvalidOptionError, match="got str"):
        cache.check("packaged")  # type: ignore[arg-type]
    assert len(cache) == COUNT
