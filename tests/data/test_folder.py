import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from transfervae.data import ImageFolder, ItemRecord, read_image
from transfervae.data.folder import SUFFIXES
from transfervae.errors import ImageFileError, ImageSizeError, InvalidOptionError
from transfervae.shapes import unit_images


def save(path: Path, *, seed: int = 0, size: tuple[int, int] = (6, 9)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_images_below_a_folder_are_items_in_the_order_of_their_paths(tmp_path: Path) -> None:
    names = ["b/a.png", "a.png", "b.png", "a/c/d.png", "a/b.png", "B.png"]
    for seed, name in enumerate(names):
        save(tmp_path / name, seed=seed)
    folder = ImageFolder(tmp_path, (4, 5))
    assert folder.paths == sorted(tmp_path / name for name in names)
    assert len(folder) == len(names)
    for index, path in enumerate(folder.paths):
        assert torch.equal(folder[index], read_image(path, (4, 5)))
        assert folder[index].shape == (3, 4, 5)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_suffixes_count_in_any_case(tmp_path: Path, suffix: str) -> None:
    save(tmp_path / f"a{suffix}")
    save(tmp_path / f"b{suffix.upper()}")
    assert len(ImageFolder(tmp_path, 4)) == 2


def test_hidden_and_other_files_are_passed_over(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    for name in (".hidden.png", ".cache/a.png", "b/.deep/c/d.png", "b/._a.png"):
        save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "png").write_text("no image")
    assert ImageFolder(tmp_path, 4).paths == [tmp_path / "a.png"]


def test_a_hidden_folder_may_be_the_root(tmp_path: Path) -> None:
    save(tmp_path / ".root" / "a.png")
    assert len(ImageFolder(tmp_path / ".root", 4)) == 1


def test_links_are_followed(tmp_path: Path) -> None:
    save(tmp_path / "elsewhere" / "a.png")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "elsewhere")
    assert ImageFolder(tmp_path / "root", 4).paths == [tmp_path / "root" / "link" / "a.png"]


def test_several_folders_and_single_files_are_taken_in_the_order_given(tmp_path: Path) -> None:
    second, first = save(tmp_path / "y" / "b.png"), save(tmp_path / "x" / "a.png")
    alone = save(tmp_path / "alone.png")
    assert ImageFolder([tmp_path / "y", str(alone), tmp_path / "x"], 4).paths == [second, alone, first]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageFileError, match=r"There is no folder .*nowhere"):
        ImageFolder(tmp_path / "nowhere", 4)


def test_an_empty_folder_and_one_without_images_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ImageFileError, match="is empty"):
        ImageFolder(tmp_path, 4)
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(ImageFileError, match=r"holds no images; images are files named \*\.bmp"):
        ImageFolder(tmp_path, 4)


def spoil(folder: Path, count: int = 5) -> list[Path]:
    save(folder / "good.png")
    bad = [folder / f"bad{i}.png" for i in range(count)]
    for path in bad:
        path.write_text("no image")
    return bad


def test_bad_files_are_named_and_counted_at_once(tmp_path: Path) -> None:
    spoil(tmp_path)
    with pytest.raises(ImageFileError, match=r"bad0\.png.*bad1\.png.*bad2\.png.*2 more") as caught:
        ImageFolder(tmp_path, 4)
    assert "bad3" not in str(caught.value)
    assert "good" not in str(caught.value)


def test_skipped_files_are_listed_with_their_reason(tmp_path: Path) -> None:
    bad = spoil(tmp_path)
    folder = ImageFolder(tmp_path, 4, skip_bad=True)
    assert folder.paths == [tmp_path / "good.png"]
    assert list(folder.bad) == bad
    assert all(path.name in reason for path, reason in folder.bad.items())
    assert folder[0].shape == (3, 4, 4)


def test_a_folder_of_bad_files_only_is_refused_even_when_skipping(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_text("no image")
    with pytest.raises(ImageFileError, match=r"None of the 1 images can be read.*bad\.png"):
        ImageFolder(tmp_path, 4, skip_bad=True)


def test_a_truncated_image_is_found_before_training(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", size=(64, 64))
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ImageFileError, match=r"a\.png"):
        ImageFolder(tmp_path, 4)


def test_without_verification_a_bad_file_shows_when_it_is_read(tmp_path: Path) -> None:
    spoil(tmp_path, count=1)
    folder = ImageFolder(tmp_path, 4, verify=False)
    assert len(folder) == 2
    with pytest.raises(ImageFileError, match=r"bad0\.png"):
        folder[0]


def test_progress_counts_to_the_number_of_files(tmp_path: Path) -> None:
    for i in range(4):
        save(tmp_path / f"{i}.png")
    calls: list[tuple[int, int]] = []
    ImageFolder(tmp_path, 4, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_size_that_cannot_be_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    with pytest.raises(ImageSizeError):
        ImageFolder(tmp_path, (4, 0))


def test_images_of_several_sizes_make_batches(tmp_path: Path) -> None:
    for i, size in enumerate([(1, 30), (30, 1), (7, 7)]):
        save(tmp_path / f"{i}.png", size=size)
    (batch,) = DataLoader(ImageFolder(tmp_path, (5, 6)), batch_size=3)
    assert batch.shape == (3, 3, 5, 6)


@pytest.mark.parametrize("name", ["a b.png", "ünï.png", "a'b.png", "[a].png"])
def test_unusual_names_are_read(tmp_path: Path, name: str) -> None:
    save(tmp_path / name)
    assert [os.fspath(path) for path in ImageFolder(os.fspath(tmp_path), 4).paths] == [os.fspath(tmp_path / name)]


def test_links_in_circles_give_every_image_once(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "inner" / "a.png")
    (tmp_path / "inner" / "up").symlink_to(tmp_path)
    assert len(ImageFolder(tmp_path, 4)) == 1


def test_what_is_no_regular_file_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageFileError, match=r"pipe\.png"):
        ImageFolder(tmp_path, 4)


def test_items_in_8_bits_have_the_same_values(tmp_path: Path) -> None:
    for seed in range(3):
        save(tmp_path / f"{seed}.png", seed=seed)
    images, pixels = ImageFolder(tmp_path, (4, 5)), ImageFolder(tmp_path, (4, 5), dtype=torch.uint8)
    (batch,) = DataLoader(pixels, batch_size=3)
    assert batch.dtype == torch.uint8
    assert torch.equal(unit_images(batch), torch.stack([images[i] for i in range(3)]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.int64])
def test_other_types_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    with pytest.raises(InvalidOptionError, match=r"float32.*uint8.*got torch\."):
        ImageFolder(tmp_path, 4, dtype=dtype)


def test_items_are_described_without_reading_them(tmp_path: Path) -> None:
    path = save(tmp_path / "b" / "a.png")
    os.utime(path, ns=(1, 1_234_567_890_123_456_789))
    folder = ImageFolder(tmp_path, 4)
    assert folder.describe_item(0) == ItemRecord("b/a.png", path.stat().st_size, 1_234_567_890_123_456_789)
    assert folder.identity == {"kind": "folder", "items": 1}


def test_items_of_several_roots_are_named_by_their_whole_paths(tmp_path: Path) -> None:
    paths = [save(tmp_path / "x" / "a.png"), save(tmp_path / "y" / "a.png")]
    folder = ImageFolder([tmp_path / "x", paths[1]], 4)
    assert [folder.describe_item(i).name for i in range(2)] == [path.as_posix() for path in paths]


def test_a_file_that_is_gone_cannot_be_described(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png")
    folder = ImageFolder(tmp_path, 4)
    path.unlink()
    with pytest.raises(ImageFileError, match=r"a\.png"):
        folder.describe_item(0)
