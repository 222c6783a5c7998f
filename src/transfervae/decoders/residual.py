"""A convolutional decoder that works where it is cheap: residual blocks on small grids, and one step to the pixels."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import interpolate, pixel_shuffle, silu

from transfervae.decoders._grids import Size, check_latents, grid_sizes, make_stem, parse_latent_shape
from transfervae.decoders.convolutional import CropTo
from transfervae.errors import InvalidOptionError
from transfervae.options import records_options
from transfervae.shapes import Images, Latents, check_positive, parse_image_size

DEFAULT_WIDTH = 96
NARROWEST = 32
WIDTH_UNIT = 8
LAST_DOUBLINGS = 2
DEEPEST = 256


@records_options
def residual_decoder(
    latent_shape: Sequence[int], image_size: int | Sequence[int], *, width: int = DEFAULT_WIDTH, blocks: int = 1
) -> "ResidualDecoder":
    """Build a decoder of residual blocks on small grids, whose last step enlarges by 4.

    Args:
        latent_shape: (d,) for vectors, (c, h, w) for maps.
        image_size: Height and width of the images, or one number; any size, odd and non-square included.
        width: Channels at the smallest grid, a multiple of 8.
        blocks: Residual blocks at each grid, at least 1.

    Returns:
        The decoder: latents to images in [0, 1].

    Raises:
        ShapeError: If `latent_shape` is neither (d,) nor (c, h, w).
        ImageSizeError: If `image_size` is not one or two positive numbers.
        InvalidOptionError: If `width` is no positive multiple of 8, or `blocks` is below 1.
    """
    return ResidualDecoder(latent_shape, parse_image_size(image_size), width=width, blocks=blocks)


class ResidualDecoder(nn.Module):
    """A stem from the latent to a small grid, residual blocks there and on each doubled grid, and one step to RGB.

    The grids are those that halving the image's size gives, with rounding up; the last two doublings are one step: a
    colour a cell, enlarged bilinearly, and beside it what a sub-pixel convolution (Shi et al. 2016), which starts at 0,
    knows better. So nothing is computed at full resolution, and cells have no edges of their own. Channels start at
    `width` and halve with each doubling, down to 32. Nothing is normalised: the last convolution of each block starts
    at 0 (Zhang et al. 2019), so that the signal passes through as it is. Other sub-pixel convolutions start without
    checkerboard (Aitken et al. 2017).

    Attributes:
        latent_shape: (d,) or (c, h, w).
        image_size: (height, width) of the images.
        grids: (height, width) of the grids that have blocks.
    """

    def __init__(self, latent_shape: Sequence[int], image_size: Size, *, width: int, blocks: int) -> None:
        """Assemble a decoder; users call `residual_decoder` instead, which describes the options.

        Raises:
            ShapeError: If `latent_shape` is neither (d,) nor (c, h, w).
            InvalidOptionError: If `width` is no positive multiple of 8, or `blocks` is below 1.
        """
        super().__init__()
        check_positive(width=width)
        check_positive(blocks=blocks, at_most=DEEPEST)
        if width % WIDTH_UNIT:
            raise InvalidOptionError(f"width must be a multiple of {WIDTH_UNIT}, got {width}.")
        self.latent_shape = parse_latent_shape(latent_shape)
        self.image_size = image_size
        sizes = grid_sizes(self.latent_shape, image_size)
        last = min(LAST_DOUBLINGS, len(sizes) - 1)
        self.grids = sizes[: len(sizes) - last]
        channels = [max(min(NARROWEST, width), width >> doubled) for doubled in range(len(self.grids))]
        channels = [count - count % WIDTH_UNIT for count in channels]
        self.stem = make_stem(self.latent_shape, channels[0], self.grids[0])
        stages: list[nn.Module] = []
        for place, (count, size) in enumerate(zip(channels, self.grids, strict=True)):
            if place:
                stages.append(SubPixel(channels[place - 1], count, 2, size))
            stages += [ResidualBlock(count) for _ in range(blocks)]
        self.stages = nn.Sequential(*stages)
        self.to_rgb = ToRGB(channels[-1], 2**last, image_size)

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
        grid = self.stages(self.stem(latent.to(self.to_rgb.color.weight.dtype)))
        rgb: Tensor = self.to_rgb(silu(grid))
        return rgb.float().sigmoid()


class ResidualBlock(nn.Module):
    """SiLU and a 3x3 convolution, twice, beside the input; the second convolution starts at 0."""

    def __init__(self, channels: int) -> None:
        """Make a block.

        Args:
            channels: Of input and output.
        """
        super().__init__()
        self.first = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.second = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        for values in (self.second.weight, self.second.bias):
            if values is not None:
                nn.init.zeros_(values)

    def forward(self, grid: Tensor) -> Tensor:
        """Map `[b, c, h, w]` to the same shape."""
        changed: Tensor = self.second(silu(self.first(silu(grid))))
        return grid + changed


class ToRGB(nn.Module):
    """A colour for each cell, enlarged bilinearly, and a sub-pixel convolution that starts at 0 for what is finer."""

    def __init__(self, channels: int, factor: int, size: Size) -> None:
        """Make a layer.

        Args:
            channels: Of the input.
            factor: How many times finer the grid becomes.
            size: (height, width) of the output.
        """
        super().__init__()
        self.factor = factor
        self.color = nn.Conv2d(channels, 3, kernel_size=3, padding=1)
        self.detail = SubPixel(channels, 3, factor, size)
        nn.init.zeros_(self.detail.convolution.weight)

    def forward(self, grid: Tensor) -> Tensor:
        """Map `[b, channels, h, w]` to `[b, 3, *size]`."""
        smooth = interpolate(self.color(grid), scale_factor=float(self.factor), mode="bilinear")
        rgb: Tensor = self.detail.crop(smooth) + self.detail(grid)
        return rgb


class SubPixel(nn.Module):
    """A 3x3 convolution to several values per cell, which become cells of a finer grid, cut to a size."""

    def __init__(self, before: int, after: int, factor: int, size: Size) -> None:
        """Make a layer whose cells are equal at the start.

        Args:
            before: Channels of the input.
            after: Channels of the output.
            factor: How many times finer the grid becomes.
            size: (height, width) of the output.
        """
        super().__init__()
        self.factor = factor
        self.convolution = nn.Conv2d(before, after * factor**2, kernel_size=3, padding=1)
        one = self.convolution.weight.data[:: factor**2]
        self.convolution.weight.data.copy_(one.repeat_interleave(factor**2, dim=0))
        nn.init.zeros_(self.convolution.bias)  # type: ignore[arg-type]
        self.crop = CropTo(size)

    def forward(self, grid: Tensor) -> Tensor:
        """Map `[b, before, h, w]` to `[b, after, *size]`."""
        finer: Tensor = self.crop(pixel_shuffle(self.convolution(grid), self.factor))
        return finer
