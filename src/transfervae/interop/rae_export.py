"""Models written as diffusers' `AutoencoderRAE`."""

import os
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from transfervae.backbones._state_dict_names import Names, to_theirs
from transfervae.backbones._timm import StageFeatures
from transfervae.backbones.frozen import FrozenBackbone
from transfervae.backbones.pretrained import CONFIG_FILE, WEIGHTS_FILES
from transfervae.backbones.rae import HEAD_WIDTH, KINDS, MODEL_CLASS, Kind, RAEEncoder
from transfervae.backbones.rae.names import NAME_MAPS, NameMap, encoder_names
from transfervae.decoders.vit import REFERENCE_GRID, ViTDecoder
from transfervae.errors import InvalidOptionError, UnknownNameError, UnsupportedBackboneError
from transfervae.files import write_atomically, write_json
from transfervae.heads import DeterministicHead
from transfervae.interop.rae import DIFFUSERS_OUT, DIFFUSERS_PROJECTIONS, decoder_names
from transfervae.model import TransferVAE
from transfervae.scaling import EPSILON

UNUSED_IN_VIT = ("attn_pool.", "head.", "fc_norm.", "norm.")


class Encoder(NamedTuple):
    """An encoder as diffusers can hold it.

    Attributes:
        type: Its name in diffusers.
        patch: Side of its patches, in pixels.
        depth: Number of blocks.
        state: Its tensors by the names of `RAEEncoder`.
        weight: `[c]`, what its normalised tokens are multiplied with; diffusers leaves that out.
        bias: `[c]`, what is added then.
    """

    type: str
    patch: int
    depth: int
    state: dict[str, Tensor]
    weight: Tensor
    bias: Tensor


def to_diffusers_rae(vae: TransferVAE, folder: str | os.PathLike[str], *, transformers: int = 5) -> None:
    """Write a model that diffusers' `AutoencoderRAE.from_pretrained` opens, with the frozen network's weights inside.

    It can hold square images, a deterministic head, a transformer decoder, and as the encoder one that
    `load_diffusers_rae` gave, or one of timm's vision transformers that is built as DINOv2 with registers, SigLIP 2 or
    MAE and is read with `norm=True`. What diffusers lacks, an affine final normalisation and a decoder with an output
    scale of its own, is folded into the decoder's first and last layer, and into the latents' statistics: images are
    the same, latents are those before the affine map. (timm's MAE adds 1e-6 to variances where diffusers' adds 1e-12:
    its features then differ by about 1e-5.)

    Args:
        vae: The model.
        folder: Made if missing; a model in it is replaced.
        transformers: Major version of transformers that diffusers will run with: its encoders' tensors had other names
            in 4 than in 5.

    Raises:
        InvalidOptionError: If diffusers cannot hold the head, the decoder or the image size; it says which.
        UnsupportedBackboneError: If diffusers has no such encoder.
        UnknownNameError: For a version of transformers other than 4 and 5.
        FileWriteError: If the files cannot be written.
    """
    decoder = _decoder_of(vae)
    encoder = _encoder_of(vae.backbone, decoder.grid[0])
    if transformers not in NAME_MAPS[encoder.type]:
        raise UnknownNameError("major version of transformers", transformers, NAME_MAPS[encoder.type])
    name_map = NAME_MAPS[encoder.type][transformers]
    names = encoder_names(name_map, encoder.depth)
    _check_complete(encoder, names, vae.backbone.provenance.name)
    mean, std = _statistics(vae, encoder)
    state = to_theirs(encoder.state, names) | _unused(encoder, name_map)
    tensors = {f"encoder.{name}": value for name, value in state.items()}
    tensors |= {f"decoder.{name}": value for name, value in _decoder_state(decoder, encoder, vae.backbone).items()}
    tensors |= {"encoder_mean": vae.backbone.mean, "encoder_std": vae.backbone.std}
    tensors |= {"_latents_mean": torch.zeros(1) if mean is None else mean}
    tensors |= {"_latents_std": torch.ones(1) if std is None else std}
    stored = {name: value.detach().cpu().float().contiguous().clone() for name, value in tensors.items()}
    config = _config(vae, decoder, encoder) | {
        "latents_mean": None if mean is None else mean.tolist(),
        "latents_std": None if std is None else std.tolist(),
    }
    write_atomically(Path(folder) / WEIGHTS_FILES[0], safetensors.torch.save(stored, {"format": "pt"}))
    write_json(Path(folder) / CONFIG_FILE, config)


def _decoder_of(vae: TransferVAE) -> ViTDecoder:
    """The decoder, if diffusers can hold it with the head."""
    cannot = f"{MODEL_CLASS} of diffusers cannot hold"
    decoder = vae.decoder
    if not isinstance(vae.head, DeterministicHead):
        raise InvalidOptionError(f"{cannot} a {type(vae.head).__name__}, only a DeterministicHead.")
    if not isinstance(decoder, ViTDecoder):
        raise InvalidOptionError(f"{cannot} a {type(decoder).__name__}, only a ViTDecoder (decoder='vit').")
    (height, width), (rows, columns) = decoder.image_size, decoder.grid
    if height != width or rows != columns or rows * decoder.patch[0] != height:
        raise InvalidOptionError(
            f"{cannot} {rows}x{columns} latents for {height}x{width} images, only square ones whose number divides"
            " the image's side."
        )
    if decoder.positions != "diffusers" and rows != REFERENCE_GRID:
        raise InvalidOptionError(
            f"{cannot} positions={decoder.positions!r} for {rows}x{rows} latents, only positions='diffusers'; the two"
            f" agree for {REFERENCE_GRID}x{REFERENCE_GRID} alone."
        )
    return decoder


def _encoder_of(backbone: FrozenBackbone, cells: int) -> Encoder:
    network = backbone.network
    if isinstance(network, (RAEEncoder, StageFeatures)) and network.spec.grid is None:
        return _own_encoder(network) if isinstance(network, RAEEncoder) else _timm_encoder(backbone, network, cells)
    raise UnsupportedBackboneError(
        f"{MODEL_CLASS} of diffusers has no encoder for {backbone.provenance.name} as it is read here, only for vision"
        f" transformers of the types {', '.join(KINDS)}."
    )


def _own_encoder(network: RAEEncoder) -> Encoder:
    config, width = network.config, network.config.encoder_hidden_size
    return Encoder(
        config.encoder_type,
        config.encoder_patch_size,
        config.encoder_num_hidden_layers,
        network.state_dict(),
        torch.ones(width),
        torch.zeros(width),
    )


def _timm_encoder(backbone: FrozenBackbone, network: StageFeatures, cells: int) -> Encoder:
    """A vision transformer of timm, if one of diffusers' encoders computes the same."""
    vit: Any = network.network
    cannot = f"{MODEL_CLASS} of diffusers has no encoder that computes what {backbone.provenance.name} does:"
    if type(vit).__name__ != "VisionTransformer":
        raise UnsupportedBackboneError(f"{cannot} it is a {type(vit).__name__}, not a plain VisionTransformer.")
    if not network.spec.norm or not isinstance(vit.norm, nn.LayerNorm) or len(network.stages) != 1:
        raise UnsupportedBackboneError(f"{cannot} it must be read at one block, with norm=True.")
    name = next((name for name, kind in KINDS.items() if _is_of(vit, kind)), None)
    if name is None:
        raise UnsupportedBackboneError(f"{cannot} tokens, widths and activation fit neither {' nor '.join(KINDS)}.")
    kind, patch = KINDS[name], vit.patch_embed.patch_size[0]
    native = kind.native_size // patch
    if tuple(vit.patch_embed.grid_size) != (native, native):
        raise UnsupportedBackboneError(f"{cannot} its position embedding is not of {native}x{native} patches.")
    if not kind.antialias and cells != native:
        raise UnsupportedBackboneError(
            f"{cannot} its position embedding is resampled otherwise; use images of {native * patch} pixels a side."
        )
    kept = {name: value for name, value in vit.state_dict().items() if not name.startswith(UNUSED_IN_VIT)}
    position = kept.pop("pos_embed")
    if kind.class_token and vit.no_embed_class:
        position = torch.cat([torch.zeros_like(position[:, :1]), position], dim=1)
    state = {f"vit.{name}": value for name, value in kept.items()}
    state["position"] = position if kind.class_token else position[0]
    return Encoder(name, patch, len(vit.blocks), state, vit.norm.weight.cpu().float(), vit.norm.bias.cpu().float())


def _is_of(vit: Any, kind: Kind) -> bool:
    block, width = vit.blocks[0], vit.embed_dim
    points = torch.linspace(-3, 3, 13)
    activation = gelu(points, approximate="tanh" if kind.tanh else "none")
    return bool(
        (vit.has_class_token, vit.num_reg_tokens) == (kind.class_token, kind.registers)
        and hasattr(block.ls1, "gamma") == kind.layer_scale
        and block.mlp.fc1.out_features == (kind.mlp_width or 4 * width)
        and block.attn.num_heads * HEAD_WIDTH == width
        and torch.allclose(block.mlp.act(points), activation, atol=1e-6)
    )


def _check_complete(encoder: Encoder, names: Names, owner: str) -> None:
    """A tensor too many or too few would be a layer that diffusers' encoder has not, or has."""
    differing = sorted(encoder.state.keys() ^ names.keys())
    if differing:
        raise UnsupportedBackboneError(
            f"{MODEL_CLASS} of diffusers has no encoder like {owner}: they differ in {', '.join(differing[:3])}."
        )


def _decoder_state(decoder: ViTDecoder, encoder: Encoder, backbone: FrozenBackbone) -> dict[str, Tensor]:
    """The decoder's tensors by diffusers' names, with what it has no place for folded in."""
    own = {name: value.cpu().float() for name, value in decoder.state_dict().items()}
    embed = own["embed.weight"]
    own["embed.bias"] = own["embed.bias"] + embed @ encoder.bias
    own["embed.weight"] = embed * encoder.weight
    pixels = decoder.patch[0] * decoder.patch[1]
    scale = (decoder.std / backbone.std).cpu().flatten().repeat(pixels)
    shift = ((decoder.mean - backbone.mean) / backbone.std).cpu().flatten().repeat(pixels)
    own["predict.weight"] = own["predict.weight"] * scale[:, None]
    own["predict.bias"] = own["predict.bias"] * scale + shift
    return to_theirs(own, decoder_names(decoder.architecture.depth, DIFFUSERS_PROJECTIONS, DIFFUSERS_OUT))


def _statistics(vae: TransferVAE, encoder: Encoder) -> tuple[Tensor | None, Tensor | None]:
    """Mean and deviation of the latents before the encoder's affine map."""
    if vae.scaling is None:
        return None, None
    weight, bias = encoder.weight[:, None, None], encoder.bias[:, None, None]
    if not weight.all():
        raise InvalidOptionError(
            "The network's final normalisation switches a channel off, whose scaling diffusers cannot hold; set"
            " vae.scaling to None first."
        )
    return (vae.scaling.mean.cpu() - bias) / weight, vae.scaling.std.cpu() / weight - EPSILON


def _unused(encoder: Encoder, name_map: NameMap) -> dict[str, Tensor]:
    """What the features do not depend on, but what diffusers wants to find: zeros."""
    if not name_map.unused:
        return {}
    width = encoder.state["vit.patch_embed.proj.bias"].numel()
    inner = encoder.state["vit.blocks.0.mlp.fc1.bias"].numel()
    (start,) = name_map.unused
    if encoder.type == "dinov2":
        return {start: torch.zeros(1, width)}
    shapes: dict[str, tuple[int, ...]] = {
        "probe": (1, 1, width),
        "attention.in_proj_weight": (3 * width, width),
        "attention.in_proj_bias": (3 * width,),
        "attention.out_proj.weight": (width, width),
        "attention.out_proj.bias": (width,),
        "layernorm.weight": (width,),
        "layernorm.bias": (width,),
        "mlp.fc1.weight": (inner, width),
        "mlp.fc1.bias": (inner,),
        "mlp.fc2.weight": (width, inner),
        "mlp.fc2.bias": (width,),
    }
    return {f"{start}{name}": torch.zeros(shape) for name, shape in shapes.items()}


def _config(vae: TransferVAE, decoder: ViTDecoder, encoder: Encoder) -> dict[str, Any]:
    architecture = decoder.architecture
    head: Any = vae.head
    return {
        "_class_name": MODEL_CLASS,
        "encoder_type": encoder.type,
        "encoder_hidden_size": decoder.latent_shape[0],
        "encoder_patch_size": encoder.patch,
        "encoder_num_hidden_layers": encoder.depth,
        "decoder_hidden_size": architecture.width,
        "decoder_num_hidden_layers": architecture.depth,
        "decoder_num_attention_heads": architecture.heads,
        "decoder_intermediate_size": architecture.mlp_width,
        "patch_size": decoder.patch[0],
        "encoder_input_size": decoder.grid[0] * encoder.patch,
        "image_size": decoder.image_size[0],
        "encoder_norm_mean": vae.backbone.mean.flatten().tolist(),
        "encoder_norm_std": vae.backbone.std.flatten().tolist(),
        "noise_tau": head.tau,
    }
