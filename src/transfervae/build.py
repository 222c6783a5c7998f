"""Building a model by name."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from transfervae.backbones import FrozenBackbone, create_backbone
from transfervae.decoders import DECODERS
from transfervae.errors import InvalidOptionError
from transfervae.files import format_bytes
from transfervae.heads import HEADS
from transfervae.model import TransferVAE
from transfervae.options import Spec, check_values, options_of
from transfervae.priors import PRIORS
from transfervae.shapes import parse_image_size

AnySpec: TypeAlias = str | Spec | Mapping[str, Any]

BACKBONE_OPTIONS = options_of(create_backbone, skip=("image_size",))
"""Options of every backbone; `build_vae` gives the image size."""


def build_vae(
    backbone: AnySpec | FrozenBackbone = "vgg19",
    *,
    image_size: int | str | Sequence[int] = 128,
    head: AnySpec = "gaussian",
    latent_dim: int | None = None,
    decoder: AnySpec = "residual",
    prior: AnySpec | None = None,
) -> TransferVAE:
    """Build a model in one line.

    A part is given by its name, or with options of its own as a `Spec`:
    `build_vae(Spec("packaged", node=(1, 2, 3)), head=Spec("deterministic", tau=0.8), decoder=Spec("vit", depth=4))`.

    Args:
        backbone: A name for `create_backbone`, with its options; or a backbone.
        image_size: Height and width of the images, or one number, in pixels.
        head: A name from `heads.HEADS`: "gaussian" (a vector), "pooled" (a vector from any grid), "spatial" (a map) or
            "deterministic" (the features themselves, no KL).
        latent_dim: Short for the head's option: length of the latent vector, or channels of the map.
        decoder: A name from `decoders.DECODERS`.
        prior: A name from `priors.PRIORS`; the one that suits the head if None.

    Returns:
        The model, in training mode.

    Raises:
        UnknownNameError: For a backbone, node, head, decoder or prior that does not exist.
        UnknownOptionError: For an option that a part does not have.
        ImageSizeError: If the backbone cannot take the size.
        InvalidOptionError: If a value is out of range.
        WeightsUnavailableError: If the weights are not to be had.
    """
    head_spec, decoder_spec = HEADS.check(head), DECODERS.check(decoder)
    if latent_dim is not None:
        head_spec = HEADS.check(head_spec.replace(latent_dim=latent_dim))
    size = parse_image_size(image_size)
    frozen = make_backbone(backbone, image_size=size)
    features = frozen.feature_shape(size)
    _check_memory(head_spec, decoder_spec, features, size)
    made = HEADS.build(head_spec, features)
    latent_shape = made.latent_shape_for(features)
    chosen = None if prior is None else PRIORS.build(prior, latent_shape)
    return TransferVAE(frozen, made, DECODERS.build(decoder_spec, latent_shape, size), prior=chosen)


def _check_memory(head: Spec, decoder: Spec, features: tuple[int, int, int], size: tuple[int, int]) -> None:
    """Refuse parts that this machine could not hold, before any memory is taken.

    Raises:
        InvalidOptionError: Naming the larger part.
    """
    made = HEADS.build_empty(head, features)
    parts = {"head": made, "decoder": DECODERS.build_empty(decoder, made.latent_shape_for(features), size)}
    memory = _machine_memory()
    for kind, part in parts.items():
        needed = sum(value.nbytes for value in part.state_dict().values())
        if memory is not None and needed > memory:
            raise InvalidOptionError(
                f"The {kind} would take {format_bytes(needed)}, and this machine has {format_bytes(memory)} of memory;"
                f" choose smaller options for the {kind}."
            )


def _machine_memory() -> int | None:
    """Bytes of memory of this machine, or None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def make_backbone(backbone: AnySpec | FrozenBackbone, *, image_size: tuple[int, int]) -> FrozenBackbone:
    """Create a backbone from its name and options; one that is made already is given back.

    Args:
        backbone: A name for `create_backbone`, with its options; or a backbone.
        image_size: (height, width) that it is created for, if its layers depend on the size.

    Raises:
        TransferVAEError: As `create_backbone`.
    """
    if isinstance(backbone, FrozenBackbone):
        return backbone
    spec = check_backbone(backbone)
    return create_backbone(spec.name, image_size=image_size, **spec.options)


def check_backbone(backbone: AnySpec) -> Spec:
    """A backbone's spec with options that exist; whether the name does, `create_backbone` says.

    Raises:
        UnknownOptionError: For another option.
        InvalidOptionError: For a value of another type, or no name.
    """
    if not isinstance(backbone, str | Spec | Mapping):
        raise InvalidOptionError(f"backbone must be a name, a Spec or a FrozenBackbone, got {type(backbone).__name__}.")
    spec = Spec.parse(backbone, "backbone")
    check_values(f"backbone {spec.name!r}", BACKBONE_OPTIONS, spec.options)
    return spec
