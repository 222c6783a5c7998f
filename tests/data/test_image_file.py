import contextlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor

from transfervae.data import read_image, read_pixels
from transfervae.errors import ImageFileError, ImageSizeError

UNDO = {
    1: lambda values: values,
    2: lambda values: np.flip(values, 1),
    3: lambda values: np.rot90(values, 2),
    4: lambda values: np.flip(values, 0),
    5: lambda values: np.swapaxes(values, 0, 1),
    6: lambda values: np.rot90(values, -1),
    7: lambda values: np.swapaxes(np.rot90(values, 2), 0, 1),
    8: lambda values: np.rot90(values, 1),
}
ORIENTATION = 0x0112
PILLOW_MAY_WARN = pytest.mark.filterwarnings("ignore::UserWarning")


def random_pixels(height: int = 5, width: int = 7, channels: int = 3, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def as_tensor(pixels: Any) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1) / 255


def save(path: Path, pixels: Any, **options: Any) -> Path:
    Image.fromarray(pixels).save(path, **options)
    return path


@given(height=st.integers(1, 12), width=st.integers(1, 12), seed=st.integers(0, 1000))
def test_pixels_are_read_as_they_are(tmp_path: Path, height: int, width: int, seed: int) -> None:
    pixels = random_pixels(height, width, seed=seed)
    image = read_image(save(tmp_path / "image.png", pixels))
    assert image.dtype == torch.float32
    assert torch.equal(image, as_tensor(pixels))


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "webp"])
def test_lossless_formats_agree(tmp_path: Path, suffix: str) -> None:
    pixels = random_pixels()
    options = {"lossless": True} if suffix == "webp" else {}
    assert torch.equal(read_image(str(save(tmp_path / f"image.{suffix}", pixels, **options))), as_tensor(pixels))


@pytest.mark.parametrize("orientation", UNDO)
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    pixels = random_pixels()
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image = read_image(save(tmp_path / "image.png", pixels, exif=exif))
    assert torch.equal(image, as_tensor(UNDO[orientation](pixels)))


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_exif_orientation_of_a_jpeg_is_applied_before_fitting(tmp_path: Path, orientation: int) -> None:
    pixels = np.zeros((32, 64, 3), dtype=np.uint8)
    pixels[:, :16] = 255
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    upright = UNDO[orientation](pixels)
    image = read_image(save(tmp_path / "image.jpg", pixels, exif=exif, quality=95), upright.shape[:2])
    assert (image - as_tensor(upright)).abs().mean() < 0.02


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_16_bit_gray_is_rescaled(tmp_path: Path, suffix: str) -> None:
    values = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    image = read_image(save(tmp_path / f"image.{suffix}", values))
    expected = torch.from_numpy(values.astype(np.float32) / 65535).expand(3, 8, 8)
    torch.testing.assert_close(image, expected, rtol=0, atol=0.5 / 255 + 1e-6)


def test_8_bit_gray_is_replicated(tmp_path: Path) -> None:
    values = random_pixels()[..., 0]
    expected = as_tensor(np.repeat(values[..., None], 3, axis=2))
    assert torch.equal(read_image(save(tmp_path / "image.png", values)), expected)


def test_1_bit_images_are_black_and_white(tmp_path: Path) -> None:
    values = random_pixels()[..., 0] > 127
    image = read_image(save(tmp_path / "image.png", values))
    assert torch.equal(image, torch.from_numpy(values).float().expand(3, *values.shape))


def palette_image(**options: Any) -> tuple[Image.Image, dict[str, Any]]:
    picture = Image.new("P", (2, 1))
    picture.putpalette([255, 0, 0, 0, 255, 0])
    picture.putpixel((1, 0), 1)
    return picture, options


def test_a_palette_is_looked_up(tmp_path: Path) -> None:
    picture, _ = palette_image()
    picture.save(tmp_path / "image.png")
    assert read_image(tmp_path / "image.png")[:, 0].T.tolist() == [[1, 0, 0], [0, 1, 0]]


@pytest.mark.parametrize(("transparency", "first"), [(0, [1.0, 1.0, 1.0]), (b"\x80\xff", [1.0, 127 / 255, 127 / 255])])
def test_transparent_palette_colours_are_composited_on_white(
    tmp_path: Path, transparency: int | bytes, first: list[float]
) -> None:
    picture, _ = palette_image()
    picture.save(tmp_path / "image.png", transparency=transparency)
    image = read_image(tmp_path / "image.png")[:, 0].T
    torch.testing.assert_close(image, torch.tensor([first, [0.0, 1.0, 0.0]]), rtol=0, atol=1.5 / 255)


@pytest.mark.parametrize("channels", [2, 4])
def test_alpha_is_composited_on_white(tmp_path: Path, channels: int) -> None:
    pixels = random_pixels(channels=channels)
    image = read_image(save(tmp_path / "image.png", pixels))
    values = pixels.astype(np.float64) / 255
    opaque = values[..., -1:] * values[..., :-1] + 1 - values[..., -1:]
    expected = torch.from_numpy(np.broadcast_to(opaque, (5, 7, 3)).copy()).permute(2, 0, 1).float()
    torch.testing.assert_close(image, expected, rtol=0, atol=1.5 / 255)


def test_a_transparent_colour_is_composited_on_white(tmp_path: Path) -> None:
    pixels = np.zeros((1, 2, 3), dtype=np.uint8)
    pixels[0, 0] = (10, 20, 30)
    image = read_image(save(tmp_path / "image.png", pixels, transparency=(10, 20, 30)))
    assert image[:, 0].T.tolist() == [[1, 1, 1], [0, 0, 0]]


def test_cmyk_is_converted(tmp_path: Path) -> None:
    picture = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    picture.save(tmp_path / "image.jpg", quality=95)
    colour = read_image(tmp_path / "image.jpg").mean(dim=(1, 2))
    torch.testing.assert_close(colour, torch.tensor([1.0, 0.0, 0.0]), rtol=0, atol=0.03)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tiff"])
def test_the_first_frame_of_an_animation_is_read(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "lime", "blue")]
    options: dict[str, Any] = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(tmp_path / f"image.{suffix}", save_all=True, append_images=frames[1:], **options)
    image = read_image(tmp_path / f"image.{suffix}")
    assert image.mean(dim=(1, 2)).tolist() == [1, 0, 0]


def test_floating_point_pixels_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "image.tiff", np.random.default_rng(0).random((4, 4)).astype(np.float32))
    with pytest.raises(ImageFileError, match="floating point"):
        read_image(tmp_path / "image.tiff")


def test_the_refusal_of_floating_point_pixels_names_the_file(tmp_path: Path) -> None:
    save(tmp_path / "image.tiff", np.zeros((4, 4), dtype=np.float32))
    with pytest.raises(ImageFileError, match=r"image\.tiff"):
        read_image(tmp_path / "image.tiff")


@PILLOW_MAY_WARN
@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "webp", "tiff"])
@pytest.mark.parametrize("kept", [0.0, 0.02, 0.3, 0.7])
def test_a_file_cut_off_is_refused_by_name(tmp_path: Path, suffix: str, kept: float) -> None:
    path = save(tmp_path / f"image.{suffix}", random_pixels(32, 32))
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ImageFileError, match=rf"image\.{suffix}"):
        read_image(path)


@given(content=st.binary(max_size=200))
def test_garbage_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    with pytest.raises(ImageFileError, match=r"image\.png"):
        read_image(path)


@PILLOW_MAY_WARN
@given(data=st.data())
def test_a_damaged_byte_gives_an_image_or_an_error_of_ours(tmp_path: Path, data: st.DataObject) -> None:
    suffix = data.draw(st.sampled_from(["png", "jpg", "webp", "gif", "tiff", "bmp"]))
    path = save(tmp_path / f"image.{suffix}", random_pixels(16, 16))
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    with contextlib.suppress(ImageFileError):
        assert read_image(path, 8).shape == (3, 8, 8)


def test_text_an_empty_file_a_folder_and_nothing_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.png").mkdir()
    for name in ("text.png", "empty.png", "folder.png", "missing.png"):
        with pytest.raises(ImageFileError, match=name.replace(".", r"\.")):
            read_image(tmp_path / name)


@given(source=st.tuples(st.integers(1, 30), st.integers(1, 30)), size=st.tuples(st.integers(1, 30), st.integers(1, 30)))
def test_any_size_fits_any_size(tmp_path: Path, source: tuple[int, int], size: tuple[int, int]) -> None:
    image = read_image(save(tmp_path / "image.png", random_pixels(*source)), size)
    assert image.shape == (3, *size)
    assert ((image >= 0) & (image <= 1)).all()


def test_an_image_of_the_right_size_is_not_resampled(tmp_path: Path) -> None:
    pixels = random_pixels(9, 11)
    assert torch.equal(read_image(save(tmp_path / "image.png", pixels), (9, 11)), as_tensor(pixels))


@pytest.mark.parametrize("source", [(200, 300), (300, 200), (200, 200)])
@pytest.mark.parametrize("size", [(64, 64), (64, 100), (100, 64)])
def test_a_circle_stays_round_and_central(tmp_path: Path, source: tuple[int, int], size: tuple[int, int]) -> None:
    picture = Image.new("RGB", (source[1], source[0]), "white")
    middle_x, middle_y = source[1] / 2, source[0] / 2
    ImageDraw.Draw(picture).ellipse((middle_x - 40, middle_y - 40, middle_x + 40, middle_y + 40), fill="black")
    picture.save(tmp_path / "image.png")
    dark = read_image(tmp_path / "image.png", size)[0] < 0.5
    rows, columns = dark.any(dim=1).nonzero().flatten(), dark.any(dim=0).nonzero().flatten()
    assert abs(len(rows) - len(columns)) <= 1
    assert rows.float().mean().item() == pytest.approx((size[0] - 1) / 2, abs=1)
    assert columns.float().mean().item() == pytest.approx((size[1] - 1) / 2, abs=1)
    scale = max(size[0] / source[0], size[1] / source[1])
    assert dark.sum().item() == pytest.approx(math.pi * (40 * scale) ** 2, rel=0.1)


def test_shrinking_is_antialiased(tmp_path: Path) -> None:
    pixels = np.zeros((64, 64, 3), dtype=np.uint8)
    pixels[::2, ::2] = pixels[1::2, 1::2] = 255
    image = read_image(save(tmp_path / "image.png", pixels), 16)
    assert (image - 0.5).abs().max() < 0.1


def test_a_size_that_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageSizeError):
        read_image(save(tmp_path / "image.png", random_pixels()), (0, 4))


@given(height=st.integers(1, 12), width=st.integers(1, 12), seed=st.integers(0, 1000))
def test_pixels_are_the_image_in_8_bits(tmp_path: Path, height: int, width: int, seed: int) -> None:
    path = save(tmp_path / "image.png", random_pixels(seed=seed))
    pixels = read_pixels(path, (height, width))
    assert pixels.dtype == torch.uint8
    assert pixels.is_contiguous()
    assert torch.equal(pixels.float() / 255, read_image(path, (height, width)))


def photograph(height: int, width: int) -> Image.Image:
    """Detail at every scale, falling off as in photographs."""
    random = np.random.default_rng(0)
    layers = [random.normal(size=(height // step + 2, width // step + 2, 3)) * step for step in (1, 4, 16, 64)]
    planes = [
        sum(np.asarray(Image.fromarray(layer[..., c].astype(np.float32)).resize((width, height))) for layer in layers)
        for c in range(3)
    ]
    values: Any = np.stack(planes, axis=-1)
    return Image.fromarray(np.clip(128 + values, 0, 255).astype(np.uint8))


def decoded_in_full(path: Path, size: tuple[int, int]) -> Tensor:
    """The oracle: everything decoded, turned upright, and only then scaled."""
    with Image.open(path) as file:
        upright = ImageOps.exif_transpose(file).convert("RGB")
    return as_tensor(np.array(ImageOps.fit(upright, size[::-1], Image.Resampling.BICUBIC)))


@pytest.mark.parametrize("orientation", UNDO)
@pytest.mark.parametrize("size", [(64, 64), (40, 100), (90, 30)])
def test_a_large_jpeg_is_read_as_if_decoded_in_full(
    tmp_path: Path, orientation: int, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = tmp_path / "image.jpg"
    photograph(603, 805).save(path, exif=exif, quality=92)
    sources = sizes_before_scaling(monkeypatch)
    image = read_image(path, size)
    wanted = size[::-1] if orientation < 5 else size
    assert sources[0] != (805, 603)
    assert all(source >= 2 * side for source, side in zip(sources[0], wanted, strict=True))
    difference = (image - decoded_in_full(path, size)).abs()
    assert difference.mean() < 1 / 255
    assert difference.max() < 8 / 255


@pytest.mark.parametrize("size", [(64, 64), (40, 100), (90, 30)])
@pytest.mark.parametrize("missing", [(1, 0), (0, 1), (1, 1), (20, 20)])
def test_a_jpeg_below_four_times_the_size_is_decoded_in_full(
    tmp_path: Path, missing: tuple[int, int], size: tuple[int, int]
) -> None:
    path = tmp_path / "image.jpg"
    photograph(4 * size[0] - missing[0], 4 * size[1] - missing[1]).save(path, quality=92)
    assert torch.equal(read_image(path, size), decoded_in_full(path, size))


def test_a_jpeg_is_decoded_in_full_without_a_size(tmp_path: Path) -> None:
    photograph(300, 400).save(tmp_path / "image.jpg")
    assert torch.equal(read_image(tmp_path / "image.jpg"), decoded_in_full(tmp_path / "image.jpg", (300, 400)))


def test_a_large_picture_that_is_no_jpeg_is_decoded_in_full(tmp_path: Path) -> None:
    photograph(300, 400).save(tmp_path / "image.png")
    assert torch.equal(read_image(tmp_path / "image.png", 16), decoded_in_full(tmp_path / "image.png", (16, 16)))


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_large_jpegs_of_other_colours_are_read_too(tmp_path: Path, mode: str) -> None:
    photograph(300, 400).convert(mode).save(tmp_path / "image.jpg", quality=92)
    difference = read_image(tmp_path / "image.jpg", 32) - decoded_in_full(tmp_path / "image.jpg", (32, 32))
    assert difference.abs().mean() < 2 / 255


def test_of_a_large_file_of_several_jpegs_the_first_is_read(tmp_path: Path) -> None:
    first, second = photograph(300, 400), Image.new("RGB", (300, 400), "red")
    first.save(tmp_path / "image.mpo", save_all=True, append_images=[second], quality=92)
    difference = read_image(tmp_path / "image.mpo", 32) - decoded_in_full(tmp_path / "image.mpo", (32, 32))
    assert difference.abs().mean() < 2 / 255


def test_a_large_jpeg_cut_off_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    photograph(300, 400).save(path)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ImageFileError, match=r"image\.jpg"):
        read_pixels(path, 16)


def sizes_before_scaling(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Collects the (width, height) of every picture that is scaled from now on."""
    sizes = []
    resize = Image.Image.resize

    def note(image: Image.Image, *arguments: Any, **options: Any) -> Image.Image:
        sizes.append(image.size)
        return resize(image, *arguments, **options)

    monkeypatch.setattr(Image.Image, "resize", note)
    return sizes
