import io
import json
import subprocess
import sys
from collections import Counter
from contextlib import redirect_stdout
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.strategies import SEEDS
from transfervae.data import ItemRecord, ToyFaceFactors, ToyFaces
from transfervae.data.toyfaces import PARTS, RANGES, draw_face
from transfervae.errors import ImageSizeError, InvalidOptionError

SIZES = st.tuples(st.integers(1, 40), st.integers(1, 40))

PRINT_HASH = """
import hashlib
from transfervae.data import ToyFaces
faces = ToyFaces(50, (40, 32), seed=3)
digest = hashlib.sha256()
for index in (0, 7, 49):
    face = faces.face(index)
    digest.update(face.image.numpy().tobytes())
    digest.update(repr(face.factors).encode())
    for mask in face.masks.values():
        digest.update(mask.numpy().tobytes())
print(digest.hexdigest())
"""


def middle() -> ToyFaceFactors:
    """A face with everything visible and no factor at a limit."""
    factors = {name: low + 0.4 * (high - low) for name, (low, high) in RANGES.items()}
    return ToyFaceFactors(**factors)


@given(seed=SEEDS, index=st.integers(0, 9), size=SIZES)
def test_a_face_is_the_same_for_the_same_seed_and_index(seed: int, index: int, size: tuple[int, int]) -> None:
    first, second = ToyFaces(10, size, seed=seed), ToyFaces(500, size, seed=seed)
    assert torch.equal(first[index], second[index])
    assert first.factors(index) == second.factors(index)
    assert torch.equal(first[index], first.face(index).image)


def test_a_face_is_the_same_in_every_process() -> None:
    other = subprocess.run([sys.executable, "-c", PRINT_HASH], capture_output=True, text=True, check=True)
    here = io.StringIO()
    with redirect_stdout(here):
        exec(PRINT_HASH, {})
    assert len(here.getvalue().strip()) == 64
    assert here.getvalue() == other.stdout


def test_faces_differ_between_indices_and_seeds() -> None:
    faces = [ToyFaces(5, 16, seed=seed)[index] for seed in range(3) for index in range(5)]
    assert len({face.numpy().tobytes() for face in faces}) == 15


def test_no_face_depends_on_the_global_generator() -> None:
    before = ToyFaces(3, 16)[1]
    torch.manual_seed(99)
    assert torch.equal(ToyFaces(3, 16)[1], before)


@given(seed=SEEDS, size=SIZES)
def test_any_size_is_drawn_with_values_in_range(seed: int, size: tuple[int, int]) -> None:
    image = ToyFaces(1, size, seed=seed)[0]
    assert image.shape == (3, *size)
    assert image.dtype == torch.float32
    assert ((image >= 0) & (image <= 1)).all()


@given(seed=SEEDS, size=SIZES)
def test_every_pixel_belongs_to_exactly_one_part(seed: int, size: tuple[int, int]) -> None:
    masks = ToyFaces(1, size, seed=seed).face(0).masks
    assert tuple(masks) == PARTS
    assert torch.equal(torch.stack([mask.int() for mask in masks.values()]).sum(dim=0), torch.ones(size).int())


def test_most_faces_show_every_part() -> None:
    faces = ToyFaces(30, 64, seed=1)
    shown = Counter(name for i in range(30) for name, mask in faces.face(i).masks.items() if mask.any())
    assert set(shown) == set(PARTS)
    assert min(shown.values()) >= 27


def test_parts_lie_where_faces_have_them() -> None:
    masks = draw_face(middle(), 96).masks
    height = {name: mask.nonzero()[:, 0].float().mean().item() for name, mask in masks.items()}
    assert height["brows"] < height["eyes"] < height["mouth"]
    assert masks["skin"].float().mean() > 0.1
    assert masks["background"][0, 0]


@pytest.mark.parametrize("name", RANGES)
def test_each_factor_changes_the_picture(name: str) -> None:
    low, high = RANGES[name]
    first, second = (draw_face(replace(middle(), **{name: value}), 64) for value in (low, low + 0.9 * (high - low)))
    assert (first.image - second.image).abs().max() > 0.02


@pytest.mark.parametrize("name", ["face_width", "hair_length", "eye_openness", "brow_angle", "mouth_width", "tilt"])
def test_factors_of_shape_change_the_masks(name: str) -> None:
    low, high = RANGES[name]
    first, second = (draw_face(replace(middle(), **{name: value}), 64) for value in (low, high))
    assert any(not torch.equal(first.masks[part], second.masks[part]) for part in PARTS)


@pytest.mark.parametrize("name", ["skin_tone", "iris_tone", "brightness", "light_strength", "background_hue"])
def test_factors_of_colour_leave_the_masks_alone(name: str) -> None:
    low, high = RANGES[name]
    first, second = (draw_face(replace(middle(), **{name: value}), 64) for value in (low, high))
    assert all(torch.equal(first.masks[part], second.masks[part]) for part in PARTS)


def test_glasses_are_drawn_above_the_threshold() -> None:
    assert not replace(middle(), glasses=0.7).wears_glasses
    with_glasses, without = (draw_face(replace(middle(), glasses=value), 64).image for value in (0.71, 0.69))
    assert not torch.equal(with_glasses, without)


def test_factors_stay_in_their_ranges_and_fill_them() -> None:
    faces = ToyFaces(200)
    values = [asdict(faces.factors(index)) for index in range(200)]
    for name, (low, high) in RANGES.items():
        column = [entry[name] for entry in values]
        assert low <= min(column) < low + 0.1 * (high - low)
        assert high - 0.1 * (high - low) < max(column) <= high


def test_factors_are_independent() -> None:
    faces = ToyFaces(400)
    columns = torch.tensor([list(asdict(faces.factors(index)).values()) for index in range(400)]).T
    correlation: Tensor = torch.corrcoef(columns) - torch.eye(len(RANGES))
    assert correlation.abs().max() < 0.25


def test_indices_count_from_the_end_too_and_end() -> None:
    faces = ToyFaces(4, 16)
    assert len(faces) == 4
    assert torch.equal(faces[-1], faces[3])
    for index in (4, -5):
        with pytest.raises(IndexError, match="out of range"):
            faces[index]


@pytest.mark.parametrize("options", [{"count": 0}, {"seed": -1}])
def test_numbers_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidOptionError, match=next(iter(options))):
        ToyFaces(**options)


def test_a_size_that_cannot_be_is_refused() -> None:
    with pytest.raises(ImageSizeError):
        ToyFaces(1, (0, 4))


@given(seed=SEEDS, size=SIZES)
def test_faces_in_8_bits_are_rounded(seed: int, size: tuple[int, int]) -> None:
    image, pixels = ToyFaces(1, size, seed=seed)[0], ToyFaces(1, size, seed=seed, dtype=torch.uint8)[0]
    assert pixels.dtype == torch.uint8
    assert (pixels / 255 - image).abs().max() <= 0.5 / 255 + 1e-6


def test_other_types_are_refused() -> None:
    with pytest.raises(InvalidOptionError, match=r"float32.*uint8.*got torch\.float16"):
        ToyFaces(1, dtype=torch.float16)


def test_a_set_is_told_by_plain_values() -> None:
    identity = ToyFaces(4, (16, 12), seed=3).identity
    assert identity == {"kind": "toyfaces", "count": 4, "image_size": [16, 12], "seed": 3}
    assert json.loads(json.dumps(identity)) == identity


def test_faces_are_described_by_their_place() -> None:
    faces = ToyFaces(4, 16)
    assert faces.describe_item(3) == faces.describe_item(-1) == ItemRecord("face 3", 0, 0)
    with pytest.raises(IndexError, match="out of range"):
        faces.describe_item(4)
