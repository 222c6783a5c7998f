from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from tests.samples import make_vae, random_images
from transfervae.errors import FileWriteError, InvalidOptionError
from transfervae.pictures import (
    GAP,
    SMALLEST_TILE,
    shorten,
    write_architecture,
    write_grid,
    write_history,
    write_pairs,
    write_reconstructions,
    write_samples,
)

SIDES = st.integers(100, 140)


def pixels(path: Path) -> Tensor:
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)


@given(rows=st.integers(1, 3), columns=st.integers(1, 3), height=SIDES, width=SIDES)
def test_each_image_lies_in_its_place(tmp_path: Path, rows: int, columns: int, height: int, width: int) -> None:
    images = torch.rand(rows, columns, 3, height, width)
    write_grid(tmp_path / "grid.png", list(images))
    sheet = pixels(tmp_path / "grid.png")
    factor = sheet.shape[1] // (rows * (height + GAP) + GAP)
    sheet = sheet[:, ::factor, ::factor]
    assert sheet.shape == (3, rows * (height + GAP) + GAP, columns * (width + GAP) + GAP)
    for y in range(rows):
        for x in range(columns):
            top, left = GAP + y * (height + GAP), GAP + x * (width + GAP)
            tile = sheet[:, top : top + height, left : left + width]
            assert torch.equal(tile, (images[y, x] * 255).round().byte())


@pytest.mark.parametrize("side", [1, 7, 32, 63])
def test_small_images_are_enlarged_by_a_whole_factor(tmp_path: Path, side: int) -> None:
    write_grid(tmp_path / "grid.png", [torch.rand(2, 3, side, side)])
    sheet = pixels(tmp_path / "grid.png")
    assert sheet.shape[1] % (side + 2 * GAP) == 0
    factor = sheet.shape[1] // (side + 2 * GAP)
    assert side * factor >= SMALLEST_TILE
    assert torch.equal(sheet, sheet[:, ::factor, ::factor].repeat_interleave(factor, 1).repeat_interleave(factor, 2))


def test_rows_may_differ_in_length(tmp_path: Path) -> None:
    write_grid(tmp_path / "grid.png", [torch.zeros(3, 3, 130, 130), torch.zeros(1, 3, 130, 130)])
    sheet = pixels(tmp_path / "grid.png")
    assert (sheet[:, GAP + 132 :, GAP + 132 :] == 255).all()


def test_pairs_stand_above_each_other_in_rows_of_eight(tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs.png", torch.zeros(10, 3, 128, 128), torch.ones(10, 3, 128, 128) * 0.5)
    sheet = pixels(tmp_path / "pairs.png")
    assert sheet.shape == (3, 4 * 130 + GAP, 8 * 130 + GAP)
    assert [sheet[0, GAP + 130 * row, GAP].item() for row in range(4)] == [0, 128, 0, 128]


@pytest.mark.parametrize("training", [False, True])
def test_reconstructions_leave_the_model_in_its_mode(tmp_path: Path, *, training: bool) -> None:
    vae = make_vae().train(training)
    write_reconstructions(tmp_path / "first.png", vae, random_images())
    write_reconstructions(tmp_path / "second.png", vae, random_images())
    assert vae.training == training
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()


def test_samples_follow_their_seed(tmp_path: Path) -> None:
    vae = make_vae()
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_samples(tmp_path / name, vae, count=3, seed=seed)
    assert torch.equal(pixels(tmp_path / "a"), pixels(tmp_path / "b"))
    assert not torch.equal(pixels(tmp_path / "a"), pixels(tmp_path / "c"))


def test_no_sample_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidOptionError, match="count"):
        write_samples(tmp_path / "a.png", make_vae(), count=0)


def test_history_and_architecture_are_drawn(tmp_path: Path) -> None:
    terms = ("loss", "term/rmse", "term/kl")
    row = {f"{split}/{term}": 0.5 for split in ("train", "val") for term in terms}
    write_history(str(tmp_path / "history.png"), [{"epoch": epoch, **row} for epoch in (1, 2)])
    write_architecture(tmp_path / "architecture.png", make_vae())
    for name in ("history.png", "architecture.png"):
        drawn = pixels(tmp_path / name)
        assert min(drawn.shape[1:]) > 200
        assert drawn.float().std() > 1


def test_an_unwritable_place_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "inner").mkdir()
    with pytest.raises(FileWriteError, match="taken"):
        write_grid(tmp_path / "taken", [torch.rand(1, 3, 8, 8)])


@pytest.mark.parametrize(
    ("number", "short"),
    [(0, "0"), (7, "7"), (999, "999"), (1000, "1k"), (20_024_384, "20M"), (4.56e9, "4.56G"), (3e12, "3T")],
)
def test_counts_are_shortened_to_three_digits(number: float, short: str) -> None:
    assert shorten(number) == short
