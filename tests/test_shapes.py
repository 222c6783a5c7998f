from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.strategies import FLOAT_DTYPES, images
from transfervae.errors import ImageSizeError, InvalidImageError, InvalidOptionError
from transfervae.shapes import check_image_range, check_image_tensor, check_positive, parse_image_size, unit_images

IMAGENET_MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
IMAGENET_STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)


@given(batch=images(), dtype=FLOAT_DTYPES)
def test_images_of_any_size_and_float_type_pass(batch: Tensor, dtype: torch.dtype) -> None:
    given_images = batch.to(dtype)
    assert check_image_tensor(given_images) is given_images
    check_image_range(given_images)


@pytest.mark.parametrize(
    ("wrong", "advice"),
    [
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), r"images\.float\(\) / 255"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.int64), r"int64"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.bool), r"bool"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.complex64), r"complex64"),
        (torch.zeros(3, 4, 4), r"unsqueeze\(0\)"),
        (torch.zeros(4, 4), r"\[b, 3, h, w\].*\[4, 4\]"),
        (torch.zeros(1, 2, 3, 4, 4), r"\[1, 2, 3, 4, 4\]"),
        (torch.zeros(2, 1, 4, 4), r"expand\(-1, 3, -1, -1\)"),
        (torch.zeros(2, 4, 4, 4), r"alpha"),
        (torch.zeros(2, 8, 8, 3), r"permute\(0, 3, 1, 2\)"),
        (torch.zeros(2, 7, 8, 8), r"got 7\."),
        (torch.zeros(0, 3, 4, 4), r"no image"),
    ],
)
@pytest.mark.usefixtures("without_shape_checks")
def test_a_tensor_that_is_no_batch_of_images_is_refused_with_advice(wrong: Tensor, advice: str) -> None:
    with pytest.raises(InvalidImageError, match=advice):
        check_image_tensor(wrong)


@given(batch=images())
def test_imagenet_normalised_images_are_refused(batch: Tensor) -> None:
    batch[0, :, 0, 0] = 0.0
    with pytest.raises(InvalidImageError, match="normalisation happens inside"):
        check_image_range((batch - IMAGENET_MEAN) / IMAGENET_STD)


@given(batch=images())
def test_images_from_0_to_255_are_refused(batch: Tensor) -> None:
    batch[0, :, 0, 0] = 1.0
    with pytest.raises(InvalidImageError, match="divide 8-bit values by 255"):
        check_image_range(255 * batch)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@given(batch=images(), place=st.integers(0, 10**6))
def test_values_that_are_not_finite_are_refused(value: float, batch: Tensor, place: int) -> None:
    batch.view(-1)[place % batch.numel()] = value
    with pytest.raises(InvalidImageError, match="not finite"):
        check_image_range(batch)


@pytest.mark.parametrize("value", [-0.009, 1.009])
def test_a_rounding_error_passes(value: float) -> None:
    check_image_range(torch.full((1, 3, 2, 2), value))


@pytest.mark.parametrize("value", [-0.02, 1.02])
def test_more_than_a_rounding_error_is_refused(value: float) -> None:
    with pytest.raises(InvalidImageError, match="clamp"):
        check_image_range(torch.full((1, 3, 2, 2), value))


@given(size=st.tuples(st.integers(1, 4), st.just(3), st.integers(1, 8), st.integers(1, 8)), seed=st.integers(0, 100))
def test_8_bit_images_are_divided_by_255(size: tuple[int, ...], seed: int) -> None:
    pixels = torch.randint(0, 256, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    before = pixels.clone()
    images = unit_images(pixels)
    assert images.dtype == torch.float32
    assert torch.equal(images, pixels.float() / 255)
    assert torch.equal(pixels, before)
    check_image_range(check_image_tensor(images))


def test_unit_images_keeps_the_memory_format() -> None:
    pixels = torch.zeros(2, 3, 4, 5, dtype=torch.uint8).to(memory_format=torch.channels_last)
    assert unit_images(pixels).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("wrong", "advice"),
    [
        (torch.zeros(2, 3, 4, 4), r"uint8.*float32.*as they are"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.int64), r"int64"),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), r"unsqueeze\(0\)"),
        (torch.zeros(2, 8, 8, 3, dtype=torch.uint8), r"permute\(0, 3, 1, 2\)"),
        (torch.zeros(0, 3, 4, 4, dtype=torch.uint8), r"no image"),
        ([[0, 1]], r"list"),
    ],
)
@pytest.mark.usefixtures("without_shape_checks")
def test_what_is_no_batch_of_8_bit_images_is_refused_with_advice(wrong: Any, advice: str) -> None:
    with pytest.raises(InvalidImageError, match=advice):
        unit_images(wrong)


@given(height=st.integers(1, 10**5), width=st.integers(1, 10**5))
def test_an_image_size_is_height_and_width(height: int, width: int) -> None:
    assert parse_image_size(height) == (height, height)
    assert parse_image_size(f"{height}x{width}") == (height, width)
    assert parse_image_size(str(height)) == (height, height)
    assert parse_image_size((height, width)) == parse_image_size([height, width]) == (height, width)


@pytest.mark.parametrize(
    "size",
    [
        0,
        -1,
        (0, 4),
        (4, -4),
        (4,),
        (4, 4, 4),
        (),
        (4.0, 4),
        ("4", 4),
        "4x",
        "x4",
        "4x4x4",
        "0x4",
        "",
        "wide",
        None,
        64.0,
    ],
)
@pytest.mark.usefixtures("without_shape_checks")
def test_anything_else_is_no_image_size(size: Any) -> None:
    with pytest.raises(ImageSizeError, match="positive number"):
        parse_image_size(size)


def test_check_positive_names_the_first_option_that_is_not() -> None:
    check_positive(first=1, second=10)
    with pytest.raises(InvalidOptionError, match="second must be a whole number of at least 1, got 0"):
        check_positive(first=1, second=0, third=-1)
