"""Families of backbones: how each is created, described and listed."""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from os import PathLike
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

from transfervae.backbones import _packaged as packaged
from transfervae.backbones._keras_vgg19 import create_keras_vgg19
from transfervae.backbones._packaged import create_packaged
from transfervae.backbones._timm import check_timm_name, create_timm, is_timm_name
from transfervae.backbones.descriptions import BackboneDescription, Size, describe_timm, describe_vgg19
from transfervae.backbones.feature_spec import FeatureSpec
from transfervae.backbones.frozen import MODULE_PREFIX, FrozenBackbone
from transfervae.backbones.rae import create_rae_encoder
from transfervae.backbones.vgg import create_vgg19, fetch_vgg19_weights
from transfervae.errors import InvalidOptionError, UnknownNameError, WeightsUnavailableError

Weights: TypeAlias = str | PathLike[str] | None

TIMM_PREFIX = "timm:"


class Family(NamedTuple):
    """Backbones that are created in the same way.

    Attributes:
        create: Takes a name, where the network is read, weights, and the image size that it is created for.
        describe: Takes a name and an image size, or None for the network's own; None where a name alone does not tell
            what the network is.
        names: The family's names that need no file of one's own, without pretrained tags.
    """

    create: Callable[[str, FeatureSpec, Weights, Size | None], FrozenBackbone]
    describe: Callable[[str, Size | None], BackboneDescription] | None
    names: Callable[[], Sequence[str]]


def find_family(name: str) -> Family:
    """The family of a backbone's name; timm's names may stand without "timm:" here.

    Raises:
        UnknownNameError: If timm has no such network; the nearest is suggested.
    """
    if name in FAMILIES and name != TIMM_PREFIX:
        return FAMILIES[name]
    check_timm_name(name.removeprefix(TIMM_PREFIX))
    return FAMILIES[TIMM_PREFIX]


def find_creator(name: str) -> Family:
    """The family of a name that a backbone is to be created by.

    Raises:
        UnknownNameError: For a name that does not exist; the nearest is suggested.
        InvalidOptionError: For the name of a network that was made of a module in memory.
    """
    if name in FAMILIES and name != TIMM_PREFIX:
        return FAMILIES[name]
    if name.startswith(TIMM_PREFIX):
        return FAMILIES[TIMM_PREFIX]
    if name.startswith(MODULE_PREFIX):
        raise InvalidOptionError(
            f"{name!r} was made of a network in memory; give it with TransferVAE.from_pretrained(folder, backbone=...)."
        )
    hint = f"timm has it: use 'timm:{name}'." if is_timm_name(name) else "timm's networks are named 'timm:NAME'."
    raise UnknownNameError("backbone", name, [entry for entry in FAMILIES if entry != TIMM_PREFIX], hint=hint)


def resolve_backbone_name(name: str, weights: object = "default") -> tuple[str, str]:
    """Choose the backbone for "auto": vgg19, or packaged where vgg19's weights cannot be fetched.

    Args:
        name: A backbone's name; another than "auto" stands for itself.
        weights: As for `create_backbone`.

    Returns:
        The name, and why it is not the first choice, or "".
    """
    if name != AUTO:
        return name, ""
    if weights == "default":
        try:
            fetch_vgg19_weights()
        except WeightsUnavailableError as error:
            return "packaged", str(error)
    return "vgg19", ""


def _create_auto(_name: str, spec: FeatureSpec, weights: Weights, _size: Size | None) -> FrozenBackbone:
    """As `resolve_backbone_name` does, but vgg19's weights are read once."""
    try:
        return create_vgg19(spec, weights)
    except WeightsUnavailableError:
        return create_packaged(spec, weights)


def _describe_packaged(_name: str, size: Size | None) -> BackboneDescription:
    return describe_timm(packaged.ARCHITECTURE, "packaged", packaged.DEFAULT_NODE, size)


def _create_timm(name: str, spec: FeatureSpec, weights: Weights, size: Size | None) -> FrozenBackbone:
    return create_timm(name.removeprefix(TIMM_PREFIX), spec.or_at(-1), weights, image_size=size)


def _describe_timm(name: str, size: Size | None) -> BackboneDescription:
    architecture = name.removeprefix(TIMM_PREFIX)
    return describe_timm(architecture, f"{TIMM_PREFIX}{architecture}", -1, size)


def _timm_names() -> list[str]:
    return [f"{TIMM_PREFIX}{name}" for name in import_module("timm").list_models()]


AUTO = "auto"

_PACKAGED = Family(
    lambda _name, spec, weights, _size: create_packaged(spec, weights), _describe_packaged, lambda: ["packaged"]
)

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "vgg19": Family(
            lambda _name, spec, weights, _size: create_vgg19(spec, weights), describe_vgg19, lambda: ["vgg19"]
        ),
        "packaged": _PACKAGED,
        "efficientnet_lite0": _PACKAGED._replace(names=list),
        AUTO: Family(_create_auto, None, list),
        "diffusers_rae": Family(lambda _name, spec, weights, _size: create_rae_encoder(spec, weights), None, list),
        "keras_vgg19": Family(lambda _name, spec, weights, _size: create_keras_vgg19(spec, weights), None, list),
        TIMM_PREFIX: Family(_create_timm, _describe_timm, _timm_names),
    }
)
"""Families by the name of their backbone; timm's by the prefix of theirs."""

FAMILY_NAMES = tuple(name if name != TIMM_PREFIX else "timm:NAME" for name in FAMILIES)
"""The forms that a backbone's name can take, for messages."""
