"""The convolutional decoder of latent and Stable Diffusion (Rombach et al. 2022), for any latent and any image size."""

import math
from collections.abc import Sequence

from einops import rearrange
from torch import Tensor, nn

from transfervae.decoders._blocks import run_blocks
from transfervae.decoders._bounds import clamp_to_unit
from transfervae.decoders._grids import (
    Size,
    check_latents,
    grid_sizes,
    halved_sizes,
    make_resize,
    make_stem,
    parse_latent_shape,
)
from transfervae.errors import InvalidOptionError
from transfervae.options import records_options
from transfervae.shapes import Images, Latents, at_least_float32, check_positive, parse_image_size

DEFAULT_WIDTH = 128
LARGEST_MULTIPLE = 4
DEEPEST = 1024
WIDTH_UNIT = 8
MOST_GROUPS = 32
FEWEST_GROUP_CHANNELS = 4
EPSILON = 1e-6


@records_options
def kl_decoder(
    latent_shape: Sequence[int],
    image_size: int | Sequence[int],
    *,
    width: int | Sequence[int] = DEFAULT_WIDTH,
    resnets_per_block: int = 3,
    norm_groups: int | None = None,
    attention: bool = True,
    post_quant_conv: bool = True,
) -> "KLDecoder":
    """Build the decoder of Stable Diffusion's autoencoder.

    With the default options, and a map of an eighth of the image's size, it is that very network.

    Args:
        latent_shape: (c, h, w) for maps, (d,) for vectors.
        image_size: Height and width of the images, or one number; any size, odd and non-square included.
        width: Channels at the image's own grid, a multiple of 8; coarser grids have 2, 4, 4, ... times as many.
            Or the channels of every grid, the image's first; their number then fixes how often the grid doubles.
        resnets_per_block: Residual blocks at each grid.
        norm_groups: Groups of every normalisation; if None, up to 32 of at least 4 channels.
        attention: Whether positions of the first grid attend to each other.
        post_quant_conv: Whether a 1x1 convolution comes first; for maps only.

    Returns:
        The decoder: latents to images in [0, 1].

    Raises:
        ShapeError: If `latent_shape` is neither (d,) nor (c, h, w).
        ImageSizeError: If `image_size` is not one or two positive numbers.
        InvalidOptionError: If a number is below 1, if a width is no multiple of 8, or, with `norm_groups`, not of that.
    """
    return KLDecoder(
        latent_shape,
        parse_image_size(image_size),
        width=width,
        resnets_per_block=resnets_per_block,
        norm_groups=norm_groups,
        attention=attention,
        post_quant_conv=post_quant_conv,
    )


class KLDecoder(nn.Module):
    """A stem, a middle block with attention at the coarsest grid, and residual blocks with an upsampling between grids.

    Sizes are those that result from halving the image's with rounding up, so that odd and non-square images come out
    exactly. A map of another size than the first of them is resized to it; a vector becomes it by a linear layer.

    The keys of the attention have no bias: it would add the same to all of a query's logits, which softmax cancels.

    Attributes:
        latent_shape: (d,) or (c, h, w).
        image_size: (height, width) of the images.
        resnets_per_block: Residual blocks at each grid.
        grids: (height, width) from the first grid to the image's.
        gradient_checkpointing: Whether activations within blocks are computed again in the backward pass.
    """

    gradient_checkpointing = False

    def __init__(
        self,
        latent_shape: Sequence[int],
        image_size: Size,
        *,
        width: int | Sequence[int],
        resnets_per_block: int,
        norm_groups: int | None,
        attention: bool,
        post_quant_conv: bool,
    ) -> None:
        """Assemble a decoder; users call `kl_decoder` instead, which describes the options.

        Raises:
            ShapeError: If `latent_shape` is neither (d,) nor (c, h, w).
            InvalidOptionError: As `kl_decoder`.
        """
        super().__init__()
        check_positive(resnets_per_block=resnets_per_block, at_most=DEEPEST)
        _check_width(width, norm_groups)
        self.latent_shape = parse_latent_shape(latent_shape)
        self.image_size = image_size
        self.resnets_per_block = resnets_per_block
        self.grids = _grids(self.latent_shape, image_size, width)
        widths = _coarsest_first(width, len(self.grids))
        has_post_quant = post_quant_conv and len(self.latent_shape) == 3
        channels = self.latent_shape[0]
        self.post_quant_conv = nn.Conv2d(channels, channels, kernel_size=1) if has_post_quant else nn.Identity()
        self.stem = make_stem(self.latent_shape, widths[0], self.grids[0])
        self.middle = _middle(widths[0], norm_groups, attention=attention)
        self.blocks = nn.ModuleList(
            _block(before, after, resnets_per_block, norm_groups, size)
            for before, after, size in zip([widths[0], *widths[:-1]], widths, [*self.grids[1:], None], strict=True)
        )
        self.last_norm = _normalise(widths[-1], norm_groups)
        self.activation = nn.SiLU()
        self.to_rgb = nn.Conv2d(widths[-1], 3, kernel_size=3, padding=1)

    def forward(self, latent: Latents) -> Images:
        """Map latents to images.

        Args:
            latent: `[b, d]` or `[b, c, h, w]`, of `latent_shape`.

        Returns:
            Images `[b, 3, height, width]` in [0, 1], at least float32 under autocast. Where a value had to be clamped,
            its gradient passes as if it had not been.

        Raises:
            ShapeError: If the latents have another shape than the decoder was built for.
        """
        return clamp_to_unit(self.unclamped(latent))

    def unclamped(self, latent: Latents) -> Images:
        """Map latents to images whose values may lie outside [0, 1]; otherwise as `forward`."""
        check_latents(latent, self.latent_shape)
        grid = self.middle(self.stem(self.post_quant_conv(latent.to(self.to_rgb.weight.dtype))))
        grid = run_blocks(self.blocks, grid, checkpointing=self.gradient_checkpointing)
        rgb = self.to_rgb(self.activation(self.last_norm(grid)))
        return (at_least_float32(rgb) + 1) / 2


class ResidualBlock(nn.Module):
    """Twice normalisation, SiLU and convolution, beside the input or its 1x1 convolution (He et al. 2016)."""

    def __init__(self, before: int, after: int, norm_groups: int | None) -> None:
        """Make a block.

        Args:
            before: Channels of the input.
            after: Channels of the output.
            norm_groups: As in `kl_decoder`.
        """
        super().__init__()
        self.norm1 = _normalise(before, norm_groups)
        self.conv1 = nn.Conv2d(before, after, kernel_size=3, padding=1)
        self.norm2 = _normalise(after, norm_groups)
        self.conv2 = nn.Conv2d(after, after, kernel_size=3, padding=1)
        self.shortcut = nn.Identity() if before == after else nn.Conv2d(before, after, kernel_size=1)
        self.activation = nn.SiLU()

    def forward(self, grid: Tensor) -> Tensor:
        """Map `[b, before, h, w]` to `[b, after, h, w]`."""
        change: Tensor = self.conv1(self.activation(self.norm1(grid)))
        change = self.conv2(self.activation(self.norm2(change)))
        shortcut: Tensor = self.shortcut(grid)
        return shortcut + change


class SelfAttention(nn.Module):
    """Attention with one head among the positions of a grid, beside the input (Vaswani et al. 2017)."""

    def __init__(self, channels: int, norm_groups: int | None) -> None:
        """Make an attention layer.

        Args:
            channels: Channels of input and output.
            norm_groups: As in `kl_decoder`.
        """
        super().__init__()
        self.norm = _normalise(channels, norm_groups)
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels, bias=False)
        self.value = nn.Linear(channels, channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, grid: Tensor) -> Tensor:
        """Map `[b, c, h, w]` to the same shape."""
        positions = rearrange(self.norm(grid), "b c h w -> b 1 (h w) c")
        query, key, value = self.query(positions), self.key(positions), self.value(positions)
        gathered: Tensor = self.out(nn.functional.scaled_dot_product_attention(query, key, value))
        return grid + rearrange(gathered, "b 1 (h w) c -> b c h w", h=grid.shape[-2])


def _grids(latent_shape: tuple[int, ...], image_size: Size, width: int | Sequence[int]) -> list[Size]:
    return grid_sizes(latent_shape, image_size) if isinstance(width, int) else halved_sizes(image_size, len(width) - 1)


def _coarsest_first(width: int | Sequence[int], grids: int) -> list[int]:
    if isinstance(width, int):
        return [width * min(2**halvings, LARGEST_MULTIPLE) for halvings in reversed(range(grids))]
    return list(reversed(width))


def _check_width(width: int | Sequence[int], norm_groups: int | None) -> None:
    widths = width if isinstance(width, Sequence) else [width]
    if not widths:
        raise InvalidOptionError("width must name the channels of at least one grid, got none.")
    if norm_groups is not None:
        check_positive(norm_groups=norm_groups)
    unit = WIDTH_UNIT if norm_groups is None else norm_groups
    for channels in widths:
        check_positive(width=channels)
        if channels % unit:
            raise InvalidOptionError(f"width must be a multiple of {unit}, got {channels}.")


def _middle(channels: int, norm_groups: int | None, *, attention: bool) -> nn.Sequential:
    return nn.Sequential(
        ResidualBlock(channels, channels, norm_groups),
        SelfAttention(channels, norm_groups) if attention else nn.Identity(),
        ResidualBlock(channels, channels, norm_groups),
    )


def _block(before: int, after: int, resnets: int, norm_groups: int | None, size: Size | None) -> nn.Sequential:
    """The residual blocks of a grid, and the upsampling to the next grid's size if there is one."""
    blocks: list[nn.Module] = [ResidualBlock(before if i == 0 else after, after, norm_groups) for i in range(resnets)]
    return nn.Sequential(*blocks, *([] if size is None else [make_resize(after, after, size)]))


def _normalise(channels: int, norm_groups: int | None) -> nn.GroupNorm:
    groups = math.gcd(MOST_GROUPS, channels // FEWEST_GROUP_CHANNELS) if norm_groups is None else norm_groups
    return nn.GroupNorm(groups, channels, eps=EPSILON)
