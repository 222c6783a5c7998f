"""The decoder of diffusers' `AutoencoderKL`, which Stable Diffusion, SDXL, SD3 and Flux share."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from transfervae.backbones._state_dict_names import load_theirs
from transfervae.backbones.pretrained import PretrainedSource, read_pretrained
from transfervae.decoders import KLDecoder, kl_decoder
from transfervae.decoders._grids import halved_sizes
from transfervae.errors import CheckpointError, TransferVAEError
from transfervae.scaling import LatentScaling
from transfervae.shapes import parse_image_size

OWNER = "the decoder of AutoencoderKL"
ENCODER_PREFIXES = ("encoder.", "quant_conv.")
ATTENTION = "decoder.mid_block.attentions.0"
EARLY_NAMES = (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0"))
"""What the first versions of diffusers called the layers of the attention, and what later ones do."""

DEFAULTS = {
    "_class_name": "AutoencoderKL",
    "up_block_types": ["UpDecoderBlock2D"],
    "block_out_channels": [64],
    "layers_per_block": 1,
    "act_fn": "silu",
    "latent_channels": 4,
    "norm_num_groups": 32,
    "out_channels": 3,
    "scaling_factor": 0.18215,
    "shift_factor": None,
    "latents_mean": None,
    "latents_std": None,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
}
"""What diffusers assumes for what a configuration does not say."""

Config: TypeAlias = Mapping[str, Any]


class DiffusersKLDecoder(NamedTuple):
    """A decoder of diffusers, and how its latents are scaled.

    Attributes:
        decoder: Latents `[b, c, h, w]` to images in [0, 1].
        scaling: `normalise` maps its latents to those that diffusion models see, `restore` back.
    """

    decoder: KLDecoder
    scaling: LatentScaling


def load_diffusers_kl_decoder(
    source: PretrainedSource,
    *,
    image_size: int | Sequence[int],
    subfolder: str = "",
    revision: str | None = None,
) -> DiffusersKLDecoder:
    """Load the decoder of an `AutoencoderKL` that diffusers saved.

    Args:
        source: Its folder; a name "owner/name" on the Hugging Face Hub; or (configuration, tensors by name).
        image_size: Height and width of the images to decode, or one number. The latents are that size halved once for
            every block but the first, rounded up.
        subfolder: Where in the folder or repository it is: "vae" in a whole pipeline.
        revision: Branch, tag or commit on the Hub; its main branch if None.

    Returns:
        The decoder, in evaluation mode, on the CPU, in float32; and the latents' scaling from the configuration's
        `scaling_factor`, `shift_factor`, `latents_mean` and `latents_std`.

    Raises:
        CheckpointError: If files are missing, damaged or foreign, or for an autoencoder of another kind.
        WeightsMismatchError: If the tensors do not fit the configuration; the first three misfits are named.
        WeightsUnavailableError: If a name's files are neither in the Hub's cache nor to be fetched.
        ImageSizeError: If `image_size` is not one or two positive numbers.
    """
    size = parse_image_size(image_size)
    config, state = read_pretrained(source, subfolder=subfolder, revision=revision)
    config = {**DEFAULTS, **config}
    _check_supported(config)
    decoder = _build(config, size)
    _load(decoder, state)
    return DiffusersKLDecoder(decoder.eval(), _scaling(config))


def _check_supported(config: Config) -> None:
    widths = config["block_out_channels"]
    if not isinstance(widths, (list, tuple)):
        raise CheckpointError(f"block_out_channels must be a list of numbers, got {widths!r}.")
    supported: dict[str, Sequence[object]] = {
        "_class_name": ("AutoencoderKL",),
        "act_fn": ("silu", "swish"),
        "out_channels": (3,),
        "up_block_types": (["UpDecoderBlock2D"] * len(widths),),
    }
    for key, values in supported.items():
        given = list(config[key]) if isinstance(config[key], tuple) else config[key]
        if given not in values:
            known = " or ".join(repr(value) for value in values)
            raise CheckpointError(f"An autoencoder with {key} {given!r} cannot be loaded, only one with {known}.")


def _build(config: Config, image_size: tuple[int, int]) -> KLDecoder:
    widths = list(config["block_out_channels"])
    grid = halved_sizes(image_size, len(widths) - 1)[0]
    try:
        return kl_decoder(
            (config["latent_channels"], *grid),
            image_size,
            width=widths,
            resnets_per_block=config["layers_per_block"] + 1,
            norm_groups=config["norm_num_groups"],
            attention=config["mid_block_add_attention"],
            post_quant_conv=config["use_post_quant_conv"],
        )
    except (TransferVAEError, TypeError) as error:
        raise CheckpointError(f"The configuration describes no decoder: {error}") from error


def _load(decoder: KLDecoder, state: Mapping[str, Tensor]) -> None:
    state = {_modern_name(name): tensor for name, tensor in state.items() if not name.startswith(ENCODER_PREFIXES)}
    state.pop(f"{ATTENTION}.to_k.bias", None)  # without effect, see KLDecoder
    load_theirs(decoder, state, {name: (_their_name(name, decoder),) for name in decoder.state_dict()}, owner=OWNER)


def _their_name(name: str, decoder: KLDecoder) -> str:
    for ours, theirs in _renamed_modules(decoder):
        if name.startswith(f"{ours}."):
            return (theirs + name.removeprefix(ours)).replace(".shortcut.", ".conv_shortcut.")
    return name


def _renamed_modules(decoder: KLDecoder) -> Iterator[tuple[str, str]]:
    yield "stem.1", "decoder.conv_in"
    for i, resnet in ((0, 0), (2, 1)):
        yield f"middle.{i}", f"decoder.mid_block.resnets.{resnet}"
    for ours, theirs in (("norm", "group_norm"), ("query", "to_q"), ("key", "to_k"), ("value", "to_v")):
        yield f"middle.1.{ours}", f"{ATTENTION}.{theirs}"
    yield "middle.1.out", f"{ATTENTION}.to_out.0"
    resnets = decoder.resnets_per_block
    for i in range(len(decoder.blocks)):
        yield f"blocks.{i}.{resnets}.1", f"decoder.up_blocks.{i}.upsamplers.0.conv"
        yield f"blocks.{i}", f"decoder.up_blocks.{i}.resnets"
    yield "last_norm", "decoder.conv_norm_out"
    yield "to_rgb", "decoder.conv_out"


def _modern_name(name: str) -> str:
    for early, modern in EARLY_NAMES:
        name = name.replace(f"{ATTENTION}.{early}.", f"{ATTENTION}.{modern}.")
    return name


def _scaling(config: Config) -> LatentScaling:
    """Diffusers scales by (z - mean) * factor / std, where a shift factor is the mean of every channel."""
    channels = config["latent_channels"]
    try:
        mean = config["latents_mean"] or [config["shift_factor"] or 0.0] * channels
        std = config["latents_std"] or [1.0] * channels
        std = [value / config["scaling_factor"] for value in std]
        shape = (channels, 1, 1)
        return LatentScaling(torch.tensor(mean).float().view(shape), torch.tensor(std).float().view(shape))
    except (TransferVAEError, RuntimeError, TypeError, ZeroDivisionError) as error:
        raise CheckpointError(f"The configuration describes no scaling of latents: {error}") from error
