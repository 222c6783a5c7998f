"""timm's networks as backbones, read at stages, transformer blocks or named modules."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from transfervae.backbones._hooks import ModuleFeatures
from transfervae.backbones._weights import describe_misfits, read_weights, require_reachable
from transfervae.backbones.feature_spec import FeatureSpec, Node
from transfervae.backbones.frozen import NETWORK_ERRORS, FrozenBackbone, Provenance, first_line
from transfervae.backbones.licenses import warn_of_license
from transfervae.errors import (
    InvalidOptionError,
    TransferVAEError,
    UnknownNameError,
    UnsupportedBackboneError,
    WeightsMismatchError,
    WeightsUnavailableError,
)
from transfervae.shapes import Features, Images

HUB_FILES = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors")

Size = tuple[int, int]


class StageFeatures(nn.Module):
    """Stages or transformer blocks of a timm network, fused to one map; layers past the last of them are dropped.

    Attributes:
        network: timm's.
        spec: Stage indices counted from 0, and how they are fused.
    """

    def __init__(self, network: Any, spec: FeatureSpec) -> None:
        """Cut a network.

        Args:
            network: timm's; it is changed in place.
            spec: Stage indices that exist.
        """
        super().__init__()
        self.network = network
        self.spec = spec
        self.stages = sorted(int(node) for node in spec.nodes)
        self.widths = _widths(network, self.stages, norm=spec.norm)
        network.prune_intermediate_layers(list(self.stages), prune_norm=not spec.norm)

    def forward(self, images: Images) -> Features:
        """Map normalised images to the fused features, `[b, c, h, w]`.

        Raises:
            ValueError: If the network would squash the images to the size that it was made for, or lays its tokens out
                on a grid that is not theirs.
        """
        return self.spec.combine(self.maps(images))

    def maps(self, images: Images) -> list[Tensor]:
        """The features of each node, `[b, c, h, w]` each; images and errors as in `forward`."""
        network: Any = self.network
        if hasattr(network, "img_size_scaled") and tuple(images.shape[-2:]) != tuple(network.img_size):
            raise ValueError("it would resize them to {}x{}".format(*network.img_size))
        maps = network.forward_intermediates(
            images, indices=self.stages, norm=self.spec.norm, output_fmt="NCHW", intermediates_only=True
        )
        if [features.shape[1] for features in maps] != self.widths:
            raise ValueError("its tokens do not fill the grid")
        by_stage = dict(zip(self.stages, maps, strict=True))
        return [by_stage[int(node)] for node in self.spec.nodes]


def create_timm(
    name: str,
    spec: FeatureSpec,
    weights: str | PathLike[str] | None,
    *,
    image_size: Size | None = None,
    convert: Callable[[dict[str, Tensor], list[str]], dict[str, Tensor]] | None = None,
    source_name: str | None = None,
) -> FrozenBackbone:
    """Create a network of timm; options as in `create_backbone`.

    Args:
        name: timm's name, with or without a pretrained tag.
        spec: Where and how it is read.
        weights: "default", a path, or None.
        image_size: The size that a network is made for whose layers depend on it.
        convert: Renames the tensors of a weights file, given the names that timm uses, in order.
        source_name: What the backbone is called, "timm:NAME" if None.

    Returns:
        The frozen backbone.
    """
    check_timm_name(name)
    owner = source_name or f"timm:{name}"
    preprocessing = import_module("timm").get_pretrained_cfg(name).to_dict()
    with _explaining(name):
        loading: dict[str, Any] = {}
        if weights is not None:
            whole, trunk = _tensor_names(name, spec, owner)
            loading = _loading_options(name, weights, convert, whole=whole, trunk=trunk)
        network, made_for = _create(name, loading, image_size)
        spec = _resolve(network, spec, owner)
    published = weights == "default" or convert is not None
    license_name = str(preprocessing.get("license") or "unknown") if published and weights is not None else None
    warn_of_license(owner, license_name)
    return FrozenBackbone(
        _wrap(network, spec, owner),
        Provenance(
            owner,
            spec.node,
            None if weights is None else "default" if published else str(weights),
            options=spec.options | ({"image_size": list(made_for)} if made_for else {}),
            license=license_name,
            native_size=native_size(name),
        ),
        mean=preprocessing["mean"],
        std=preprocessing["std"],
        takes_if_made_for=partial(_takes_if_made_for, name, spec),
    )


def check_timm_name(name: str) -> None:
    """Make sure that timm has a network of this name, with or without a pretrained tag.

    Raises:
        UnknownNameError: If not.
    """
    if not is_timm_name(name):
        timm = import_module("timm")
        raise UnknownNameError("timm network", name, timm.list_models(), hint="timm.list_models() names all.")


def is_timm_name(name: str) -> bool:
    """Whether timm has a network of this name, with or without a pretrained tag.

    Raises:
        UnknownNameError: If it has the network, but not the tag.
    """
    timm = import_module("timm")
    architecture, dot, tag = name.partition(".")
    if not timm.is_model(architecture):
        return False
    if dot and name not in (known := timm.list_pretrained(f"{architecture}.*")):
        raise UnknownNameError(f"pretrained tag of timm:{architecture}", tag, [n.partition(".")[2] for n in known])
    return True


def native_size(name: str) -> Size:
    """The image size that a network of timm was trained at, (height, width)."""
    _, height, width = import_module("timm").get_pretrained_cfg(name).input_size
    return height, width


def create_network(name: str, image_size: Size) -> nn.Module:
    """Create a network of timm with random weights, without its classifier, for images of a size, in evaluation mode.

    Args:
        name: timm's name.
        image_size: (height, width).
    """
    network: nn.Module = _create(name, {}, image_size)[0]
    return network.eval()


def stage_count(network: Any) -> int:
    """Number of stages or transformer blocks that a network of timm can be read at."""
    return len(network.feature_info)


def _tensor_names(name: str, spec: FeatureSpec, owner: str) -> tuple[dict[str, torch.dtype], set[str]]:
    """A network's tensors by name, in order, and the names of those that are left without its classifier.

    Nodes are looked for on the way, before weights are read or fetched.
    """
    timm = import_module("timm")
    with torch.device("meta"), _silence("timm"):
        network = timm.create_model(name)
        whole = {name: value.dtype for name, value in network.state_dict().items()}
        if hasattr(network, "reset_classifier"):  # a few have no classifier
            network.reset_classifier(0)
        _resolve(network, spec, owner)
        return whole, set(network.state_dict())


def _loading_options(
    name: str,
    weights: str | PathLike[str],
    convert: Callable[[dict[str, Tensor], list[str]], dict[str, Tensor]] | None,
    *,
    whole: dict[str, torch.dtype],
    trunk: set[str],
) -> dict[str, Any]:
    """What makes timm load weights: its own published ones, or all of a file's but the classifier's, strictly."""
    config = import_module("timm").get_pretrained_cfg(name)
    if weights == "default" and convert is None:
        _require_weights(name, config)
        return {"pretrained": True}
    state = read_weights(weights)
    if convert is not None:
        state = convert(state, list(whole))
    classifiers = (config.classifier,) if isinstance(config.classifier, str) else tuple(config.classifier or ())
    past = tuple(f"{classifier}." for classifier in classifiers)
    dropped = set(whole) - trunk  # a few heads hold more than the classifier
    kept = {key: tensor for key, tensor in state.items() if key not in dropped and not key.startswith(past)}
    if not kept:  # timm would take it for no weights at all, and fetch its own
        raise WeightsMismatchError(f"{str(weights)!r} holds no tensor of timm:{name} but its classifier's.")
    for key, tensor in kept.items():
        if key in whole and whole[key].is_floating_point != tensor.is_floating_point():
            misfit = f"{key} is {tensor.dtype} instead of {whole[key]}"
            raise WeightsMismatchError(describe_misfits(f"timm:{name}", [misfit]))
    return {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": kept, "num_classes": 0}}


def _create(name: str, loading: dict[str, Any], image_size: Size | None) -> tuple[Any, Size | None]:
    """Create a network that takes as many image sizes as its code allows, and the one size that it was made for."""
    native = native_size(name)
    if image_size in (None, native):
        network = _try_to_create(name, loading, {"dynamic_img_size": True})
        if network is not None and _is_divided(network, native):
            return network, None
        return _try_to_create(name, loading, {}), None
    for options, made_for in (({"dynamic_img_size": True}, None), ({"img_size": image_size}, image_size), ({}, None)):
        try:
            network = _try_to_create(name, loading, options)
        except NETWORK_ERRORS as error:
            if isinstance(error, TransferVAEError) or not options:
                raise
            continue  # some constructors are stricter than the network that they make for its own size
        if network is not None:
            return network, made_for
    raise UnsupportedBackboneError(f"timm:{name} cannot be created.")


@contextmanager
def _explaining(name: str) -> Iterator[None]:
    """Turn what timm's constructors raise into our error."""
    try:
        yield
    except TransferVAEError:
        raise
    except NETWORK_ERRORS as error:
        raise UnsupportedBackboneError(f"timm:{name} cannot serve: {first_line(error)}.") from error


def _try_to_create(name: str, loading: dict[str, Any], options: dict[str, Any]) -> Any:
    """Create a network, timm's failures as our errors; None if it does not know the options."""
    timm = import_module("timm")
    with _silence("timm"):
        try:
            return timm.create_model(name, num_classes=0, **loading, **options)
        except TypeError as error:
            if any(option in str(error) for option in options):
                return None
            raise
        except OSError as error:
            reason = str(error).splitlines()[0]
            raise WeightsUnavailableError(f"The weights of timm:{name} cannot be fetched: {reason}") from error
        except (RuntimeError, KeyError) as error:
            if not loading:
                raise
            misfits = [line.strip().rstrip(".") for line in str(error).splitlines()[1:]] or [str(error)]
            owner = f"timm:{name}"
            if "img_size" in options:
                owner += " created for {}x{} images".format(*options["img_size"])
            raise WeightsMismatchError(describe_misfits(owner, _split_names(misfits))) from error


def _is_divided(network: Any, native: Size) -> bool:
    """Whether the patches of a network divide its own image size: a few cut the last pixels off instead."""
    patch = getattr(getattr(network, "patch_embed", None), "patch_size", (1, 1))
    return all(side % step == 0 for side, step in zip(native, patch, strict=True))


def _resolve(network: Any, spec: FeatureSpec, owner: str) -> FeatureSpec:
    """Replace stage indices from the end, and check that every node exists and that the nodes can be fused."""
    if not (hasattr(network, "forward_intermediates") and hasattr(network, "prune_intermediate_layers")):
        raise UnsupportedBackboneError(f"{owner} cannot serve: timm gives no intermediate features of it.")
    if all(_is_module_name(node) for node in spec.nodes):
        _check_modules(network, spec, owner)
        return spec
    stages = range(stage_count(network))
    nodes = tuple(_stage(node, stages, owner) for node in spec.nodes)
    resolved = FeatureSpec.parse(nodes, fuse=spec.fuse, grid=spec.grid, norm=spec.norm)
    resolved.check_widths(_widths(network, nodes, norm=spec.norm))
    return resolved


def _widths(network: Any, stages: Sequence[int], *, norm: bool) -> list[int]:
    """Channels at stages, as timm declares them."""
    info = [network.feature_info[stage] for stage in stages]
    return [entry.get("num_chs_norm", entry["num_chs"]) if norm else entry["num_chs"] for entry in info]


def _stage(node: Node, stages: Sequence[int], owner: str) -> int:
    if _is_module_name(node):
        raise InvalidOptionError(f"node mixes stage indices and the module name {node!r}; use one kind.")
    try:
        return stages[int(node)]
    except IndexError:
        raise UnknownNameError(
            f"node of {owner}", node, stages, hint=f"Or {-len(stages)} to -1, from the end; or a module's name."
        ) from None


def _is_module_name(node: Node) -> bool:
    return isinstance(node, str) and not node.removeprefix("-").isdecimal()


def _check_modules(network: nn.Module, spec: FeatureSpec, owner: str) -> None:
    if spec.norm:
        raise InvalidOptionError("norm belongs to stage indices; with module names, name the normalisation itself.")
    names = [name for name, _ in network.named_modules() if name]
    for node in spec.nodes:
        if node not in names:
            stages = range(stage_count(network))
            hint = f"Known are stages {stages[0]} to {stages[-1]}, and the names of modules, such as {names[-1]!r}."
            raise UnknownNameError(f"node of {owner}", node, names, hint=hint)


def _wrap(network: nn.Module, spec: FeatureSpec, owner: str) -> nn.Module:
    if _is_module_name(spec.nodes[0]):
        return ModuleFeatures(network, spec)
    try:
        return StageFeatures(network, spec)
    except NETWORK_ERRORS as error:
        raise UnsupportedBackboneError(f"{owner} cannot be read at {spec.node}: {error}") from error


def _takes_if_made_for(name: str, spec: FeatureSpec, size: Size) -> bool:
    """Whether a network made for this size takes it."""
    try:
        with torch.device("meta"), torch.no_grad():
            network = _wrap(_create(name, {}, size)[0], spec, name).eval()
            network(torch.zeros(1, 3, *size))
    except NETWORK_ERRORS:
        return False
    return True


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
