"""Decoder builders: trainable maps from a latent to an image in [0, 1], for any latent and any image size."""

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Protocol, TypeAlias, runtime_checkable

from einops.layers.torch import Rearrange
from torch import Tensor, nn

from transfervae.errors import InvalidOptionError, ShapeError
from transfervae.shapes import Images, Latents, check_positive, parse_image_size

LARGEST_START_GRID = 8
NARROWEST_STAGE = 16
GROUP_CHANNELS = 8

Size: TypeAlias = tuple[int, int]
MakeUpsample: TypeAlias = Callable[[int, int, Size], nn.Module]


@runtime_checkable
class DecoderBuilder(Protocol):
    """How decoders are made: `resize_decoder` and its siblings."""

    def __call__(self, latent_shape: Sequence[int], image_size: int | Sequence[int], *, width: int = ...) -> "Decoder":
        """Build a decoder."""


class Decoder(nn.Module):
    """A stem from the latent to a small grid, stages that double the grid, and a convolution to RGB.

    Each stage is an upsampling to the next size, group normalisation (Wu & He 2018) and SiLU. Sizes are those that
    result from halving the image's with rounding up, so that odd and non-square images come out exactly. Channels
    start at `width` and halve with each stage, down to 16.

    Attributes:
        latent_shape: (d,) or (c, h, w).
        image_size: (height, width) of the images.
        stages: One module an upsampling.
    """

    def __init__(
        self, kind: str, latent_shape: Sequence[int], image_size: Size, width: int, make_upsample: MakeUpsample
    ) -> None:
        """Assemble a decoder; users call a builder instead.

        Raises:
            ShapeError: If `latent_shape` is neither (d,) nor (c, h, w).
            InvalidOptionError: If `width` is no positive multiple of 8.
        """
        super().__init__()
        self.latent_shape = tuple(latent_shape)
        self.image_size = image_size
        self.kind = kind
        self.width = width
        if len(self.latent_shape) not in (1, 3) or min(self.latent_shape) < 1:
            raise ShapeError(f"latent_shape must be (d,) or (c, h, w), each at least 1, got {self.latent_shape}.")
        check_positive(width=width)
        if width % GROUP_CHANNELS:
            raise InvalidOptionError(f"width must be a multiple of {GROUP_CHANNELS}, got {width}.")
        sizes = _grid_sizes(self.latent_shape, image_size)
        channels = [max(min(NARROWEST_STAGE, width), width >> i) for i in range(len(sizes))]
        channels = [count - count % GROUP_CHANNELS for count in channels]
        self.stem = nn.Sequential(_stem(self.latent_shape, channels[0], sizes[0]), *_activate(channels[0]))
        self.stages = nn.ModuleList(
            nn.Sequential(make_upsample(before, after, size), *_activate(after))
            for before, after, size in zip(channels, channels[1:], sizes[1:], strict=False)
        )
        self.to_rgb = nn.Conv2d(channels[-1], 3, kernel_size=3, padding=1)

    @property
    def config(self) -> dict[str, object]:
        """What `DECODERS` needs to build this decoder again: plain values."""
        return {
            "kind": self.kind,
            "latent_shape": list(self.latent_shape),
            "image_size": list(self.image_size),
            "width": self.width,
        }

    def forward(self, latent: Latents) -> Images:
        """Map latents to images.

        Args:
            latent: `[b, d]` or `[b, c, h, w]`, of `latent_shape`.

        Returns:
            Images `[b, 3, height, width]` in [0, 1], at least float32 under autocast.

        Raises:
            ShapeError: If the latents have another shape than the decoder was built for.
        """
        if tuple(latent.shape[1:]) != self.latent_shape:
            raise ShapeError(
                f"The decoder was built for latents [b, {', '.join(map(str, self.latent_shape))}],"
                f" got {list(latent.shape)}."
            )
        grid = self.stem(latent.to(self.to_rgb.weight.dtype))
        for stage in self.stages:
            grid = stage(grid)
        rgb: Tensor = self.to_rgb(grid)
        return rgb.float().sigmoid()


class CropTo(nn.Module):
    """Cut the last rows and columns off: a doubled grid is at most one too large."""

    def __init__(self, size: Size) -> None:
        """Make a crop.

        Args:
            size: (height, width) to keep.
        """
        super().__init__()
        self.size = size

    def forward(self, grid: Tensor) -> Tensor:
        """Crop `[b, c, h, w]`."""
        height, width = self.size
        return grid[..., :height, :width]


def resize_decoder(latent_shape: Sequence[int], image_size: int | Sequence[int], *, width: int = 128) -> Decoder:
    """Build a decoder of nearest-neighbour upsampling and 3x3 convolution, which leaves no checkerboard (Odena 2016).

    Args:
        latent_shape: (d,) for vectors, (c, h, w) for maps.
        image_size: Height and width of the images, or one number; any size, odd and non-square included.
        width: Channels at the smallest grid, a multiple of 8.

    Returns:
        The decoder: latents to images in [0, 1].

    Raises:
        ShapeError: If `latent_shape` is neither (d,) nor (c, h, w).
        ImageSizeError: If `image_size` is not one or two positive numbers.
        InvalidOptionError: If `width` is no positive multiple of 8.
    """
    return Decoder("resize", latent_shape, parse_image_size(image_size), width, _resize)


def transpose_decoder(latent_shape: Sequence[int], image_size: int | Sequence[int], *, width: int = 128) -> Decoder:
    """Build a decoder of transposed convolutions, kernel 4 and stride 2: the kernel is a multiple of the stride.

    Args:
        latent_shape: (d,) for vectors, (c, h, w) for maps.
        image_size: Height and width of the images, or one number; any size, odd and non-square included.
        width: Channels at the smallest grid, a multiple of 8.

    Returns:
        The decoder: latents to images in [0, 1].

    Raises:
        ShapeError: If `latent_shape` is neither (d,) nor (c, h, w).
        ImageSizeError: If `image_size` is not one or two positive numbers.
        InvalidOptionError: If `width` is no positive multiple of 8.
    """
    return Decoder("transpose", latent_shape, parse_image_size(image_size), width, _transpose)


def pixelshuffle_decoder(latent_shape: Sequence[int], image_size: int | Sequence[int], *, width: int = 128) -> Decoder:
    """Build a decoder of sub-pixel convolutions (Shi et al. 2016), started without checkerboard (Aitken et al. 2017).

    Args:
        latent_shape: (d,) for vectors, (c, h, w) for maps.
        image_size: Height and width of the images, or one number; any size, odd and non-square included.
        width: Channels at the smallest grid, a multiple of 8.

    Returns:
        The decoder: latents to images in [0, 1].

    Raises:
        ShapeError: If `latent_shape` is neither (d,) nor (c, h, w).
        ImageSizeError: If `image_size` is not one or two positive numbers.
        InvalidOptionError: If `width` is no positive multiple of 8.
    """
    return Decoder("pixelshuffle", latent_shape, parse_image_size(image_size), width, _pixelshuffle)


DECODERS: Mapping[str, DecoderBuilder] = MappingProxyType(
    {"resize": resize_decoder, "transpose": transpose_decoder, "pixelshuffle": pixelshuffle_decoder}
)
"""Decoder builders by name."""


def _resize(before: int, after: int, size: Size) -> nn.Module:
    return nn.Sequential(nn.Upsample(size=size, mode="nearest"), nn.Conv2d(before, after, kernel_size=3, padding=1))


def _transpose(before: int, after: int, size: Size) -> nn.Module:
    return nn.Sequential(nn.ConvTranspose2d(before, after, kernel_size=4, stride=2, padding=1), CropTo(size))


def _pixelshuffle(before: int, after: int, size: Size) -> nn.Module:
    convolution = nn.Conv2d(before, 4 * after, kernel_size=3, padding=1)
    convolution.weight.data = convolution.weight.data[::4].repeat_interleave(4, dim=0)
    nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
    return nn.Sequential(convolution, nn.PixelShuffle(2), CropTo(size))


def _stem(latent_shape: tuple[int, ...], channels: int, size: Size) -> nn.Module:
    if len(latent_shape) == 1:
        height, width = size
        return nn.Sequential(
            nn.Linear(latent_shape[0], channels * height * width),
            Rearrange("b (c h w) -> b c h w", h=height, w=width),
        )
    return _resize(latent_shape[0], channels, size)


def _activate(channels: int) -> tuple[nn.Module, nn.Module]:
    return nn.GroupNorm(channels // GROUP_CHANNELS, channels), nn.SiLU()


def _grid_sizes(latent_shape: tuple[int, ...], image_size: Size) -> list[Size]:
    """The grids from the stem's to the image's, each half of the next, rounded up."""
    grid = latent_shape[1:] or (LARGEST_START_GRID, LARGEST_START_GRID)
    ratio = max(side / cells for side, cells in zip(image_size, grid, strict=True))
    rounding = math.ceil if len(latent_shape) == 1 else round
    doublings = max(0, rounding(math.log2(ratio)))
    return [_halve(image_size, times) for times in range(doublings, -1, -1)]


def _halve(size: Size, times: int) -> Size:
    height, width = size
    return -(-height >> times), -(-width >> times)
