"""torchvision's VGG19, cut at any of its 21 nodes."""

from collections import OrderedDict
from os import PathLike

from torch import Tensor, nn

from transfervae.backbones.frozen import FrozenBackbone, Source
from transfervae.backbones.weights import fetch_weights, load_strictly, read_weights
from transfervae.errors import UnknownNameError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

CONVOLUTIONS = (2, 2, 4, 4, 4)
CHANNELS = (64, 128, 256, 512, 512)

DEFAULT_NODE = "block5_pool"
NODES = tuple(
    node
    for block, count in enumerate(CONVOLUTIONS, start=1)
    for node in (*(f"block{block}_conv{i}" for i in range(1, count + 1)), f"block{block}_pool")
)
"""The places where VGG19 can be read, in order; a convolution is read after its ReLU."""


def create_vgg19(node: str | int | None, weights: str | PathLike[str] | None) -> FrozenBackbone:
    """Create VGG19 up to a node (Simonyan & Zisserman 2015); options as in `create_backbone`."""
    node = DEFAULT_NODE if node is None else node
    if node not in NODES:
        raise UnknownNameError("node of vgg19", node, NODES)
    network = _build(NODES.index(str(node)) + 1)
    if weights is not None:
        _load(network, weights)
    return FrozenBackbone(
        network,
        Source(
            "vgg19",
            str(node),
            None if weights is None else str(weights),
            license="bsd-3-clause" if weights == "default" else None,
        ),
        out_channels=CHANNELS[int(str(node)[5]) - 1],
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )


def fetch_vgg19_weights() -> dict[str, Tensor]:
    """Give torchvision's ImageNet weights of the whole VGG19, from the cache or the network.

    Raises:
        WeightsUnavailableError: If they are in neither.
    """
    from torchvision.models import VGG19_Weights

    return fetch_weights(VGG19_Weights.IMAGENET1K_V1.url, owner="VGG19")


def _build(nodes: int) -> nn.Sequential:
    """The first so many nodes, their layers named by torchvision's indices."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    before = 3
    for node in NODES[:nodes]:
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


def _load(network: nn.Sequential, weights: str | PathLike[str]) -> None:
    state = fetch_vgg19_weights() if weights == "default" else read_weights(weights)
    kept = {name.removeprefix("features."): tensor for name, tensor in state.items() if not _is_past(network, name)}
    load_strictly(network, kept, owner="VGG19")


def _is_past(network: nn.Sequential, name: str) -> bool:
    """Whether a tensor of the whole VGG19 belongs to a layer that was not built."""
    part, _, rest = name.partition(".")
    index = rest.partition(".")[0]
    return part == "classifier" or (part == "features" and index.isdigit() and int(index) >= len(network))
