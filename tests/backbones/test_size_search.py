import re
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from transfervae import Spec, build_vae, create_backbone
from transfervae.backbones._size_search import MULTIPLES, name_sizes, nearest_sizes
from transfervae.errors import ImageSizeError

SIDES = st.integers(1, 400)

Size = tuple[int, int]


def distance(size: Size, other: Size) -> int:
    return abs(size[0] - other[0]) + abs(size[1] - other[1])


def multiples_of(step: int) -> Callable[[Size], bool]:
    return lambda size: size[0] % step == 0 and size[1] % step == 0


@given(height=SIDES, width=SIDES, step=st.sampled_from(MULTIPLES))
def test_the_nearest_multiples_are_found(height: int, width: int, step: int) -> None:
    takes, size = multiples_of(step), (height, width)
    if takes(size):
        height += 1
        size = (height, width)
    found = nearest_sizes(size, takes, native=(10 * step, 10 * step), tries=8)
    sides = [[side for side in range(step, 500, step) if abs(side - given) <= 2 * step] for given in size]
    oracle = sorted(distance(size, (h, w)) for h in sides[0] for w in sides[1])
    assert [distance(size, other) for other in found] == oracle[:2]
    assert all(takes(other) for other in found)
    assert len(set(found)) == 2


@given(height=SIDES, width=SIDES)
def test_squares_are_found_for_networks_that_take_nothing_else(height: int, width: int) -> None:
    def takes(size: Size) -> bool:
        return size[0] == size[1] and size[0] % 16 == 0

    size = (height, width)
    if takes(size):
        size = (height + 1, width)
    found = nearest_sizes(size, takes, native=(224, 224), tries=8)
    assert found
    assert all(takes(other) for other in found)
    nearest = min(distance(size, (side, side)) for side in range(16, 500, 16))
    assert distance(size, found[0]) <= nearest + 32


@given(height=SIDES, width=SIDES, native=st.tuples(SIDES, SIDES))
def test_a_network_that_takes_one_size_names_it(height: int, width: int, native: Size) -> None:
    if (height, width) == native:
        height += 1
    assert nearest_sizes((height, width), lambda other: other == native, native=native, tries=2) == [native]


def test_none_is_named_where_none_works() -> None:
    assert nearest_sizes((30, 40), lambda _: False, native=(224, 224), tries=8) == []
    assert nearest_sizes((30, 40), lambda _: False, native=None, tries=8) == []
    assert name_sizes([]) == "none"
    assert name_sizes([(96, 128), (1, 2)]) == "96x128, 1x2"


def test_the_size_itself_is_not_asked_again_and_none_is_asked_twice() -> None:
    asked: list[Size] = []

    def refuse(size: Size) -> bool:
        asked.append(size)
        return False

    nearest_sizes((33, 64), refuse, native=(32, 64), tries=8)
    assert (33, 64) not in asked
    assert len(asked) == len(set(asked)) <= 1 + 8 * len(MULTIPLES)
    assert asked[-1] != (32, 64)


@pytest.mark.parametrize("name", ["test_vit", "test_vit2", "deit_tiny_patch16_224"])
@pytest.mark.parametrize("size", [(32, 80), (80, 48)])
def test_a_vit_takes_sizes_of_any_ratio_as_it_is(name: str, size: Size) -> None:
    backbone = create_backbone(f"timm:{name}", image_size=size, weights=None)
    assert backbone.feature_shape(size)[1:] == (size[0] // 16, size[1] // 16)
    assert "image_size" not in backbone.provenance.options
    assert backbone.fingerprint == create_backbone(f"timm:{name}", weights=None).fingerprint


def test_a_network_is_made_for_the_size_that_is_asked_for() -> None:
    backbone = create_backbone("timm:test_coatnet", image_size=(64, 96), weights=None)
    assert backbone.provenance.options == {"image_size": [64, 96]}
    assert backbone.feature_shape((64, 96))[1:] == (2, 3)
    assert create_backbone("timm:test_coatnet", image_size=160, weights=None).provenance.options == {}


def test_a_network_that_can_be_made_for_a_size_says_how() -> None:
    backbone = create_backbone("timm:test_coatnet", weights=None)
    with pytest.raises(
        ImageSizeError, match=r"cannot take 64x96 images; it can be created for them with image_size=\(64, 96\)"
    ):
        backbone.feature_shape((64, 96))


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize(
    ("name", "made_for", "size"),
    [
        ("test_vit", None, (33, 100)),
        ("eva02_tiny_patch14_224", None, (32, 64)),
        ("test_coatnet", None, (100, 100)),
        ("test_vit_relpos", None, (50, 60)),
        ("efficientformer_l1", None, (96, 96)),
        ("inception_v3", None, (40, 64)),
        ("test_vit", (33, 100), (33, 100)),
        ("test_coatnet", (70, 100), (70, 100)),
        ("test_maxvit", (50, 60), (50, 60)),
        ("convit_tiny", (64, 96), (64, 96)),
    ],
)
def test_the_sizes_that_a_message_names_do_work(name: str, made_for: Size | None, size: Size) -> None:
    with pytest.raises(ImageSizeError, match=f"{size[0]}x{size[1]} images; ") as caught:
        create_backbone(f"timm:{name}", image_size=made_for, weights=None).feature_shape(size)
    message = str(caught.value)
    taken, creatable = sizes_after("it takes: ", message), sizes_after("(?:created for|it can): ", message)
    if f"it can be created for them with image_size={size}" in message:
        creatable = [size]
    assert taken or creatable, message
    for other in taken:
        assert shape_at(name, made_for, other)
    for other in creatable:
        assert shape_at(name, other, other)


def sizes_after(words: str, message: str) -> list[Size]:
    listed = re.search(rf"{words}((?:\d+x\d+(?:, )?)+)", message)
    return [(int(h), int(w)) for h, w in re.findall(r"(\d+)x(\d+)", listed[1])] if listed else []


def shape_at(name: str, made_for: Size | None, size: Size) -> tuple[int, int, int]:
    backbone = create_backbone(f"timm:{name}", image_size=made_for, weights=None)
    shape = backbone.feature_shape(size)
    assert backbone(torch.rand(1, 3, *size)).shape == (1, *shape)
    return shape


def test_a_model_is_built_for_a_size_that_the_network_must_be_made_for() -> None:
    vae = build_vae(
        Spec("timm:test_maxvit", weights=None), image_size=(64, 96), latent_dim=3, decoder=Spec("resize", width=8)
    )
    assert vae(torch.rand(1, 3, 64, 96)).reconstruction.shape == (1, 3, 64, 96)
    assert vae.backbone.config["image_size"] == [64, 96]


@pytest.mark.usefixtures("without_shape_checks")
def test_a_network_that_would_squash_images_is_refused_them_and_made_for_their_size() -> None:
    with pytest.raises(ImageSizeError, match=r"created for them with image_size=.*it would resize them to 240x240"):
        create_backbone("timm:crossvit_tiny_240", weights=None).feature_shape((96, 192))
    made = create_backbone("timm:crossvit_tiny_240", image_size=(96, 192), weights=None)
    assert made.feature_shape((96, 192))[1:] == (5, 11)


def test_a_network_serves_sizes_that_only_its_constructor_refuses() -> None:
    name, size = "timm:xcit_nano_12_p16_224", (50, 60)
    backbone = create_backbone(name, image_size=size, weights=None)
    assert backbone.feature_shape(size) == create_backbone(name, weights=None).feature_shape(size)
