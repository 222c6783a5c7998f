"""Whatever backbone a model has, it learns from cached features what it learns from images."""

from collections.abc import Callable, Mapping
from functools import cache, partial
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import transfervae as tv
from tests.samples import KINDS, shared_backbone
from transfervae.cache import CachedItem, FeatureCache
from transfervae.data import ToyFaces
from transfervae.shapes import unit_images

COUNT = 4
ROUNDING = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
"""The largest relative error of a stored feature."""

SUBNORMAL = {torch.float16: 2.0**-25, torch.bfloat16: 2.0**-133}
"""The largest error of a feature that is too small for the former."""


class Case(NamedTuple):
    """A backbone, and an image size that it takes."""

    make: Callable[[], tv.FrozenBackbone]
    size: int


def fused() -> tv.FrozenBackbone:
    return tv.create_backbone("timm:test_resnet", node=(1, 3), weights=None)


def from_module() -> tv.FrozenBackbone:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.GELU(), nn.AvgPool2d(2))
    return tv.FrozenBackbone.from_module(network, mean=(0.5,) * 3, std=(0.25,) * 3)


def diffusers_rae() -> tv.FrozenBackbone:
    from tests.interop.test_rae import shared

    with TemporaryDirectory() as folder:
        shared("mae").save_pretrained(folder)
        return tv.create_backbone("diffusers_rae", weights=folder)


CASES: Mapping[str, Case] = MappingProxyType(
    {
        **{name: Case(partial(shared_backbone, name), kind.size) for name, kind in KINDS.items()},
        "fused": Case(fused, 32),
        "from_module": Case(from_module, 32),
        "diffusers_rae": Case(diffusers_rae, 48),
    }
)
each_case = pytest.mark.parametrize("case", CASES)
each_dtype = pytest.mark.parametrize("dtype", ROUNDING)


class Learned(NamedTuple):
    """What a training step finds."""

    loss: Tensor
    gradient: Tensor


@cache
def backbone_of(case: str) -> tv.FrozenBackbone:
    return CASES[case].make()


def images_of(case: str) -> Tensor:
    faces = ToyFaces(COUNT, CASES[case].size, dtype=torch.uint8)
    return unit_images(torch.stack([faces[row] for row in range(COUNT)]))


Caches = Callable[[str, torch.dtype], FeatureCache]


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Caches:
    """A cache of each case's images in each type, built once."""

    @cache
    def build(case: str, dtype: torch.dtype) -> FeatureCache:
        faces = ToyFaces(COUNT, CASES[case].size, dtype=torch.uint8)
        return FeatureCache.build(backbone_of(case), faces, tmp_path_factory.mktemp(case), dtype=dtype, flips=True)

    return build


def cached(cache: FeatureCache, *, is_mirrored: bool = False) -> CachedItem:
    items = [cache[row, is_mirrored] for row in range(COUNT)]
    return CachedItem(*(torch.stack(parts) for parts in zip(*items, strict=True)))


def learn(vae: tv.TransferVAE, images: Tensor, features: Tensor | None = None) -> Learned:
    generator = torch.Generator().manual_seed(2)
    given = vae(images, generator=generator)
    if features is not None:
        given = vae.forward_from_features(features, generator=generator.manual_seed(2))
    loss = tv.losses.elbo(given, images).total
    gradients = torch.autograd.grad(loss, list(vae.trainable_parameters()), allow_unused=True)
    return Learned(loss.detach(), torch.cat([part.flatten() for part in gradients if part is not None]))


def small_vae(case: str, head: str = "gaussian") -> tv.TransferVAE:
    torch.manual_seed(1)
    return tv.build_vae(
        backbone_of(case), image_size=CASES[case].size, head=head, latent_dim=5, decoder=tv.Spec("resize", width=16)
    ).train()


@each_case
@each_dtype
def test_stored_features_are_the_backbone_s_own_rounded_once(case: str, dtype: torch.dtype, caches: Caches) -> None:
    for is_mirrored in (False, True):
        images = images_of(case).flip(-1) if is_mirrored else images_of(case)
        item = cached(caches(case, dtype), is_mirrored=is_mirrored)
        with torch.no_grad():
            features = backbone_of(case)(images)
        assert torch.equal(unit_images(item.image), images)
        assert torch.equal(item.features, features.to(dtype))
        error = (item.features.double() - features).abs()
        assert (error <= ROUNDING[dtype] * features.double().abs() + SUBNORMAL[dtype]).all()


@each_case
@each_dtype
@pytest.mark.parametrize("head", ["gaussian", "spatial"])
def test_loss_and_gradients_are_those_of_live_features(
    case: str, dtype: torch.dtype, head: str, caches: Caches
) -> None:
    vae, images = small_vae(case, head), images_of(case)
    live = learn(vae, images)
    read = learn(vae, images, cached(caches(case, dtype)).features.float())
    assert_close(read.loss, live.loss, rtol=ROUNDING[dtype], atol=0)
    # An error e moves a share of the order of e of the units across their kink, and these lose or get all of theirs.
    assert (read.gradient - live.gradient).norm() <= ROUNDING[dtype] ** 0.5 * live.gradient.norm()
    assert live.gradient.norm() > 0


@each_case
def test_rounding_is_the_only_difference(case: str) -> None:
    vae, images = small_vae(case), images_of(case)
    with torch.no_grad():
        features = vae.backbone(images)
    live, unrounded = learn(vae, images), learn(vae, images, features)
    assert torch.equal(live.loss, unrounded.loss)
    assert torch.equal(live.gradient, unrounded.gradient)


@each_case
def test_a_cache_knows_its_backbone(case: str, caches: Caches) -> None:
    caches(case, torch.float16).check(backbone_of(case), ToyFaces(COUNT, CASES[case].size, dtype=torch.uint8))
