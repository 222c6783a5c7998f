"""Small convolutional decoders, for any latent and any image size."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

from torch import Tensor, nn

from transfervae.decoders._grids import Size, check_latents, grid_sizes, make_resize, make_stem, parse_latent_shape
from transfervae.errors import InvalidOptionError
from transfervae.options import records_options
from transfervae.shapes import Images, Latents, check_positive, parse_image_size

NARROWEST_STAGE = 16
GROUP_CHANNELS = 8
DEFAULT_WIDTH = 128

MakeUpsample: TypeAlias = Callable[[int, int, Size], nn.Module]


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

    def __init__(self, latent_shape: Sequence[int], image_size: Size, width: int, make_upsample: MakeUpsample) -> None:
        """Assemble a decoder; users call a builder instead.

        Raises:
            ShapeError: If `latent_shape` is neither (d,) nor (c, h, w).
            InvalidOptionError: If `width` is no positive multiple of 8.
        """
        super().__init__()
        self.latent_shape = parse_latent_shape(latent_shape)
        self.image_size = image_size
        self.width = width
        check_positive(width=width)
        if width % GROUP_CHANNELS:
            raise InvalidOptionError(f"width must be a multiple of {GROUP_CHANNELS}, got {width}.")
        sizes = grid_sizes(self.latent_shape, image_size)
        channels = [max(min(NARROWEST_STAGE, width), width >> i) for i in range(len(sizes))]
        channels = [count - count % GROUP_CHANNELS for count in channels]
        self.stem = nn.Sequential(make_stem(self.latent_shape, channels[0], sizes[0]), *_activate(channels[0]))
        self.stages = nn.ModuleList(
            nn.Sequential(make_upsample(before, after, size), *_activate(after))
            for before, after, size in zip(channels, channels[1:], sizes[1:], strict=False)
        )
        self.to_rgb = nn.Conv2d(channels[-1], 3, kernel_size=3, padding=1)

    def forward(self, latent: Latents) -> Images:
        """Map latents to images.

        Args:
            latent: `[b, d]` or `[b, c, h, w]`, of `latent_shape`.

        Returns:
            Images `[b, 3, height, width]` in [0, 1], at least float32 under autocast.

        Raises:
            ShapeError: If the latents have another shape than the decoder was built for.
        """
        check_latents(latent, self.latent_shape)
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


@records_options
def resize_decoder(
    latent_shape: Sequence[int], image_size: int | Sequence[int], *, width: int = DEFAULT_WIDTH
) -> Decoder:
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
    return Decoder(latent_shape, parse_image_size(image_size), width, make_resize)


@records_options
def transpose_decoder(
    latent_shape: Sequence[int], image_size: int | Sequence[int], *, width: int = DEFAULT_WIDTH
) -> Decoder:
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
    return Decoder(latent_shape, parse_image_size(image_size), width, _transpose)


@records_options
def pixelshuffle_decoder(
    latent_shape: Sequence[int], image_size: int | Sequence[int], *, width: int = DEFAULT_WIDTH
) -> Decoder:
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
    return Decoder(latent_shape, parse_image_size(image_size), width, _pixelshuffle)


def _transpose(before: int, after: int, size: Size) -> nn.Module:
    return nn.Sequential(nn.ConvTranspose2d(before, after, kernel_size=4, stride=2, padding=1), CropTo(size))


def _pixelshuffle(before: int, after: int, size: Size) -> nn.Module:
    convolution = nn.Conv2d(before, 4 * after, kernel_size=3, padding=1)
    convolution.weight.data = convolution.weight.data[::4].repeat_interleave(4, dim=0)
    nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
    return nn.Sequential(convolution, nn.PixelShuffle(2), CropTo(size))


def _activate(channels: int) -> tuple[nn.Module, nn.Module]:
    return nn.GroupNorm(channels // GROUP_CHANNELS, channels), nn.SiLU()
