import pytest
import torch
from torch import Tensor, nn

from transfervae import FrozenBackbone
from transfervae.backbones.frozen import Provenance
from transfervae.errors import ImageSizeError, InvalidImageError


def make(*, node: int = 0, scale: float = 1.0, mean: float = 0.5, std: float = 0.25) -> FrozenBackbone:
    network = nn.Conv2d(3, 3, kernel_size=2, bias=False)
    nn.init.constant_(network.weight, scale)
    return FrozenBackbone(network, Provenance("own", node, None), mean=(mean,) * 3, std=(std,) * 3)


class Stubborn(nn.Module):
    def forward(self, _: Tensor) -> Tensor:
        raise RuntimeError("no size will do\nsecond line")


def test_images_are_normalised_once_inside() -> None:
    backbone = make(mean=0.3, std=0.2)
    images = torch.rand(2, 3, 4, 4)
    torch.testing.assert_close(backbone(images), backbone.network((images - 0.3) / 0.2))


def test_fingerprint_is_64_hexadecimal_digits() -> None:
    assert len(bytes.fromhex(make().fingerprint)) == 32


@pytest.mark.parametrize("change", [{"node": 1}, {"scale": 1.0001}, {"mean": 0.4}, {"std": 0.2}])
def test_fingerprint_differs_with_node_weights_and_preprocessing(change: dict[str, float]) -> None:
    assert make(**change).fingerprint != make().fingerprint  # type: ignore[arg-type]


def test_fingerprint_depends_on_the_names_of_the_tensors() -> None:
    def wrapped(name: str) -> FrozenBackbone:
        network = nn.Sequential()
        network.add_module(name, nn.Conv2d(3, 3, kernel_size=1, bias=False))
        nn.init.ones_(network.get_parameter(f"{name}.weight"))
        return FrozenBackbone(network, Provenance("own", 0, None), mean=(0.5,) * 3, std=(0.2,) * 3)

    assert wrapped("first").fingerprint != wrapped("second").fingerprint


def test_the_network_is_probed_once_per_size() -> None:
    backbone = make()
    calls = []
    backbone.network.register_forward_hook(lambda *_: calls.append(1))
    assert [backbone.feature_shape(4), backbone.feature_shape((4, 4)), backbone.feature_shape((4, 7))] == [
        (3, 3, 3),
        (3, 3, 3),
        (3, 3, 6),
    ]
    assert len(calls) == 2


def test_a_network_that_takes_no_size_says_so_with_its_reason() -> None:
    backbone = FrozenBackbone(Stubborn(), Provenance("own", 0, None), mean=(0.5,) * 3, std=(0.2,) * 3)
    with pytest.raises(ImageSizeError, match=r"no size near it works \(no size will do\)\.$"):
        backbone.feature_shape(8)


def test_the_native_size_is_a_candidate() -> None:
    class Picky(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            if images.shape[-2:] != (301, 303):
                raise ValueError("only 301x303")
            return images

    provenance = Provenance("own", 0, None, native_size=(301, 303))
    backbone = FrozenBackbone(Picky(), provenance, mean=(0.5,) * 3, std=(0.2,) * 3)
    with pytest.raises(ImageSizeError, match="takes: 301x303 "):
        backbone.feature_shape(300)


@pytest.mark.parametrize("training", [False, True])
def test_a_wrong_range_is_refused_in_every_batch(*, training: bool) -> None:
    backbone = make().train(training)
    backbone(torch.rand(1, 3, 4, 4))
    for _ in range(2):
        with pytest.raises(InvalidImageError, match="divide"):
            backbone(255 * torch.ones(1, 3, 4, 4))


def test_config_holds_what_finds_the_backbone_again() -> None:
    backbone = make(node=3)
    assert backbone.config == {"name": "own", "node": 3, "weights": None, "fingerprint": backbone.fingerprint}


def test_the_search_for_sizes_stops_once_two_are_found() -> None:
    tried = []

    class Strided(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            tried.append(tuple(images.shape[-2:]))
            if images.shape[-2] % 16 or images.shape[-1] % 16:
                raise ValueError("multiples of 16")
            return images

    backbone = FrozenBackbone(Strided(), Provenance("own", 0, None), mean=(0.5,) * 3, std=(0.2,) * 3)
    with pytest.raises(ImageSizeError) as caught:
        backbone.feature_shape((31, 40))
    assert "takes: 32x32, 32x48 (" in str(caught.value)
    assert tried[-1] == (32, 48)
