"""Representation autoencoders (Zheng et al. 2025): models of diffusers' `AutoencoderRAE`, and the original decoders."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from transfervae.backbones._state_dict_names import Names, load_theirs, with_ends
from transfervae.backbones._weights import describe_misfits, read_weights
from transfervae.backbones.pretrained import (
    CONFIG_FILE,
    PretrainedSource,
    cached_file,
    parse_hub_name,
    read_pretrained,
)
from transfervae.backbones.rae import RAEConfig, build_rae_encoder, normalisation
from transfervae.decoders.vit import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    SIZES,
    ViTDecoder,
    sine_cosine_positions,
    vit_decoder,
)
from transfervae.errors import CheckpointError, ImageSizeError, InvalidOptionError, WeightsMismatchError
from transfervae.heads import DeterministicHead
from transfervae.model import TransferVAE
from transfervae.scaling import EPSILON, LatentScaling
from transfervae.shapes import parse_image_size

State: TypeAlias = Mapping[str, Tensor]
Shape: TypeAlias = tuple[int, int, int]

DIFFUSERS_PROJECTIONS = ("attention.to_q", "attention.to_k", "attention.to_v")
DIFFUSERS_OUT = "attention.to_out.0"
ORIGINAL_PROJECTIONS = ("attention.attention.query", "attention.attention.key", "attention.attention.value")
ORIGINAL_OUT = "attention.output.dense"

POSITIONS = "decoder_pos_embed"
"""Some files hold the fixed positions, which are computed here."""

POSITIONS_TOLERANCE = 1e-4


class RAEDecoder(NamedTuple):
    """A decoder of the original code, and how its latents are scaled.

    Attributes:
        decoder: Latents `[b, c, h, w]` to images in [0, 1].
        scaling: `normalise` maps its latents to those that diffusion models see, `restore` back; None without
            statistics.
    """

    decoder: ViTDecoder
    scaling: LatentScaling | None


def load_diffusers_rae(
    source: PretrainedSource,
    *,
    image_size: int | Sequence[int] | None = None,
    positions: str = "diffusers",
    subfolder: str = "",
    revision: str | None = None,
) -> TransferVAE:
    """Load an `AutoencoderRAE` that diffusers saved, encoder and all.

    Its latents are the encoder's features; those that diffusers gives are `encode(images, scaled=True)`. diffusers
    squashes every image to a square first; here a side of the image stays in proportion to the encoder's.

    Args:
        source: Its folder; a name "owner/name" on the Hugging Face Hub; or (configuration, tensors by name). Saved
            again, the model names the folder or the Hub's cache; from memory, it is to be read with `backbone=`.
        image_size: Height and width of the images, or one number: multiples of the decoder's patch; those of the
            configuration if None.
        positions: Coordinates of the decoder's positions, as in `vit_decoder`: "diffusers" computes what diffusers
            does; "rae" what the original code does, for decoders that it trained at other than 16x16 tokens.
        subfolder: Where in the folder or repository it is.
        revision: Branch, tag or commit on the Hub; its main branch if None.

    Returns:
        The model, in evaluation mode, on the CPU, in float32. Its head adds the configuration's noise in training; its
        scaling is that of the latents' statistics, if there are any.

    Raises:
        CheckpointError: If files are missing, damaged or foreign.
        WeightsMismatchError: If the tensors do not fit the configuration; the first three misfits are named.
        WeightsUnavailableError: If a name's files are neither in the Hub's cache nor to be fetched.
        ImageSizeError: If the encoder cannot take the image size.
        UnknownNameError: For another convention of positions.
    """
    pretrained = read_pretrained(source, subfolder=subfolder, revision=revision)
    config, state = RAEConfig.parse(pretrained.config), pretrained.state
    _check_names(state)
    backbone = build_rae_encoder(config, state, weights=_folder_of(source, subfolder, revision))
    size = parse_image_size(config.side if image_size is None else image_size)
    latent_shape = backbone.feature_shape(size)
    mean, std = normalisation(config, state)
    decoder = vit_decoder(
        latent_shape,
        size,
        width=config.decoder_hidden_size,
        depth=config.decoder_num_hidden_layers,
        heads=config.decoder_num_attention_heads,
        mlp_width=config.decoder_intermediate_size,
        positions=positions,
        mean=mean,
        std=std,
    )
    names = decoder_names(config.decoder_num_hidden_layers, DIFFUSERS_PROJECTIONS, DIFFUSERS_OUT)
    _load_decoder(decoder, _under(state, "decoder."), names)
    scaling = _scaling(config, state, latent_shape)
    return TransferVAE(backbone, DeterministicHead(latent_shape, tau=config.noise_tau), decoder, scaling=scaling).eval()


def load_rae_checkpoint(
    source: str | os.PathLike[str] | State,
    *,
    image_size: int | Sequence[int] = 256,
    heads: int | None = None,
    positions: str = "rae",
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    statistics: str | os.PathLike[str] | State | None = None,
) -> RAEDecoder:
    """Load a decoder of the original code (github.com/bytetriper/RAE).

    Args:
        source: A .safetensors file, a .pt file with plain tensors (read with `weights_only=True`), or tensors by name.
        image_size: Height and width of the images to decode, or one number: multiples of the decoder's patch.
        heads: Attention heads, which the tensors do not tell; those of the published decoder of this width if None.
        positions: Coordinates of the positions, as in `vit_decoder`.
        mean: Per RGB channel, what the encoder's images were normalised with.
        std: Per RGB channel, likewise.
        statistics: A file or tensors with the latents' `mean` and `var`.

    Returns:
        The decoder, in evaluation mode, on the CPU, in float32; and the latents' scaling, by sqrt(var + 1e-5).

    Raises:
        CheckpointError: If a file is missing, damaged or foreign.
        WeightsMismatchError: If the tensors are no such decoder; the first three misfits are named.
        InvalidOptionError: If the heads are not known, or do not divide the width.
        ImageSizeError: If `image_size` is no multiple of the patch.
    """
    state = _read(source)
    if all(name.startswith("decoder.") for name in state):
        state = _under(state, "decoder.")
    width, channels = _shape_of(state, "decoder_embed.weight")
    mlp_width, _ = _shape_of(state, "decoder_layers.0.intermediate.dense.weight")
    patch = math.isqrt(_shape_of(state, "decoder_pred.weight")[0] // 3)
    size = parse_image_size(image_size)
    if not patch or any(side % patch for side in size):
        raise ImageSizeError(f"image_size must be a multiple of the decoder's patch, {patch}, got {size}.")
    layers = len({name.split(".")[1] for name in state if name.startswith("decoder_layers.")})
    decoder = vit_decoder(
        (channels, size[0] // patch, size[1] // patch),
        size,
        width=width,
        depth=layers,
        heads=_known_heads(width) if heads is None else heads,
        mlp_width=mlp_width,
        positions=positions,
        mean=mean,
        std=std,
    )
    _load_decoder(decoder, state, decoder_names(layers, ORIGINAL_PROJECTIONS, ORIGINAL_OUT))
    scaling = None if statistics is None else _original_scaling(_read(statistics), decoder)
    return RAEDecoder(decoder.eval(), scaling)


def decoder_names(layers: int, projections: tuple[str, ...], out: str) -> Names:
    """Our names of a decoder's tensors to theirs.

    Args:
        layers: Number of blocks.
        projections: Their names of a block's query, key and value.
        out: Their name of its attention's last layer.
    """
    names: dict[str, str | tuple[str, ...]] = {
        "embed": "decoder_embed",
        "norm": "decoder_norm",
        "predict": "decoder_pred",
    }
    for index in range(layers):
        theirs = f"decoder_layers.{index}."
        names |= {
            f"blocks.{index}.norm1": f"{theirs}layernorm_before",
            f"blocks.{index}.qkv": tuple(f"{theirs}{projection}" for projection in projections),
            f"blocks.{index}.out": f"{theirs}{out}",
            f"blocks.{index}.norm2": f"{theirs}layernorm_after",
            f"blocks.{index}.expand": f"{theirs}intermediate.dense",
            f"blocks.{index}.contract": f"{theirs}output.dense",
        }
    return {"class_token": ("trainable_cls_token",), **with_ends(names)}


def _load_decoder(decoder: ViTDecoder, state: State, names: Names) -> None:
    """Load all or nothing; positions that a file holds must be those that are computed."""
    given = {name: value for name, value in state.items() if name != POSITIONS}
    if POSITIONS in state:
        _check_positions(decoder, state[POSITIONS])
    load_theirs(decoder, given, names, owner="the decoder")


def _check_positions(decoder: ViTDecoder, given: Tensor) -> None:
    patches = given.float().reshape(-1, given.shape[-1])[1:]
    own = sine_cosine_positions(decoder.architecture.width, decoder.grid, decoder.positions)
    if patches.shape != own.shape or (patches - own).abs().max() > POSITIONS_TOLERANCE:
        rows, columns = decoder.grid
        raise WeightsMismatchError(
            f"{POSITIONS} in the file is not that of {rows}x{columns} tokens with positions={decoder.positions!r};"
            " give the image size and the positions that the decoder was trained with."
        )


def _check_names(state: State) -> None:
    known = ("encoder.", "decoder.", "encoder_mean", "encoder_std", "_latents_mean", "_latents_std")
    foreign = [f"{name} is not expected" for name in state if not name.startswith(known)]
    if foreign:
        raise WeightsMismatchError(describe_misfits("AutoencoderRAE", foreign))


def _folder_of(source: PretrainedSource, subfolder: str, revision: str | None) -> str | None:
    """Where `create_backbone` finds the encoder again."""
    if isinstance(source, tuple):
        return None
    if Path(source).is_dir():
        return str((Path(source) / subfolder).absolute())
    repository = parse_hub_name(source, subfolder=subfolder, revision=revision)
    cached = None if repository is None else cached_file(repository, CONFIG_FILE)
    return None if cached is None else str(cached.parent)


def _scaling(config: RAEConfig, state: State, latent_shape: Shape) -> LatentScaling | None:
    """(z - mean) * factor / (std + 1e-5), or None if that changes nothing but rounding."""
    mean = _statistic(state.get("_latents_mean"), config.latents_mean, 0.0)
    std = _statistic(state.get("_latents_std"), config.latents_std, 1.0)
    if not mean.any() and bool((std == 1).all()) and config.scaling_factor == 1:
        return None
    fitting = (_fit(values, latent_shape, maps=config.reshape_to_2d) for values in (mean, std + EPSILON))
    mean, std = torch.broadcast_tensors(*fitting)
    return LatentScaling(mean, std / config.scaling_factor)


def _statistic(stored: Tensor | None, configured: Any, default: float) -> Tensor:
    if stored is not None:
        return stored.float()
    try:
        return torch.tensor(default if configured is None else configured, dtype=torch.float32)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"The configuration's statistics of latents are no numbers: {error}") from error


def _fit(values: Tensor, latent_shape: Shape, *, maps: bool) -> Tensor:
    """Statistics in the shape of a latent `[c, h, w]`, or `[c, 1, 1]` where positions do not differ.

    Args:
        values: As diffusers broadcasts them against its latents.
        latent_shape: Of ours.
        maps: Whether its latents are maps, else tokens `[n, c]`.
    """
    channels, height, width = latent_shape
    values = values[0] if values.ndim > (3 if maps else 2) else values
    try:
        if not maps:
            tokens = values.broadcast_to(height * width, channels)
            return tokens.T.reshape(channels, height, width)
        constant = all(side == 1 for side in values.shape[-2:])
        return values.broadcast_to((channels, 1, 1) if constant else latent_shape)
    except RuntimeError as error:
        raise CheckpointError(
            f"The latents' statistics {list(values.shape)} do not fit latents {list(latent_shape)}."
        ) from error


def _original_scaling(statistics: State, decoder: ViTDecoder) -> LatentScaling:
    if "mean" not in statistics or "var" not in statistics:
        raise CheckpointError(f"The statistics hold {', '.join(statistics)}, but should hold mean and var.")
    channels, height, width = decoder.latent_shape
    std = (statistics["var"].float() + EPSILON).sqrt()
    moments = (_fit(values, (channels, height, width), maps=True) for values in (statistics["mean"].float(), std))
    return LatentScaling(*torch.broadcast_tensors(*moments))


def _read(source: str | os.PathLike[str] | State) -> State:
    return source if isinstance(source, Mapping) else read_weights(source)


def _under(state: State, prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _shape_of(state: State, name: str) -> tuple[int, int]:
    if name not in state or state[name].ndim != 2:
        what = f"is {list(state[name].shape)} instead of a matrix" if name in state else "is missing"
        raise WeightsMismatchError(describe_misfits("an RAE decoder", [f"{name} {what}"]))
    rows, columns = state[name].shape
    return rows, columns


def _known_heads(width: int) -> int:
    for size in SIZES.values():
        if size.width == width:
            return size.heads
    raise InvalidOptionError(f"No decoder of width {width} was published; say how many heads it has with heads=.")
