"""The encoder of a representation autoencoder, from a model that diffusers wrote."""

from collections.abc import Mapping
from functools import partial
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, layer_norm

from transfervae.backbones._state_dict_names import load_theirs
from transfervae.backbones.feature_spec import FeatureSpec, resample
from transfervae.backbones.frozen import FrozenBackbone, Provenance
from transfervae.backbones.pretrained import read_folder
from transfervae.backbones.rae.config import HEAD_WIDTH, KINDS, MODEL_CLASS, Kind, RAEConfig, normalisation
from transfervae.backbones.rae.names import NAME_MAPS, NameMap, encoder_names
from transfervae.errors import UnknownNameError, WeightsUnavailableError
from transfervae.shapes import Features, Images

NAME = "diffusers_rae"
NODE = "last"


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

    def __init__(self, config: RAEConfig, spec: FeatureSpec) -> None:
        """Build an encoder with random weights.

        Args:
            config: Of the whole autoencoder.
            spec: Whether its features are resampled to another grid.
        """
        super().__init__()
        self.config = config
        self.spec = spec
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
        return self.spec.combine([features.transpose(1, 2).unflatten(2, grid)])

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


def create_rae_encoder(spec: FeatureSpec, weights: str | PathLike[str] | None) -> FrozenBackbone:
    """Create the encoder of a model that diffusers wrote; options as in `create_backbone`.

    Args:
        spec: At its default node, with or without a grid of one's own.
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
    return build_rae_encoder(config, state, weights=str(weights), spec=spec)


def build_rae_encoder(
    config: RAEConfig, state: Mapping[str, Tensor], *, weights: str | None, spec: FeatureSpec | None = None
) -> FrozenBackbone:
    """Build the encoder of a configuration and the whole autoencoder's tensors.

    Args:
        config: diffusers'.
        state: diffusers' tensors by name; those of the decoder are left aside.
        weights: The folder that they come from, None if from memory.
        spec: As in `create_rae_encoder`.

    Raises:
        WeightsMismatchError: If names or shapes differ; the first three misfits are named.
        UnknownNameError: For another node.
    """
    spec = (spec or FeatureSpec(())).or_at(NODE).without_norm(NAME)
    if spec.node != NODE:
        raise UnknownNameError(f"node of {NAME}", spec.node, [NODE])
    encoder = RAEEncoder(config, spec)
    theirs = {name.removeprefix("encoder."): value for name, value in state.items() if name.startswith("encoder.")}
    name_map = _name_map_of(theirs, config)
    used = {name: value for name, value in theirs.items() if not name.startswith(name_map.unused)}
    names = encoder_names(name_map, config.encoder_num_hidden_layers)
    load_theirs(encoder, used, names, owner=f"the {config.encoder_type} encoder")
    mean, std = normalisation(config, state)
    options = spec.options | {"patches": [config.patch_size, config.encoder_patch_size]}  # no tensor tells them
    provenance = Provenance(NAME, NODE, weights, options=options, native_size=(config.side, config.side))
    return FrozenBackbone(encoder, provenance, mean=mean, std=std)


def read_diffusers_rae(path: Path) -> tuple[RAEConfig, dict[str, Tensor]]:
    """Read the files of a model that diffusers wrote.

    Args:
        path: Its folder, or the file with the tensors in it.

    Raises:
        CheckpointError: If a file is missing or damaged, or the model is of another class.
        UnknownNameError: For an encoder type that does not exist.
    """
    config, state = read_folder(path)
    return RAEConfig.parse(config), state


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


def _name_map_of(state: Mapping[str, Tensor], config: RAEConfig) -> NameMap:
    """The generation of names that most tensors have."""

    def known(name_map: NameMap) -> int:
        names = encoder_names(name_map, config.encoder_num_hidden_layers).values()
        return sum(part in state for parts in names for part in parts)

    return max(NAME_MAPS[config.encoder_type].values(), key=known)
