"""A transformer decoder: every latent position becomes a patch of pixels."""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from transfervae.decoders._blocks import run_blocks
from transfervae.decoders._bounds import clamp_to_unit
from transfervae.errors import InvalidOptionError, ShapeError, UnknownNameError
from transfervae.options import records_options
from transfervae.shapes import Images, Latents, check_positive, parse_image_size

Size: TypeAlias = tuple[int, int]
Tokens: TypeAlias = Float[Tensor, "b n width"]
Positions: TypeAlias = Float[Tensor, "n width"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

NORM_EPSILON = 1e-12
WIDEST_HEAD = 64
LONGEST_PERIOD = 10_000.0

LARGEST_PATCH = 16
FEWEST_CELLS = 8
"""For latent vectors: patches of 16 pixels, smaller where that would leave fewer than 8 of them a side."""

DEEPEST = 1024
WIDEST = 65536

REFERENCE_GRID = 16
"""The grid that diffusers' coordinates are scaled to."""


class Architecture(NamedTuple):
    """Numbers of a plain transformer.

    Attributes:
        width: Channels of a token.
        mlp_width: Channels inside a block's perceptron.
        heads: Attention heads.
        depth: Blocks.
    """

    width: int
    mlp_width: int
    heads: int
    depth: int


SIZES: Mapping[str, Architecture] = MappingProxyType(
    {
        "s": Architecture(384, 1536, 6, 12),
        "b": Architecture(768, 3072, 12, 12),
        "l": Architecture(1024, 4096, 16, 24),
        "xl": Architecture(1152, 4096, 16, 28),
    }
)
"""Architectures by name; b, l and xl are those of RAE."""

POSITIONS = ("rae", "diffusers")


class ViTDecoder(nn.Module):
    """The decoder of representation autoencoders (Zheng et al. 2025), a masked autoencoder's (He et al. 2022).

    One token a latent position and a class token pass through pre-norm transformer blocks with fixed sine-cosine
    positions; a linear layer turns each token into a patch of pixels, and the class token is dropped. Patches are as
    large as it takes for the grid to cover the image; what reaches past it is cut off. The result, times `std` plus
    `mean`, is clamped to [0, 1] with the identity's gradient.

    Attributes:
        latent_shape: (d,) or (c, h, w).
        image_size: (height, width) of the images.
        grid: Rows and columns of tokens.
        patch: Height and width of a token's patch, in pixels.
        architecture: Width, layers and so on.
        positions: Convention of the positions' coordinates.
        gradient_checkpointing: Whether activations within blocks are computed again in the backward pass.
    """

    gradient_checkpointing = False
    position: Tensor
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        latent_shape: Sequence[int],
        image_size: Size,
        architecture: Architecture,
        *,
        positions: str = "rae",
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        """Assemble a decoder; users call `vit_decoder` instead.

        Raises:
            ShapeError: If `latent_shape` is neither (d,) nor (c, h, w).
        """
        super().__init__()
        self.latent_shape = tuple(latent_shape)
        if len(self.latent_shape) not in (1, 3) or min(self.latent_shape) < 1:
            raise ShapeError(f"latent_shape must be (d,) or (c, h, w), each at least 1, got {self.latent_shape}.")
        self.image_size = image_size
        self.architecture = architecture
        self.positions = positions
        self.grid = _grid_for(self.latent_shape, image_size)
        self.patch = _divide_up(image_size, self.grid)
        width = architecture.width
        tokens_at_once = math.prod(self.grid) if len(self.latent_shape) == 1 else 1
        self.embed = nn.Linear(self.latent_shape[0], tokens_at_once * width)
        self.class_token = nn.Parameter(torch.empty(1, 1, width))
        self.blocks = nn.ModuleList(Block(architecture) for _ in range(architecture.depth))
        self.norm = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.predict = nn.Linear(width, 3 * math.prod(self.patch))
        # What follows from the configuration is not stored in checkpoints.
        self.register_buffer("position", sine_cosine_positions(width, self.grid, positions), persistent=False)
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, 3, 1, 1), persistent=False)
        self._initialise()

    def forward(self, latent: Latents) -> Images:
        """Map latents to images.

        Args:
            latent: `[b, d]` or `[b, c, h, w]`, of `latent_shape`.

        Returns:
            Images `[b, 3, height, width]` in [0, 1], at least float32 under autocast.

        Raises:
            ShapeError: If the latents have another shape than the decoder was built for.
        """
        return clamp_to_unit(self.unclamped(latent))

    def unclamped(self, latent: Latents) -> Images:
        """Map latents to images before they are clamped; arguments and errors as in `forward`."""
        tokens = self._to_tokens(latent) + self.position
        tokens = torch.cat([self.class_token.to(tokens.dtype).expand(len(tokens), -1, -1), tokens], dim=1)
        tokens = run_blocks(self.blocks, tokens, checkpointing=self.gradient_checkpointing)
        patches = self.predict(self.norm(tokens[:, 1:]))
        return self._to_images(patches) * self.std + self.mean

    def _to_tokens(self, latent: Latents) -> Tokens:
        if tuple(latent.shape[1:]) != self.latent_shape:
            raise ShapeError(
                f"The decoder was built for latents [b, {', '.join(map(str, self.latent_shape))}],"
                f" got {list(latent.shape)}."
            )
        values = latent.to(self.embed.weight.dtype)
        if latent.ndim == 4:
            values = rearrange(values, "b c h w -> b (h w) c")
        tokens: Tensor = self.embed(values)
        return tokens.view(len(latent), -1, self.architecture.width)

    def _to_images(self, patches: Tokens) -> Images:
        (rows, columns), (height, width) = self.grid, self.patch
        pattern = "b (rows columns) (height width c) -> b c (rows height) (columns width)"
        images = rearrange(patches, pattern, rows=rows, columns=columns, height=height, width=width)
        cropped: Tensor = images[..., : self.image_size[0], : self.image_size[1]]
        return cropped

    def _initialise(self) -> None:
        """As masked autoencoders do, but that a latent of variance 1 gives tokens of variance 1."""
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        nn.init.normal_(self.embed.weight, std=1 / math.sqrt(self.embed.in_features))
        nn.init.normal_(self.class_token, std=0.02)


class Block(nn.Module):
    """Self-attention, then a perceptron, each behind a layer normalisation and beside a shortcut."""

    def __init__(self, architecture: Architecture) -> None:
        """Make a block.

        Args:
            architecture: Its width, perceptron's width and heads.
        """
        super().__init__()
        width = architecture.width
        self.heads = architecture.heads
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.expand = nn.Linear(width, architecture.mlp_width)
        self.contract = nn.Linear(architecture.mlp_width, width)

    def forward(self, tokens: Tokens) -> Tokens:
        """Map tokens `[b, n, width]` to tokens of the same shape."""
        tokens = tokens + self._attend(self.norm1(tokens))
        inner = nn.functional.gelu(self.expand(self.norm2(tokens)))
        mixed: Tensor = tokens + self.contract(inner)
        return mixed

    def _attend(self, tokens: Tokens) -> Tokens:
        query, key, value = rearrange(self.qkv(tokens), "b n (three h d) -> three b h n d", three=3, h=self.heads)
        heads = nn.functional.scaled_dot_product_attention(query, key, value)
        attended: Tensor = self.out(rearrange(heads, "b h n d -> b n (h d)"))
        return attended


@records_options
def vit_decoder(
    latent_shape: Sequence[int],
    image_size: int | Sequence[int],
    *,
    size: str = "s",
    width: int | None = None,
    depth: int | None = None,
    heads: int | None = None,
    mlp_width: int | None = None,
    positions: str = "rae",
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> ViTDecoder:
    """Build a transformer decoder, as representation autoencoders have it (Zheng et al. 2025).

    Args:
        latent_shape: (c, h, w) for maps, one token a position; (d,) for vectors, which one linear layer turns into a
            grid of tokens.
        image_size: Height and width of the images, or one number; any size, odd and non-square included.
        size: "s" (384 wide, 12 layers), "b" (768, 12), "l" (1024, 24) or "xl" (1152, 28).
        width: Channels of a token, a multiple of 4; that of `size` if None.
        depth: Transformer blocks; those of `size` if None.
        heads: Attention heads, a divisor of the width; those of `size` if None, or with a width of one's own the
            fewest that are at most 64 channels wide.
        mlp_width: Channels inside a block's perceptron; those of `size` if None, or with a width of one's own four
            times that.
        positions: Coordinates of the sine-cosine positions along an axis of g tokens: "rae" counts 0 to g - 1,
            "diffusers" multiplies that by 16 / g. Both agree for 16 tokens. Weights are tied to theirs.
        mean: Per RGB channel, added to the last layer's output.
        std: Per RGB channel, multiplied with it before.

    Returns:
        The decoder: latents to images in [0, 1].

    Raises:
        ShapeError: If `latent_shape` is neither (d,) nor (c, h, w).
        ImageSizeError: If `image_size` is not one or two positive numbers.
        UnknownNameError: For another size or convention of positions.
        InvalidOptionError: If a number is below 1 or too large, the width no multiple of 4 or of the heads, or `mean`
            or `std` not three numbers.
    """
    if size not in SIZES:
        raise UnknownNameError("size of the vit decoder", size, SIZES)
    if positions not in POSITIONS:
        raise UnknownNameError("convention of positions", positions, POSITIONS)
    if len(mean) != 3 or len(std) != 3:
        raise InvalidOptionError(f"mean and std must be three numbers each, got {tuple(mean)} and {tuple(std)}.")
    architecture = _architecture(SIZES[size], width, depth, heads, mlp_width)
    return ViTDecoder(latent_shape, parse_image_size(image_size), architecture, positions=positions, mean=mean, std=std)


def sine_cosine_positions(width: int, grid: Size, convention: str) -> Positions:
    """Fixed positions of a grid of tokens, row by row (Vaswani et al. 2017, in two dimensions as in He et al. 2022).

    The first half of the channels encodes the column, the second half the row; each is sine, then cosine, of the
    coordinate times 10000^(-4 i / width).

    Args:
        width: Channels, a multiple of 4.
        grid: Rows and columns.
        convention: "rae" or "diffusers", see `vit_decoder`.

    Returns:
        `[rows * columns, width]`, float32.
    """
    rows, columns = (_coordinates(cells, convention) for cells in grid)
    quarter = width // 4
    frequencies = LONGEST_PERIOD ** -(torch.arange(quarter, dtype=torch.float64) / quarter)
    by_column, by_row = (_waves(axis[:, None] * frequencies) for axis in (columns, rows))
    across = by_column[None].expand(grid[0], -1, -1)
    down = by_row[:, None].expand(-1, grid[1], -1)
    return torch.cat([across, down], dim=-1).flatten(0, 1).float()


def _coordinates(cells: int, convention: str) -> Tensor:
    counted = torch.arange(cells, dtype=torch.float32)
    return (counted if convention == "rae" else counted / (cells / REFERENCE_GRID)).double()


def _waves(angles: Tensor) -> Tensor:
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def _architecture(
    base: Architecture, width: int | None, depth: int | None, heads: int | None, mlp_width: int | None
) -> Architecture:
    """The named architecture with what was overridden."""
    if width not in (None, base.width):
        check_positive(width=width, at_most=WIDEST)
        base = Architecture(width, 4 * width, _fewest_heads(width), base.depth)
    chosen = Architecture(
        base.width,
        base.mlp_width if mlp_width is None else mlp_width,
        base.heads if heads is None else heads,
        base.depth if depth is None else depth,
    )
    check_positive(**chosen._asdict())
    check_positive(depth=chosen.depth, at_most=DEEPEST)
    if chosen.width % 4:
        raise InvalidOptionError(f"width must be a multiple of 4, got {chosen.width}.")
    if chosen.width % chosen.heads:
        raise InvalidOptionError(f"width must be a multiple of heads, got {chosen.width} and {chosen.heads}.")
    return chosen


def _fewest_heads(width: int) -> int:
    return next(heads for heads in range(-(-width // WIDEST_HEAD), width + 1) if width % heads == 0)


def _grid_for(latent_shape: tuple[int, ...], image_size: Size) -> Size:
    if len(latent_shape) == 3:
        return latent_shape[1], latent_shape[2]
    patches = [max(1, min(LARGEST_PATCH, side // FEWEST_CELLS)) for side in image_size]
    return _divide_up(image_size, (patches[0], patches[1]))


def _divide_up(sides: Size, parts: Size) -> Size:
    return -(-sides[0] // parts[0]), -(-sides[1] // parts[1])
