"""torchvision's VGG19, cut at any of its 21 nodes."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from itertools import accumulate
from os import PathLike
from types import MappingProxyType

from torch import Tensor, nn

from transfervae.backbones._hooks import ModuleFeatures
from transfervae.backbones._token_layout import TokenLayout
from transfervae.backbones._weights import fetch_weights, load_strictly, read_weights
from transfervae.backbones.feature_spec import FeatureSpec
from transfervae.backbones.frozen import FrozenBackbone, Provenance
from transfervae.errors import UnknownNameError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

CONVOLUTIONS = (2, 2, 4, 4, 4)
CHANNELS = (64, 128, 256, 512, 512)

DEFAULT_NODE = "block5_pool"
LICENSE = "bsd-3-clause"
NODES = tuple(
    node
    for block, count in enumerate(CONVOLUTIONS, start=1)
    for node in (*(f"block{block}_conv{i}" for i in range(1, count + 1)), f"block{block}_pool")
)
"""The places where VGG19 can be read, in order; a convolution is read after its ReLU."""

LAYERS: Mapping[str, str] = MappingProxyType(
    dict(zip(NODES, map(str, (n - 1 for n in accumulate(1 if "pool" in node else 2 for node in NODES))), strict=True))
)
"""The layer that gives each node, by torchvision's index."""


def create_vgg19(spec: FeatureSpec, weights: str | PathLike[str] | None) -> FrozenBackbone:
    """Create VGG19 up to its last node that is read (Simonyan & Zisserman 2015); options as in `create_backbone`."""
    spec = resolve_nodes(spec, "vgg19")
    network = build_vgg19(spec)
    if weights is not None:
        _load(network, weights)
    return FrozenBackbone(
        read_vgg19(network, spec),
        Provenance(
            "vgg19",
            spec.node,
            None if weights is None else str(weights),
            options=spec.options,
            license=LICENSE if weights == "default" else None,
        ),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )


def resolve_nodes(spec: FeatureSpec, owner: str) -> FeatureSpec:
    """Check that nodes are those of VGG19.

    Raises:
        UnknownNameError: If not.
        InvalidOptionError: If a final normalisation is asked for.
    """
    spec = spec.or_at(DEFAULT_NODE).without_norm(owner)
    for node in spec.nodes:
        if node not in NODES:
            raise UnknownNameError(f"node of {owner}", node, NODES)
    spec.check_widths([CHANNELS[int(str(node)[5]) - 1] for node in spec.nodes])
    return spec


def fetch_vgg19_weights() -> dict[str, Tensor]:
    """Give torchvision's ImageNet weights of the whole VGG19, from the cache or the network.

    Raises:
        WeightsUnavailableError: If they are in neither.
    """
    from torchvision.models import VGG19_Weights

    return fetch_weights(VGG19_Weights.IMAGENET1K_V1.url, owner="VGG19")


def build_vgg19(spec: FeatureSpec) -> nn.Sequential:
    """VGG19 up to its last node that is read, its layers named by torchvision's indices."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    before = 3
    for node in NODES[: max(NODES.index(str(node)) for node in spec.nodes) + 1]:
        if node.endswith("pool"):
            layers[str(len(layers))] = nn.MaxPool2d(kernel_size=2, stride=2)
            continue
        channels = CHANNELS[int(node[5]) - 1]
        convolution = nn.Conv2d(before, channels, kernel_size=3, padding=1)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
        layers[str(len(layers))] = convolution
        layers[str(len(layers))] = nn.ReLU(inplace=True)
        before = channels
    return nn.Sequential(layers)


def read_vgg19(network: nn.Sequential, spec: FeatureSpec) -> nn.Module:
    """The network itself where it ends at the only node, else one that fuses its nodes."""
    if len(spec.nodes) == 1 and spec.grid is None:
        return network
    layers = replace(spec, nodes=tuple(LAYERS[str(node)] for node in spec.nodes))
    return ModuleFeatures(network, layers, layout=TokenLayout(channels_last=False, is_certain=True))


def _load(network: nn.Sequential, weights: str | PathLike[str]) -> None:
    state = fetch_vgg19_weights() if weights == "default" else read_weights(weights)
    kept = {name.removeprefix("features."): tensor for name, tensor in state.items() if not _is_past(network, name)}
    load_strictly(network, kept, owner="VGG19")


def _is_past(network: nn.Sequential, name: str) -> bool:
    """Whether a tensor of the whole VGG19 belongs to a layer that was not built."""
    part, _, rest = name.partition(".")
    index = rest.partition(".")[0]
    return part == "classifier" or (part == "features" and index.isdigit() and int(index) >= len(network))
