"""The encoder of a representation autoencoder, from a model that diffusers wrote."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from importlib import import_module
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, layer_norm

from transfervae.backbones.frozen import FrozenBackbone, Source
from transfervae.backbones.rae_names import LAYOUTS, Layout, encoder_names
from transfervae.backbones.reading import Reading, resample
from transfervae.backbones.renaming import load_theirs
from transfervae.backbones.weights import read_weights
from transfervae.errors import CheckpointError, InvalidOptionError, UnknownNameError, WeightsUnavailableError
from transfervae.shapes import Features, Images

NAME = "diffusers_rae"
NODE = "last"
CONFIG_FILE = "config.json"
WEIGHTS_FILES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
"""The names under which diffusers saves a model, in the order in which they are looked for."""

MODEL_CLASS = "AutoencoderRAE"
HEAD_WIDTH = 64


class Kind(NamedTuple):
    """What tells the three types of encoders apart.

    Attributes:
        native_size: Side of the images that its position embedding was trained for, in pixels.
        class_token: Whether it has one.
        registers: Number of register tokens.
        layer_scale: Whether its blocks' branches are scaled channel by channel.
        tanh: Whether its GELU is the approximation by a hyperbolic tangent.
        epsilon: Of its layer normalisations.
        antialias: Whether its position embedding is resampled with antialiasing.
        mlp_width: Channels inside a block's perceptron; four times the width if None.
    """

    native_size: int
    class_token: bool
    registers: int
    layer_scale: bool
    tanh: bool
    epsilon: float
    antialias: bool
    mlp_width: int | None


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "dinov2": Kind(518, True, 4, True, False, 1e-6, True, None),
        "siglip2": Kind(256, False, 0, False, True, 1e-6, False, 3072),
        "mae": Kind(224, True, 0, False, False, 1e-12, False, 3072),
    }
)
"""Encoder types by the name that diffusers gives them."""


@dataclass(frozen=True)
class RAEConfig:
    """Configuration of diffusers' `AutoencoderRAE`, with its names and defaults."""

    encoder_type: str = "dinov2"
    encoder_hidden_size: int = 768
    encoder_patch_size: int = 14
    encoder_num_hidden_layers: int = 12
    decoder_hidden_size: int = 512
    decoder_num_hidden_layers: int = 8
    decoder_num_attention_heads: int = 16
    decoder_intermediate_size: int = 2048
    patch_size: int = 16
    encoder_input_size: int = 224
    num_channels: int = 3
    encoder_norm_mean: Sequence[float] | None = None
    encoder_norm_std: Sequence[float] | None = None
    latents_mean: Any = None
    latents_std: Any = None
    noise_tau: float = 0.0
    reshape_to_2d: bool = True
    scaling_factor: float = 1.0

    @staticmethod
    def parse(values: Mapping[str, Any]) -> "RAEConfig":
        """Read diffusers' configuration.

        Args:
            values: Of its `config.json`; names that mean nothing here are left out.

        Raises:
            CheckpointError: If it is the configuration of another class, or its numbers cannot be.
            UnknownNameError: For an encoder type that does not exist.
        """
        if values.get("_class_name", MODEL_CLASS) != MODEL_CLASS:
            raise CheckpointError(f"The configuration is one of {values['_class_name']}, not of {MODEL_CLASS}.")
        known = {field.name for field in fields(RAEConfig)}
        config = RAEConfig(**{name: value for name, value in values.items() if name in known})
        if config.encoder_type not in KINDS:
            raise UnknownNameError("encoder type", config.encoder_type, KINDS)
        config.check()
        return config

    def check(self) -> None:
        """Make sure that the numbers describe a model.

        Raises:
            CheckpointError: If not.
        """
        sizes = [field.name for field in fields(self) if field.type is int]
        self._refuse("a whole number above 0", [n for n in sizes if not _is_size(getattr(self, n))])
        numbers = [name for name in ("noise_tau", "scaling_factor") if not _is_amount(getattr(self, name))]
        self._refuse("a finite number of at least 0", numbers)
        self._refuse("above 0", [] if self.scaling_factor else ["scaling_factor"])
        self._refuse("3: only RGB can be read", [] if self.num_channels == 3 else ["num_channels"])
        for name, divisor in (("encoder_input_size", self.encoder_patch_size), ("encoder_hidden_size", HEAD_WIDTH)):
            self._refuse(f"a multiple of {divisor}", [name] if getattr(self, name) % divisor else [])

    def _refuse(self, wanted: str, wrong: Sequence[str]) -> None:
        if wrong:
            raise CheckpointError(f"The configuration's {wrong[0]} must be {wanted}, got {getattr(self, wrong[0])!r}.")

    @property
    def grid(self) -> int:
        """Tokens a side."""
        return self.encoder_input_size // self.encoder_patch_size

    @property
    def side(self) -> int:
        """Height and width of the decoded images, in pixels."""
        return self.grid * self.patch_size


class RAEEncoder(nn.Module):
    """A vision transformer read after its last block, normalised token by token, without its prefix tokens.

    Images are resized first, so that a decoder's patch of them becomes one of the transformer's: each side by the same
    factor, bicubic. The position embedding is kept at its own size and resampled to the images' grid as the network's
    authors do.

    Attributes:
        config: What the encoder was built of.
        kind: The network's.
        vit: timm's, without position embedding and final normalisation.
        position: Position embedding, `[1, 1 + n, c]`, or `[n, c]` without a class token.
    """

    def __init__(self, config: RAEConfig, reading: Reading) -> None:
        """Build an encoder with random weights.

        Args:
            config: Of the whole autoencoder.
            reading: Whether its features are resampled to another grid.
        """
        super().__init__()
        self.config = config
        self.reading = reading
        self.kind = KINDS[config.encoder_type]
        self.vit = _build_vit(config, self.kind)
        cells = (self.kind.native_size // config.encoder_patch_size) ** 2
        shape = (1, 1 + cells) if self.kind.class_token else (cells,)
        self.position = nn.Parameter(0.02 * torch.randn(*shape, config.encoder_hidden_size))

    def forward(self, images: Images) -> Features:
        """Map normalised images to features, `[b, c, h / patch, w / patch]`.

        Raises:
            ValueError: If a side is no multiple of the decoder's patch.
        """
        tokens = self.vit.patch_embed(self._resize(images))
        grid = tokens.shape[1:3]
        prefix, position = self._embeddings((grid[0], grid[1]))
        tokens = tokens.flatten(1, 2) + position
        tokens = self.vit.blocks(torch.cat([prefix.expand(len(tokens), -1, -1), tokens], dim=1))[:, prefix.shape[1] :]
        features = layer_norm(tokens, tokens.shape[-1:], eps=self.kind.epsilon)
        return self.reading.combine([features.transpose(1, 2).unflatten(2, grid)])

    def _resize(self, images: Images) -> Tensor:
        patch, sides = self.config.patch_size, images.shape[-2:]
        if any(side % patch for side in sides):
            raise ValueError(f"a side is no multiple of {patch}")
        resized = tuple(side // patch * self.config.encoder_patch_size for side in sides)
        if resized == tuple(sides):
            return images
        return interpolate(images, size=resized, mode="bicubic", align_corners=False)

    def _embeddings(self, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Prefix tokens `[1, p, c]`, and the position embedding `[1, n, c]` of a grid."""
        position = self.position.reshape(1, -1, self.position.shape[-1])
        prefix = position[:, :0]
        if self.kind.class_token:
            prefix, position = self.vit.cls_token + position[:, :1], position[:, 1:]
        if self.kind.registers:
            prefix = torch.cat([prefix, self.vit.reg_token], dim=1)
        side = self.kind.native_size // self.config.encoder_patch_size
        if grid == (side, side):
            return prefix, position
        maps = position.transpose(1, 2).unflatten(2, (side, side))
        resampled = resample(maps, grid, mode="bicubic", antialias=self.kind.antialias)
        return prefix, resampled.flatten(2).transpose(1, 2)


def create_rae_encoder(reading: Reading, weights: str | PathLike[str] | None) -> FrozenBackbone:
    """Create the encoder of a model that diffusers wrote; options as in `create_backbone`.

    Args:
        reading: At its default node, with or without a grid of one's own.
        weights: The model's folder, or the file with the tensors in it; its `config.json` lies beside.

    Raises:
        WeightsUnavailableError: If no folder is given.
        CheckpointError: If the files are missing, damaged, or those of another class.
        WeightsMismatchError: If the tensors do not fit the configuration.
        UnknownNameError: For another node.
    """
    if weights in (None, "default"):
        raise WeightsUnavailableError(
            f"{NAME} has no weights of its own; give weights=FOLDER, where diffusers' {MODEL_CLASS} was saved."
        )
    config, state = read_diffusers_rae(Path(cast(str, weights)))
    return build_rae_encoder(config, state, weights=str(weights), reading=reading)


def build_rae_encoder(
    config: RAEConfig, state: Mapping[str, Tensor], *, weights: str | None, reading: Reading | None = None
) -> FrozenBackbone:
    """Build the encoder of a configuration and the whole autoencoder's tensors.

    Args:
        config: diffusers'.
        state: diffusers' tensors by name; those of the decoder are left aside.
        weights: The folder that they come from, None if from memory.
        reading: As in `create_rae_encoder`.

    Raises:
        WeightsMismatchError: If names or shapes differ; the first three misfits are named.
        UnknownNameError: For another node.
    """
    reading = (reading or Reading(())).or_at(NODE).without_norm(NAME)
    if reading.node != NODE:
        raise UnknownNameError(f"node of {NAME}", reading.node, [NODE])
    encoder = RAEEncoder(config, reading)
    theirs = {name.removeprefix("encoder."): value for name, value in state.items() if name.startswith("encoder.")}
    layout = _layout_of(theirs, config)
    used = {name: value for name, value in theirs.items() if not name.startswith(layout.unused)}
    names = encoder_names(layout, config.encoder_num_hidden_layers)
    load_theirs(encoder, used, names, owner=f"the {config.encoder_type} encoder")
    mean, std = normalisation(config, state)
    options = reading.options | {"patches": [config.patch_size, config.encoder_patch_size]}  # no tensor tells them
    source = Source(NAME, NODE, weights, options=options, native_size=(config.side, config.side))
    return FrozenBackbone(encoder, source, mean=mean, std=std)


def read_diffusers_rae(path: Path) -> tuple[RAEConfig, dict[str, Tensor]]:
    """Read the files of a model that diffusers wrote.

    Args:
        path: Its folder, or the file with the tensors in it.

    Raises:
        CheckpointError: If a file is missing or damaged, or the model is of another class.
        UnknownNameError: For an encoder type that does not exist.
    """
    files = [path / name for name in WEIGHTS_FILES] if path.is_dir() else [path]
    file = next((file for file in files if file.is_file()), files[0])
    config = file.parent / CONFIG_FILE
    if not config.is_file():
        raise CheckpointError(f"There is no {CONFIG_FILE} in {str(file.parent)!r}.")
    try:
        values = json.loads(config.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{str(config)!r} cannot be read as JSON: {error}") from error
    if not isinstance(values, Mapping):
        raise CheckpointError(f"{str(config)!r} holds no JSON object.")
    return RAEConfig.parse(values), read_weights(file)


def normalisation(config: RAEConfig, state: Mapping[str, Tensor]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per RGB channel: of the tensors, or else of the configuration, or else ImageNet's.

    Raises:
        InvalidOptionError: If they are not three numbers each.
    """
    chosen = []
    for name, values, default in (
        ("encoder_mean", config.encoder_norm_mean, (0.485, 0.456, 0.406)),
        ("encoder_std", config.encoder_norm_std, (0.229, 0.224, 0.225)),
    ):
        numbers = state[name].flatten().tolist() if name in state else list(default if values is None else values)
        if len(numbers) != 3:
            raise InvalidOptionError(f"{name} must be three numbers, got {len(numbers)}.")
        chosen.append(numbers)
    return chosen[0], chosen[1]


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_amount(value: object) -> bool:
    return isinstance(value, (int, float)) and 0 <= value < float("inf")


def _build_vit(config: RAEConfig, kind: Kind) -> Any:
    timm_models = import_module("timm.models")
    layers = import_module("timm.layers")
    width = config.encoder_hidden_size
    mlp_width = kind.mlp_width or 4 * width
    return timm_models.VisionTransformer(
        img_size=kind.native_size // config.encoder_patch_size * config.encoder_patch_size,
        patch_size=config.encoder_patch_size,
        num_classes=0,
        global_pool="",
        embed_dim=width,
        depth=config.encoder_num_hidden_layers,
        num_heads=width // HEAD_WIDTH,
        mlp_ratio=(mlp_width + 0.5) / width,  # timm rounds the product down
        init_values=1.0 if kind.layer_scale else None,
        class_token=kind.class_token,
        reg_tokens=kind.registers,
        pos_embed="none",
        final_norm=False,
        dynamic_img_size=True,
        norm_layer=partial(layers.LayerNorm, eps=kind.epsilon),
        act_layer=partial(nn.GELU, approximate="tanh") if kind.tanh else nn.GELU,
    )


def _layout_of(state: Mapping[str, Tensor], config: RAEConfig) -> Layout:
    """The generation of names that most tensors have."""

    def known(layout: Layout) -> int:
        names = encoder_names(layout, config.encoder_num_hidden_layers).values()
        return sum(part in state for parts in names for part in parts)

    return max(LAYOUTS[config.encoder_type].values(), key=known)
