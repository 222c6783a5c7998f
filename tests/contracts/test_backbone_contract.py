import copy
from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn

import transfervae as tv
from tests.samples import KINDS, make_backbone, make_vae, random_images, shared_backbone
from transfervae.backbones.frozen import Provenance
from transfervae.errors import ImageSizeError, InvalidImageError

each_kind = pytest.mark.parametrize("kind", KINDS)


class Fickle(nn.Module):
    """What must not thaw: batch norm, dropout and stochastic depth."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, kernel_size=3, padding=1, stride=2)
        self.norm = nn.BatchNorm2d(8)
        self.dropout = nn.Dropout(0.5)
        self.rate = 0.5

    def forward(self, images: Tensor) -> Tensor:
        grid = self.dropout(self.norm(self.convolution(images)))
        if self.training and torch.rand(()) < self.rate:
            return torch.zeros_like(grid)
        return torch.relu(grid)


def fickle_backbone() -> tv.FrozenBackbone:
    torch.manual_seed(0)
    network = Fickle().train()
    return tv.FrozenBackbone(network, Provenance("fickle", 0, None), mean=(0.5,) * 3, std=(0.2,) * 3)


def drop_path_backbone() -> tv.FrozenBackbone:
    network = timm.create_model("test_efficientnet", drop_rate=0.4, drop_path_rate=0.4, num_classes=0, global_pool="")
    return tv.FrozenBackbone(network, Provenance("drop path", 0, None), mean=(0.5,) * 3, std=(0.2,) * 3)


FRAGILE = {
    "fickle": fickle_backbone,
    "drop_path": drop_path_backbone,
    "resnet": lambda: make_backbone("resnet"),
    "efficientnet": lambda: make_backbone("efficientnet"),
}
each_fragile = pytest.mark.parametrize("fragile", FRAGILE)


def train_a_little(vae: tv.TransferVAE, images: Tensor) -> None:
    optimiser = torch.optim.AdamW(vae.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        optimiser.zero_grad()
        tv.losses.elbo(vae(images), images).total.backward()
        optimiser.step()


@each_fragile
def test_training_the_whole_model_leaves_every_parameter_and_buffer_bit_identical(fragile: str) -> None:
    backbone = FRAGILE[fragile]()
    before = copy.deepcopy(backbone.state_dict())
    vae = tv.build_vae(backbone, image_size=32, latent_dim=4, decoder=tv.Spec("resize", width=16)).train()
    head_before = vae.head.state_dict()["mean.weight"].clone()
    train_a_little(vae, random_images(count=4))
    assert not torch.equal(vae.head.state_dict()["mean.weight"], head_before)
    assert before.keys() == backbone.state_dict().keys()
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


@each_fragile
def test_no_part_thaws_in_training_mode(fragile: str) -> None:
    backbone = FRAGILE[fragile]()
    vae = tv.build_vae(backbone, image_size=32, latent_dim=4, decoder=tv.Spec("resize", width=16)).eval().train()
    assert vae.training
    assert not any(module.training for module in backbone.network.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


@each_fragile
def test_a_network_set_to_training_by_hand_is_set_back(fragile: str) -> None:
    backbone = FRAGILE[fragile]()
    images = random_images(count=4)
    before = backbone(images)
    backbone.network.train()
    assert torch.equal(backbone(images), before)


@each_fragile
def test_features_are_deterministic_in_training_mode(fragile: str) -> None:
    backbone = FRAGILE[fragile]().train()
    images = random_images(count=4)
    first = backbone(images)
    assert all(torch.equal(backbone(images), first) for _ in range(4))
    assert torch.equal(backbone.eval()(images), first)


@each_fragile
def test_a_copy_is_as_frozen(fragile: str) -> None:
    backbone = copy.deepcopy(FRAGILE[fragile]()).train()
    assert not any(module.training for module in backbone.network.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


@each_kind
def test_features_have_the_declared_shape(kind: str) -> None:
    backbone, images = shared_backbone(kind), random_images(kind)
    shape = backbone.feature_shape(KINDS[kind].size)
    assert backbone(images).shape == (2, *shape)
    assert shape[0] == backbone.out_channels


@each_kind
def test_features_of_images_differ_and_are_finite(kind: str) -> None:
    first, second = shared_backbone(kind)(random_images(kind))
    assert first.isfinite().all()
    assert not torch.equal(first, second)


@each_kind
def test_items_of_a_batch_do_not_mix(kind: str) -> None:
    backbone, images = shared_backbone(kind), random_images(kind, count=3)
    alone = torch.cat([backbone(image) for image in images.split(1)])
    torch.testing.assert_close(backbone(images), alone, rtol=1e-3, atol=1e-4)


@each_kind
def test_nothing_is_trainable(kind: str) -> None:
    assert not any(value.requires_grad for value in (*shared_backbone(kind).parameters(), shared_backbone(kind).mean))


@each_kind
def test_asking_for_gradients_thaws_nothing(kind: str) -> None:
    vae = make_vae(kind)
    for module in (vae, vae.backbone):
        module.requires_grad_(requires_grad=True)
        assert not any(parameter.requires_grad for parameter in vae.backbone.parameters())
    assert all(parameter.requires_grad for parameter in vae.trainable_parameters())
    vae.requires_grad_(requires_grad=False)
    assert not any(parameter.requires_grad for parameter in vae.parameters())


@each_kind
def test_gradients_flow_to_images_that_ask_for_them(kind: str) -> None:
    images = random_images(kind).requires_grad_()
    shared_backbone(kind)(images).square().sum().backward()
    assert images.grad is not None
    assert images.grad.isfinite().all()
    assert images.grad.any()


@each_kind
def test_no_graph_is_built_for_images_that_do_not_ask(kind: str) -> None:
    features = shared_backbone(kind)(random_images(kind))
    assert not features.requires_grad
    assert features.grad_fn is None


@each_kind
def test_two_creations_are_equal(kind: str) -> None:
    again = make_backbone(kind)
    assert again.fingerprint == shared_backbone(kind).fingerprint
    assert torch.equal(again(random_images(kind)), shared_backbone(kind)(random_images(kind)))


@each_kind
def test_creation_leaves_the_global_generator_alone(kind: str) -> None:
    before = torch.get_rng_state()
    make_backbone(kind)
    assert torch.equal(torch.get_rng_state(), before)


@each_kind
def test_casts_do_not_change_the_fingerprint_but_rounded_weights_do(kind: str) -> None:
    expected = shared_backbone(kind).fingerprint
    for cast in (torch.bfloat16, torch.float16, torch.float64):
        backbone = make_backbone(kind).to(cast)
        assert backbone.fingerprint == expected
        is_exact = cast == torch.float64
        assert (backbone.to(torch.float32).fingerprint == expected) == is_exact
    assert make_backbone(kind).to("cpu").fingerprint == expected


@each_kind
def test_a_cast_model_takes_float32_images(kind: str) -> None:
    backbone = make_backbone(kind).to(torch.bfloat16)
    features = backbone(random_images(kind))
    assert features.dtype == torch.bfloat16
    assert features.isfinite().all()


@each_kind
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_images_of_any_float_type_give_features_in_the_network_s_own(kind: str, dtype: torch.dtype) -> None:
    images = random_images(kind).to(dtype)
    assert torch.equal(shared_backbone(kind)(images), shared_backbone(kind)(images.float()))


@pytest.mark.usefixtures("without_shape_checks")
@each_kind
@pytest.mark.parametrize(
    "spoil",
    [
        lambda images: (255 * images).to(torch.uint8),
        lambda images: 255 * images,
        lambda images: (images - 0.45) / 0.22,
        lambda images: images[:, :1],
        lambda images: images.permute(0, 2, 3, 1),
        lambda images: images[0],
        lambda images: images[:0],
        lambda images: images.index_fill(2, torch.tensor([0]), float("nan")),
    ],
    ids=["uint8", "to 255", "normalised", "gray", "channels last", "no batch", "empty", "nan"],
)
@pytest.mark.parametrize("training", [False, True])
def test_tensors_that_are_no_images_are_refused(
    kind: str, spoil: Callable[[Tensor], Tensor], *, training: bool
) -> None:
    backbone = shared_backbone(kind).train(training)
    with pytest.raises(InvalidImageError):
        backbone(spoil(random_images(kind)))


@each_kind
def test_kl_at_the_first_step_is_below_50_nats(kind: str) -> None:
    for latent_dim in (2, 128):
        vae = make_vae(kind, latent_dim=latent_dim)
        assert vae.encode(random_images(kind, count=4)).kl().mean() < 50


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize(
    ("name", "node", "size"),
    [
        ("vgg19", "block5_pool", (31, 40)),
        ("vgg19", "block5_pool", (1, 1)),
        ("vgg19", "block1_pool", (1, 5)),
        ("timm:test_vit", None, (33, 100)),
        ("timm:test_convnext", None, (7, 63)),
    ],
)
def test_a_size_that_the_network_cannot_take_names_sizes_that_it_takes(
    name: str, node: str | None, size: tuple[int, int]
) -> None:
    backbone = tv.create_backbone(name, node=node, weights=None)
    with pytest.raises(ImageSizeError, match=f"cannot take {size[0]}x{size[1]} images") as caught:
        backbone(torch.rand(1, 3, *size))
    named = str(caught.value).partition("sizes that it takes: ")[2].partition(" (")[0].split(", ")
    assert 1 <= len(named) <= 2
    for height, width in (map(int, entry.split("x")) for entry in named):
        assert backbone(torch.rand(1, 3, height, width)).shape[1:] == backbone.feature_shape((height, width))


@each_fragile
def test_parameters_thawed_one_by_one_are_frozen_again(fragile: str) -> None:
    backbone = FRAGILE[fragile]()
    before = copy.deepcopy(backbone.state_dict())
    vae = tv.build_vae(backbone, image_size=32, latent_dim=4, decoder=tv.Spec("resize", width=16)).train()
    for parameter in vae.parameters():
        parameter.requires_grad = True
    train_a_little(vae, random_images(count=4))
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
