"""timm's networks as backbones, read at a stage."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from transfervae.backbones.frozen import FrozenBackbone, Source
from transfervae.backbones.weights import describe_misfits, read_weights, require_reachable
from transfervae.errors import UnknownNameError, WeightsMismatchError, WeightsUnavailableError
from transfervae.shapes import Features, Images

HUB_FILES = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors")


FEATURES = MappingProxyType({"features_only": True, "feature_cls": "getter"})
"""The way to ask for features that gives channels first for every network, and drops the layers past the stage."""


class StageFeatures(nn.Module):
    """One stage of a timm network."""

    def __init__(self, network: nn.Module) -> None:
        """Wrap a network.

        Args:
            network: timm's, with one output index.
        """
        super().__init__()
        self.network = network

    def forward(self, images: Images) -> Features:
        """Map normalised images to the stage's features, `[b, c, h, w]`."""
        features: Tensor = self.network(images)[0]
        return features


def create_timm(
    name: str,
    node: str | int | None,
    weights: str | PathLike[str] | None,
    *,
    convert: Callable[[dict[str, Tensor], list[str]], dict[str, Tensor]] | None = None,
    source_name: str | None = None,
) -> FrozenBackbone:
    """Create a network of timm; options as in `create_backbone`.

    Args:
        name: timm's name, with or without a pretrained tag.
        node: Stage index; the last if None.
        weights: "default", a path, or None.
        convert: Renames the tensors of a weights file, given the names that timm uses, in order.
        source_name: What the backbone is called, "timm:NAME" if None.

    Returns:
        The frozen backbone.
    """
    timm = import_module("timm")
    if not is_timm_name(name):
        raise UnknownNameError("timm network", name, timm.list_models(), hint="timm.list_models() names all.")
    stage = _stage_index(name, -1 if node is None else node)
    config = timm.get_pretrained_cfg(name)
    options: dict[str, Any] = {**FEATURES, "out_indices": (stage,)}
    if weights == "default" and convert is None:
        _require_weights(name, config)
        options["pretrained"] = True
    elif weights is not None:
        state = read_weights(weights)
        if convert is not None:
            state = convert(state, list(timm.create_model(name).state_dict()))
        _check_fit(name, state, config)
        options |= {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": state}}
    network = _create_quietly(name, options)
    preprocessing = network.pretrained_cfg
    return FrozenBackbone(
        StageFeatures(network),
        Source(
            source_name or f"timm:{name}",
            stage,
            None if weights is None else str(weights) if convert is None else "default",
            license=_license(preprocessing) if weights == "default" or convert else None,
            native_size=tuple(preprocessing["input_size"][1:]),
        ),
        out_channels=network.feature_info.channels()[0],
        mean=preprocessing["mean"],
        std=preprocessing["std"],
    )


def is_timm_name(name: str) -> bool:
    """Whether timm has a network of this name, with or without a pretrained tag."""
    timm = import_module("timm")
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        return False
    if tag and name not in (known := timm.list_pretrained(f"{architecture}.*")):
        raise UnknownNameError(f"pretrained tag of timm:{architecture}", tag, [n.partition(".")[2] for n in known])
    return True


def _stage_index(name: str, node: str | int) -> int:
    """The stage counted from 0, checked against the stages that the network has."""
    with torch.device("meta"):
        network = _create_quietly(name, dict(FEATURES))
    stages = range(len(network.feature_info.info))
    try:
        return stages[int(node)]
    except (ValueError, IndexError):
        raise UnknownNameError(
            f"node of timm:{name}", node, stages, hint=f"Or {-len(stages)} to -1, from the end."
        ) from None


def _create_quietly(name: str, options: dict[str, Any]) -> Any:
    """Create a network, timm's failures as our errors."""
    with _silence("timm"):
        try:
            return _create_model(name, options)
        except (AttributeError, RuntimeError, AssertionError) as error:
            raise UnknownNameError(
                "feature network", f"timm:{name}", [], hint=f"timm gives no feature maps for it ({error})."
            ) from error
        except OSError as error:
            reason = str(error).splitlines()[0]
            raise WeightsUnavailableError(f"The weights of timm:{name} cannot be fetched: {reason}") from error


def _create_model(name: str, options: dict[str, Any]) -> Any:
    timm = import_module("timm")
    try:
        return timm.create_model(name, **options)
    except TypeError:  # a few networks choose their way to give features themselves
        return timm.create_model(name, **{key: value for key, value in options.items() if key != "feature_cls"})


def _check_fit(name: str, state: dict[str, Tensor], config: Any) -> None:
    """Load the weights into the whole network but its classifier, where timm reports every misfit."""
    timm = import_module("timm")
    classifiers = (config.classifier,) if isinstance(config.classifier, str) else tuple(config.classifier or ())
    trunk = {key: tensor for key, tensor in state.items() if not key.startswith(tuple(f"{c}." for c in classifiers))}
    overlay = {"state_dict": trunk, "num_classes": 0}
    with _silence("timm"):
        try:
            timm.create_model(name, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay)
        except (RuntimeError, KeyError) as error:
            misfits = [line.strip().rstrip(".") for line in str(error).splitlines()[1:]] or [str(error)]
            raise WeightsMismatchError(describe_misfits(f"timm:{name}", _split_names(misfits))) from error


def _split_names(misfits: list[str]) -> list[str]:
    """Turn torch's "Missing key(s) in state_dict: "a", "b"" into one entry a name."""
    entries = []
    for line in misfits:
        kind, separator, names = line.partition(" key(s) in state_dict: ")
        if separator:
            entries += [name.strip(' "') + _MISFIT_WORDS[kind] for name in names.split(",")]
        else:
            entries.append(line)
    return entries


_MISFIT_WORDS = {"Missing": " is missing", "Unexpected": " is not expected"}


def _require_weights(name: str, config: Any) -> None:
    """Make sure that default weights exist, and are cached or within reach."""
    if config is None or not (config.hf_hub_id or config.url):
        raise WeightsUnavailableError(f"timm publishes no weights for {name!r}; give weights=PATH or weights=None.")
    owner = f"timm:{name}"
    if not config.hf_hub_id:
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        file = Path(config.url).name
        if not (folder / file).exists():
            require_reachable(config.url, owner=owner, file=file, folder=folder)
        return
    hub = import_module("huggingface_hub")
    files = (config.hf_hub_filename,) if config.hf_hub_filename else HUB_FILES
    if any(isinstance(hub.try_to_load_from_cache(config.hf_hub_id, file), str) for file in files):
        return
    folder = Path(hub.constants.HF_HUB_CACHE) / f"models--{config.hf_hub_id.replace('/', '--')}"
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    require_reachable(f"{endpoint}/{config.hf_hub_id}", owner=owner, file=files[0], folder=folder)


def _license(preprocessing: dict[str, Any]) -> str:
    return str(preprocessing.get("license") or "unknown")


@contextmanager
def _silence(logger_name: str) -> Iterator[None]:
    """Keep a library's remarks about what we ask of it on purpose off the screen."""
    logger = logging.getLogger(logger_name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
