"""VGG19 with Keras' weights: the network of `vgg19`, trained by its authors, on BGR images that are not rescaled."""

from collections.abc import Mapping
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from transfervae.backbones._weights import check_fit
from transfervae.backbones.feature_spec import FeatureSpec
from transfervae.backbones.frozen import FrozenBackbone, Provenance
from transfervae.backbones.vgg import LAYERS, build_vgg19, read_vgg19, resolve_nodes
from transfervae.errors import CheckpointError, MissingExtraError, WeightsUnavailableError

NAME = "keras_vgg19"
URL = (
    "https://storage.googleapis.com/tensorflow/keras-applications/vgg19/"
    "vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5"
)

MEAN = (123.68 / 255, 116.779 / 255, 103.939 / 255)
STD = (1 / 255, 1 / 255, 1 / 255)
"""RGB in [0, 1] to what Keras' "caffe" preprocessing gives, but for the order of the channels."""

CLASSIFIER = ("fc1", "fc2", "predictions")
"""Layers that are passed over unread: most of a whole file's size, and never a node."""

UNREADABLE = (OSError, RuntimeError, KeyError, ValueError, TypeError)
"""What h5py raises for files that are damaged or hold something else."""


def create_keras_vgg19(spec: FeatureSpec, weights: str | PathLike[str] | None) -> FrozenBackbone:
    """Create VGG19 with the weights of a Keras HDF5 file; options as in `create_backbone`.

    Keras gives the network BGR images. Here they stay RGB, and the first convolution's input channels are turned round
    instead, which is the same.
    """
    if weights == "default":
        raise WeightsUnavailableError(f"{NAME} has no weights of its own: download {URL} and give its path (weights).")
    spec = resolve_nodes(spec, NAME)
    network = build_vgg19(spec)
    if weights is not None:
        _load(network, read_keras_layers(weights))
    provenance = Provenance(NAME, spec.node, None if weights is None else str(weights), options=spec.options)
    return FrozenBackbone(read_vgg19(network, spec), provenance, mean=MEAN, std=STD)


def read_keras_layers(path: str | PathLike[str]) -> dict[str, Tensor]:
    """Read the layers' tensors from a file in Keras' first HDF5 layout, of weights alone or of a whole model.

    Args:
        path: The file: a published one, or what `model.save("name.h5")` wrote.

    Returns:
        Tensors by "layer/kernel" and "layer/bias", as the file holds them: kernels are `[h, w, in, out]`. VGG19's
        classifier is left out.

    Raises:
        CheckpointError: If the file is missing, damaged, no HDF5, or in another layout.
        MissingExtraError: Without the extra `keras`.
    """
    try:
        h5py = import_module("h5py")
    except ImportError:
        raise MissingExtraError("Reading Keras weights", "keras") from None
    if not Path(path).is_file():
        raise CheckpointError(f"There is no weights file {str(path)!r}.")
    try:
        with h5py.File(path, "r") as file:
            tensors = _read_groups(file.get("model_weights", file), h5py)
            is_later_layout = not tensors and "layers" in file
    except UNREADABLE as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise CheckpointError(f"{str(path)!r} cannot be read as HDF5: {reason}") from error
    if is_later_layout:
        raise CheckpointError(
            f"{str(path)!r} is in Keras 3's own layout, which names no layers; write it with model.save('name.h5')."
        )
    return tensors


def _read_groups(root: Any, h5py: Any) -> dict[str, Tensor]:
    """Every layer's kernel and bias, told apart by their axes: their names changed from version to version."""
    tensors: dict[str, Tensor] = {}

    def keep(layer: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            kind = "bias" if item.ndim == 1 else "kernel"
            tensors[f"{layer}/{kind}"] = torch.from_numpy(item[()]).float()

    for name in root.attrs.get("layer_names", ()):
        layer = name.decode() if isinstance(name, bytes) else str(name)
        if layer not in CLASSIFIER:
            root[layer].visititems(lambda _, item, layer=layer: keep(layer, item))
    return tensors


def _load(network: nn.Sequential, tensors: Mapping[str, Tensor]) -> None:
    """Load all or nothing; misfits are named as in the file."""
    own = {key: value for node in LAYERS for key, value in _own_tensors(network, node).items()}
    past = {f"{node}/{kind}" for node in LAYERS for kind in ("kernel", "bias")} - own.keys()
    kept = {name: tensor for name, tensor in tensors.items() if name not in past}
    check_fit(own, kept, owner=NAME)
    kept["block1_conv1/kernel"] = kept["block1_conv1/kernel"].flip(2)  # from blue, green, red
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(kept[name])


def _own_tensors(network: nn.Sequential, node: str) -> dict[str, Tensor]:
    """The parameters of a convolution, laid out and named as in the file; none of a pool, or of what was not built."""
    index = int(LAYERS[node]) - 1  # of the convolution before its ReLU
    if node.endswith("pool") or index >= len(network):
        return {}
    state = network[index].state_dict()
    return {f"{node}/kernel": state["weight"].permute(2, 3, 1, 0), f"{node}/bias": state["bias"]}
