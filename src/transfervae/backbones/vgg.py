"""torchvision's VGG19, cut at any of its 21 nodes."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from itertools import accumulate
from os import PathLike
from types import MappingProxyType

from torch import Tensor, nn

from transfervae.backbones.frozen import FrozenBackbone, Source
from transfervae.backbones.layout import Layout
from transfervae.backbones.modules import ModuleFeatures
from transfervae.backbones.reading import Reading
from transfervae.backbones.weights import fetch_weights, load_strictly, read_weights
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


def create_vgg19(reading: Reading, weights: str | PathLike[str] | None) -> FrozenBackbone:
    """Create VGG19 up to its last node that is read (Simonyan & Zisserman 2015); options as in `create_backbone`."""
    reading = resolve_nodes(reading, "vgg19")
    network = build_vgg19(reading)
    if weights is not None:
        _load(network, weights)
    return FrozenBackbone(
        read_vgg19(network, reading),
        Source(
            "vgg19",
            reading.node,
            None if weights is None else str(weights),
            options=reading.options,
            license=LICENSE if weights == "default" else None,
        ),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )


def resolve_nodes(reading: Reading, owner: str) -> Reading:
    """Check that nodes are those of VGG19.

    Raises:
        UnknownNameError: If not.
        InvalidOptionError: If a final normalisation is asked for.
    """
    reading = reading.or_at(DEFAULT_NODE).without_norm(owner)
    for node in reading.nodes:
        if node not in NODES:
            raise UnknownNameError(f"node of {owner}", node, NODES)
    reading.check_widths([CHANNELS[int(str(node)[5]) - 1] for node in reading.nodes])
    return reading


def fetch_vgg19_weights() -> dict[str, Tensor]:
    """Give torchvision's ImageNet weights of the whole VGG19, from the cache or the network.

    Raises:
        WeightsUnavailableError: If they are in neither.
    """
    from torchvision.models import VGG19_Weights

    return fetch_weights(VGG19_Weights.IMAGENET1K_V1.url, owner="VGG19")


def build_vgg19(reading: Reading) -> nn.Sequential:
    """VGG19 up to its last node that is read, its layers named by torchvision's indices."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    before = 3
    for node in NODES[: max(NODES.index(str(node)) for node in reading.nodes) + 1]:
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


def read_vgg19(network: nn.Sequential, reading: Reading) -> nn.Module:
    """The network itself where it ends at the only node, else one that fuses its nodes."""
    if len(reading.nodes) == 1 and reading.grid is None:
        return network
    layers = replace(reading, nodes=tuple(LAYERS[str(node)] for node in reading.nodes))
    return ModuleFeatures(network, layers, layout=Layout(channels_last=False, is_certain=True))


def _load(network: nn.Sequential, weights: str | PathLike[str]) -> None:
    state = fetch_vgg19_weights() if weights == "default" else read_weights(weights)
    kept = {name.removeprefix("features."): tensor for name, tensor in state.items() if not _is_past(network, name)}
    load_strictly(network, kept, owner="VGG19")


def _is_past(network: nn.Sequential, name: str) -> bool:
    """Whether a tensor of the whole VGG19 belongs to a layer that was not built."""
    part, _, rest = name.partition(".")
    index = rest.partition(".")[0]
    return part == "classifier" or (part == "features" and index.isdigit() and int(index) >= len(network))
