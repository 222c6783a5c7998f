import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import interpolate

import transfervae as tv
from transfervae.backbones._token_layout import TokenLayout, as_map
from transfervae.errors import (
    FingerprintMismatchError,
    InvalidOptionError,
    ShapeError,
    TransferVAEError,
    UnknownNameError,
)

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
PATCH = 4
SIDES = st.integers(1, 12)
PREFIXES = st.sampled_from([0, 1, 5])

Image = tuple[int, int]


class Refusing(nn.Module):
    def forward(self, _: Tensor) -> Tensor:
        raise AssertionError("this layer is not to be run")


class Stages(nn.Module):
    """Layers that work in place after each stage, and one past them that refuses to be run."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.middle = nn.Conv2d(6, 6, 3, stride=2, padding=1)
        self.activation = nn.ReLU(inplace=True)
        self.wide = nn.Conv2d(6, 9, 3, stride=2, padding=1)
        self.tail = Refusing()

    def forward(self, images: Tensor) -> Tensor:
        rest: Tensor = self.tail(self.wide(self.activation(self.middle(self.stem(images)))))
        return rest


class ChannelsLast(nn.Module):
    def __init__(self, channels: int = 5) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, channels, PATCH, stride=PATCH)

    def forward(self, images: Tensor) -> Tensor:
        grid: Tensor = self.patches(images)
        return grid.permute(0, 2, 3, 1)


class Tokens(nn.Module):
    """Patches as tokens, behind prefix tokens as a class token or registers are."""

    def __init__(self, prefix: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 5, PATCH, stride=PATCH)
        self.prefix = nn.Parameter(torch.full((1, prefix, 5), -1e3))
        self.layers = nn.Sequential(nn.Identity(), Refusing())

    def forward(self, images: Tensor) -> Tensor:
        grid: Tensor = self.patches(images)
        tokens = torch.cat([self.prefix.expand(len(images), -1, -1), grid.flatten(2).transpose(1, 2)], dim=1)
        rest: Tensor = self.layers(tokens)
        return rest


class Giving(nn.Module):
    """Whatever a function makes of the images."""

    def __init__(self, give: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.give = give

    def forward(self, images: Tensor) -> Any:
        return self.give(images)


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return make().eval()


def freeze(module: nn.Module, node: str | Sequence[str] | None = None, **options: Any) -> tv.FrozenBackbone:
    return tv.FrozenBackbone.from_module(module, node, mean=MEAN, std=STD, **options)


def noise(height: int, width: int, count: int = 2) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(height * 1000 + width))


def normalised(images: Tensor) -> Tensor:
    return (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


@torch.no_grad()
def stage_maps(network: Any, images: Tensor) -> dict[str, Tensor]:
    """What each layer gives, computed one by one without working in place."""
    stem = network.stem[1](network.stem[0](normalised(images)))
    middle = network.middle(stem.relu())
    return {"stem.1": stem, "stem": stem.relu(), "middle": middle, "wide": network.wide(middle.relu())}


def state_of(module: nn.Module) -> tuple[Any, ...]:
    """What freezing a copy must leave as it is."""
    hooks = [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules()]
    modes = [part.training for part in module.modules()]
    return hooks, modes, [parameter.requires_grad for parameter in module.parameters()]


@given(height=st.integers(3, 20), width=st.integers(3, 20))
def test_a_module_that_gives_a_map_serves_as_it_is(height: int, width: int) -> None:
    module, images = seeded(lambda: nn.Conv2d(3, 7, 3)), noise(height, width)
    backbone = freeze(module)
    with torch.no_grad():
        torch.testing.assert_close(backbone(images), module(normalised(images)))
    assert backbone.feature_shape((height, width)) == (7, height - 2, width - 2)


@given(height=SIDES, width=SIDES, channels=SIDES)
def test_channels_last_are_brought_to_the_front(height: int, width: int, channels: int) -> None:
    module: Any = seeded(lambda: ChannelsLast(channels))
    module.output_fmt = "NHWC"  # for the few shapes that leave it open
    images = noise(PATCH * height, PATCH * width)
    with torch.no_grad():
        torch.testing.assert_close(freeze(module)(images), module.patches(normalised(images)))


def test_channels_last_are_found_without_a_declaration() -> None:
    module: Any = seeded(ChannelsLast)
    for size in ((24, 24), (12, 40), (40, 12)):
        assert freeze(module).feature_shape(size) == (5, size[0] // PATCH, size[1] // PATCH)


@given(height=SIDES, width=SIDES, prefix=PREFIXES)
def test_tokens_are_laid_out_at_any_ratio_without_prefix_tokens(height: int, width: int, prefix: int) -> None:
    module: Any = seeded(lambda: Tokens(prefix))
    module.num_prefix_tokens = prefix
    images = noise(PATCH * height, PATCH * width)
    with torch.no_grad():
        torch.testing.assert_close(freeze(module, "layers.0")(images), module.patches(normalised(images)))


@given(height=SIDES, width=SIDES, prefix=PREFIXES)
def test_the_grid_of_images_that_are_not_square_tells_prefix_tokens(height: int, width: int, prefix: int) -> None:
    if height == width:
        width += 1
    module: Any = seeded(lambda: Tokens(prefix))
    images = noise(PATCH * height, PATCH * width)
    with torch.no_grad():
        torch.testing.assert_close(freeze(module, "layers.0")(images), module.patches(normalised(images)))


@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_square_grids_of_the_usual_sizes_are_found(prefix: int) -> None:
    for side in (4, 7, 8, 14, 16, 24, 32):
        output = torch.zeros(1, prefix + side * side, 3)
        features = as_map(output, (16 * side, 16 * side), layout=TokenLayout(), node="tokens")
        assert features.shape == (1, 3, side, side)


def test_prefix_tokens_that_are_gone_already_are_not_cut_again() -> None:
    network: Any = nn.Identity()
    network.num_prefix_tokens = 5
    assert as_map(torch.zeros(1, 12, 3), (48, 64), layout=TokenLayout.declared_by(network), node="tokens").shape == (
        1,
        3,
        3,
        4,
    )


@given(height=SIDES, width=SIDES, channels=st.integers(1, 40), patch=st.sampled_from([2, 3, 7, 14, 16]))
def test_the_layout_of_a_map_is_found_where_the_image_is_not_square(
    height: int, width: int, channels: int, patch: int
) -> None:
    if height == width:
        width += 1
    image, grid = (patch * height, patch * width), (1, channels, height, width)
    first = torch.arange(float(channels * height * width)).view(grid)
    assert torch.equal(as_map(first, image, layout=TokenLayout(), node="map"), first)
    if channels * height != width * width:  # or else both layouts have the image's ratio, and the first is taken
        last = first.permute(0, 2, 3, 1)
        assert torch.equal(as_map(last, image, layout=TokenLayout(), node="map"), first)


@pytest.mark.parametrize("node", ["stem.1", "stem", "middle", "wide"])
def test_a_named_submodule_is_read_before_later_layers_change_it_or_run(node: str) -> None:
    network, images = seeded(Stages), noise(16, 24)
    backbone = freeze(network, node)
    assert backbone.provenance.node == node
    torch.testing.assert_close(backbone(images), stage_maps(network, images)[node])


@pytest.mark.parametrize("nodes", [("stem.1", "stem"), ("stem", "middle"), ("wide", "stem.1", "middle")])
@pytest.mark.parametrize("grid", [None, (3, 5)])
def test_several_submodules_are_joined_in_the_order_given(nodes: tuple[str, ...], grid: Image | None) -> None:
    network, images = seeded(Stages), noise(16, 24)
    maps = stage_maps(network, images)
    target = grid or tuple(maps[nodes[0]].shape[-2:])
    expected = [interpolate(maps[node], size=target, mode="bilinear", antialias=True) for node in nodes]
    backbone = freeze(network, nodes, grid=grid)
    torch.testing.assert_close(backbone(images), torch.cat(expected, dim=1))
    assert backbone.feature_shape((16, 24)) == (sum(maps[node].shape[1] for node in nodes), *target)


@pytest.mark.parametrize("fuse", ["sum", "mean"])
def test_submodules_of_equal_width_are_added(fuse: str) -> None:
    network, images = seeded(Stages), noise(16, 24)
    maps = stage_maps(network, images)
    coarse = [interpolate(maps[node], size=(4, 6), mode="bilinear", antialias=True) for node in ("middle", "stem")]
    expected = sum(coarse) / (1 if fuse == "sum" else 2)
    torch.testing.assert_close(freeze(network, ["middle", "stem"], fuse=fuse)(images), expected)


def test_submodules_of_other_widths_are_not_added() -> None:
    backbone = freeze(seeded(Stages), ["stem", "wide"], fuse="sum")
    with pytest.raises(ShapeError, match="6 at stem, 9 at wide channels"):
        backbone(noise(16, 24))


def test_of_a_submodule_that_is_called_again_the_first_output_counts() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 3, 1)
            self.end = nn.Conv2d(3, 4, 1)

        def forward(self, images: Tensor) -> Tensor:
            end: Tensor = self.end(self.layer(self.layer(images)))
            return end

    module: Any = seeded(Twice)
    images = noise(4, 6)
    with torch.no_grad():
        once = module.layer(normalised(images))
        expected = torch.cat([once, module.end(module.layer(once))], dim=1)
    torch.testing.assert_close(freeze(module, ["layer", "end"])(images), expected)


@pytest.mark.parametrize("node", [None, "stem", ("stem", "middle")])
def test_the_caller_s_module_stays_as_it_is(node: str | Sequence[str] | None) -> None:
    module = seeded(Stages).train()
    module.tail = nn.Identity()
    before, values = state_of(module), copy.deepcopy(module.state_dict())
    backbone = freeze(module, node)
    backbone(noise(16, 24))
    assert state_of(module) == before
    assert all(torch.equal(value, values[name]) for name, value in module.state_dict().items())


def test_training_the_caller_s_module_does_not_change_the_backbone() -> None:
    module, images = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).train(), noise(16, 24)
    backbone = freeze(module, "1")
    before, fingerprint = backbone(images), backbone.fingerprint
    optimiser = torch.optim.SGD(module.parameters(), lr=1.0)
    module(normalised(images)).square().sum().backward()
    optimiser.step()
    assert torch.equal(backbone(images), before)
    assert freeze(module, "1").fingerprint != fingerprint
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


@pytest.mark.parametrize(
    ("node", "words"),
    [("stemm", "Did you mean 'stem'"), (("stem", "stem.7"), r"'stem\.7'.*Known: stem, stem\.0"), ("", "submodule ''")],
)
def test_a_submodule_that_is_not_there_is_refused_with_the_nearest(node: str | tuple[str, ...], words: str) -> None:
    with pytest.raises(UnknownNameError, match=words):
        freeze(seeded(Stages), node)


@pytest.mark.parametrize(
    ("give", "shown"),
    [
        (lambda images: images.mean(dim=(2, 3)), r"\[1, 3\]"),
        (lambda images: images.unsqueeze(1), r"\[1, 1, 3, 4, 6\]"),
        (lambda images: (images, images), "tuple"),
        (lambda _: None, "NoneType"),
    ],
    ids=["vector", "volume", "tuple", "nothing"],
)
def test_an_output_that_is_no_map_is_refused(give: Callable[[Tensor], Any], shown: str) -> None:
    with pytest.raises(ShapeError, match=f"output gives no map of features: its output is {shown}, for images"):
        freeze(Giving(give)).feature_shape((4, 6))
    with pytest.raises(ShapeError, match=f"0 gives no map of features: its output is {shown}"):
        freeze(nn.Sequential(Giving(give), nn.Identity()), "0").feature_shape((4, 6))


def test_tokens_that_fill_no_grid_are_refused() -> None:
    module: Any = Giving(lambda images: images.new_zeros(len(images), 29, 5))
    module.num_prefix_tokens = 2
    with pytest.raises(ShapeError, match=r"its output is \[1, 29, 5\], for images \[16, 24\]"):
        freeze(module).feature_shape((16, 24))


def test_a_submodule_that_the_forward_pass_leaves_out_is_named() -> None:
    module: Any = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 1)))
    module[0].register_module("aside", nn.Conv2d(3, 4, 1))
    with pytest.raises(ShapeError, match=r"never reaches 0\.aside"):
        freeze(module, "0.aside").feature_shape(8)


@pytest.mark.parametrize("options", [{"node": None}, {"node": ("stem", "middle"), "grid": 3, "fuse": "mean"}])
def test_a_model_is_saved_and_read_with_the_module_at_hand(options: dict[str, Any], tmp_path: Path) -> None:
    module = seeded(Stages)
    module.tail = nn.Identity()
    vae = tv.build_vae(
        freeze(module, **options), image_size=(16, 24), latent_dim=3, decoder=tv.Spec("resize", width=8)
    ).eval()
    vae.save_pretrained(tmp_path)
    again = tv.TransferVAE.from_pretrained(tmp_path, backbone=freeze(module, **options))
    assert torch.equal(again.reconstruct(noise(16, 24)), vae.reconstruct(noise(16, 24)))
    assert json.loads((tmp_path / "config.json").read_text())["backbone"]["name"] == "module:Stages"
    with pytest.raises(InvalidOptionError, match=r"'module:Stages' was made of a network in memory.*backbone="):
        tv.TransferVAE.from_pretrained(tmp_path)
    nn.init.zeros_(module.get_parameter("middle.weight"))
    with pytest.raises(FingerprintMismatchError):
        tv.TransferVAE.from_pretrained(tmp_path, backbone=freeze(module, **options))


@pytest.mark.parametrize("size", [(32, 32), (32, 64)])
def test_a_block_of_timm_read_by_name_is_the_block_read_by_index(size: Image) -> None:
    by_name, by_index = (tv.create_backbone("timm:test_vit", node=node, weights=None) for node in ("blocks.2", 2))
    torch.testing.assert_close(by_name(noise(*size)), by_index(noise(*size)))
    several, indices = (
        tv.create_backbone("timm:test_vit", node=node, fuse="mean", weights=None)
        for node in (("blocks.3", "blocks.0"), (3, 0))
    )
    torch.testing.assert_close(several(noise(*size)), indices(noise(*size)))


def test_channels_last_layers_of_timm_are_read_by_name() -> None:
    name = "timm:swin_tiny_patch4_window7_224"
    by_name, by_index = (tv.create_backbone(name, node=node, weights=None) for node in ("layers.1", 1))
    torch.testing.assert_close(by_name(noise(64, 96)), by_index(noise(64, 96)))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"node": "blocks.9"}, UnknownNameError, r"node of timm:test_vit 'blocks\.9'.*Did you mean 'blocks\.\d'"),
        ({"node": "block5_pool"}, UnknownNameError, "Known are stages 0 to 5, and the names of modules, such as"),
        ({"node": ("blocks.1", 2)}, InvalidOptionError, r"mixes stage indices and the module name 'blocks\.1'"),
        ({"node": "blocks.1", "norm": True}, InvalidOptionError, "norm belongs to stage indices"),
    ],
)
def test_names_of_modules_that_cannot_serve_are_refused(
    options: dict[str, Any], error: type[TransferVAEError], words: str
) -> None:
    with pytest.raises(error, match=words):
        tv.create_backbone("timm:test_vit", **options, weights=None)


@pytest.mark.parametrize("size", [(32, 32), (32, 64)])
def test_norm_is_timm_s_own(size: Image) -> None:
    plain, normed = (tv.create_backbone("timm:test_vit", norm=norm, weights=None) for norm in (False, True))
    oracle: Any = timm.create_model("test_vit", num_classes=0, dynamic_img_size=True).eval()
    own = {name.removeprefix("network."): tensor for name, tensor in normed.network.state_dict().items()}
    for name, value in oracle.state_dict().items():
        value.copy_(own.get(name, value))
    with torch.no_grad():
        (expected,) = oracle.forward_intermediates(
            normed.normalise(noise(*size)), indices=1, norm=True, intermediates_only=True
        )
    torch.testing.assert_close(normed(noise(*size)), expected)
    assert not torch.allclose(plain(noise(*size)), expected, atol=1e-2)
    assert plain.fingerprint != normed.fingerprint
    assert normed.config["norm"] is True


def test_norm_where_there_is_none_is_refused() -> None:
    for name in ("vgg19", "packaged"):
        with pytest.raises(InvalidOptionError, match=f"{name} has no final normalisation"):
            tv.create_backbone(name, norm=True, weights=None)


def test_a_node_of_a_tag_that_does_not_exist_is_refused_for_its_tag() -> None:
    with pytest.raises(UnknownNameError, match=r"tag of timm:test_vit 'r160'.*Did you mean 'r160_in1k'"):
        tv.create_backbone("timm:test_vit.r160", node=1, weights=None)
