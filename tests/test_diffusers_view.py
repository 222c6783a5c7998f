"""Code written for diffusers' `AutoencoderKL` runs on it and on our view alike."""

from typing import Any, cast

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, LDMPipeline, UNet2DModel
from torch import Tensor
from torch.nn.functional import mse_loss
from torch.testing import assert_close

import transfervae as tv
from tests.samples import make_backbone
from transfervae.decoders import resize_decoder
from transfervae.diffusers_view import DiffusersView
from transfervae.errors import ImageSizeError, InvalidImageError, ShapeError
from transfervae.heads import DeterministicHead, SpatialGaussianHead

SIZE = 64


def make_vae(*, size: int | tuple[int, int] = SIZE, channels: int = 4, deterministic: bool = False) -> tv.TransferVAE:
    """A model of latent maps on timm's small ResNet, which shrinks images 32 times."""
    torch.manual_seed(0)
    backbone = make_backbone("resnet")
    shape = backbone.feature_shape(size)
    head: Any = (
        DeterministicHead((1, 1, 1), tau=0.8)
        if deterministic
        else SpatialGaussianHead((shape[0], 1, 1), latent_dim=channels)
    )
    return tv.TransferVAE(backbone, head, resize_decoder(head.latent_shape_for(shape), size, width=16)).eval()


def random_images(*, count: int = 4, size: tuple[int, int] = (SIZE, SIZE)) -> Tensor:
    """In [-1, 1]."""
    return 2 * torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(0)) - 1


def make_fitted_view() -> DiffusersView:
    vae = make_vae()
    vae.fit_scaling([(random_images(count=8) + 1) / 2])
    return vae.as_diffusers()


def make_autoencoder_kl() -> Any:
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(8,) * 6,
        down_block_types=("DownEncoderBlock2D",) * 6,
        up_block_types=("UpDecoderBlock2D",) * 6,
        norm_num_groups=4,
        sample_size=SIZE,
        scaling_factor=1.0,
    )


def make_unet(channels: int, sample_size: int) -> Any:
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=sample_size,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(16,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        layers_per_block=1,
        norm_num_groups=8,
    )


def train_and_sample(vae: Any, images: Tensor, *, steps: int = 40) -> tuple[list[float], list[Tensor]]:
    """Latent diffusion as diffusers' own training scripts do it, and two ways to sample."""
    vae.requires_grad_(False)
    vae.eval()
    vae.to("cpu", dtype=torch.float32)
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    side = vae.config.sample_size // factor
    unet = make_unet(vae.config.latent_channels, side)
    scheduler: Any = DDPMScheduler(num_train_timesteps=100)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)

    losses = []
    for _ in range(steps):
        latents = vae.encode(images.to(vae.device, dtype=vae.dtype)).latent_dist.sample(generator)
        latents = (latents - (vae.config.shift_factor or 0)) * vae.config.scaling_factor
        noise = torch.randn(latents.shape, generator=generator)
        timesteps = torch.randint(0, scheduler.config.num_train_timesteps, (len(latents),), generator=generator)
        predicted = unet(scheduler.add_noise(latents, noise, timesteps), timesteps).sample
        loss = mse_loss(predicted.float(), noise.float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    sampled = []
    with torch.no_grad():
        for sampler in (scheduler, DDIMScheduler.from_config(scheduler.config)):
            sampler.set_timesteps(5)
            latents = torch.randn(2, vae.config.latent_channels, side, side, generator=generator)
            for timestep in sampler.timesteps:
                latents = sampler.step(
                    unet(latents, timestep).sample, timestep, latents, generator=generator
                ).prev_sample
            latents = latents / vae.config.scaling_factor + (vae.config.shift_factor or 0)
            sampled.append(vae.decode(latents, return_dict=False, generator=generator)[0])
    return losses, sampled


@pytest.mark.parametrize("make", [make_fitted_view, make_autoencoder_kl])
def test_latent_diffusion_trains_and_samples_on_either(make: Any) -> None:
    losses, sampled = train_and_sample(make(), random_images())
    assert all(torch.tensor(losses).isfinite())
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    for images in sampled:
        assert images.shape == (2, 3, SIZE, SIZE)
        assert images.isfinite().all()


def test_a_pipeline_of_diffusers_takes_the_view() -> None:
    pipeline: Any = LDMPipeline(vqvae=make_fitted_view(), unet=make_unet(4, 2), scheduler=DDIMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(batch_size=2, num_inference_steps=2, output_type="np").images
    assert images.shape == (2, SIZE, SIZE, 3)
    assert images.std() > 0


@pytest.mark.parametrize("return_dict", [True, False])
@pytest.mark.parametrize("make", [make_fitted_view, make_autoencoder_kl])
@torch.no_grad()
def test_members_have_the_shapes_of_diffusers(make: Any, *, return_dict: bool) -> None:
    vae = make()
    encoded = vae.encode(random_images(), return_dict=return_dict)
    distribution = encoded.latent_dist if return_dict else encoded[0]
    shape = (4, 4, 2, 2)
    for value in ("mean", "std", "var", "logvar"):
        assert getattr(distribution, value).shape == shape
    assert_close(distribution.std, (0.5 * distribution.logvar).exp())
    assert_close(distribution.var, distribution.logvar.exp())
    assert torch.equal(distribution.mode(), distribution.mean)
    draws = [distribution.sample(generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert draws[0].shape == shape
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    oracle = 0.5 * (distribution.mean**2 + distribution.var - 1 - distribution.logvar).sum(dim=(1, 2, 3))
    assert_close(distribution.kl(), oracle, rtol=1e-4, atol=1e-4)
    decoded = vae.decode(draws[0], return_dict=return_dict)
    assert (decoded.sample if return_dict else decoded[0]).shape == (4, 3, SIZE, SIZE)
    for sample_posterior in (True, False):
        images = vae(random_images(), sample_posterior=sample_posterior, return_dict=return_dict)[0]
        assert images.shape == (4, 3, SIZE, SIZE)


def test_config_answers_as_attributes_and_by_key_as_diffusers_does() -> None:
    ours, theirs = make_fitted_view().config, make_autoencoder_kl().config
    for key in ("in_channels", "out_channels", "latent_channels", "sample_size", "scaling_factor"):
        assert ours[key] == getattr(ours, key) == theirs[key]
    assert len(ours.block_out_channels) == len(theirs.block_out_channels)
    assert set(ours) <= set(theirs)
    assert ours.get("nothing") is None
    assert len(ours) == len(dict(ours))


@torch.no_grad()
def test_images_and_latents_are_the_model_s() -> None:
    vae, images = make_vae(), random_images()
    view = vae.as_diffusers()
    assert_close(view.encode(images)[0].mean, vae.encode((images + 1) / 2).mean)
    latents = vae.encode((images + 1) / 2).mode()
    assert_close((view.decode(latents)[0] + 1) / 2, vae.decode(latents))
    assert_close((view(images)[0] + 1) / 2, vae.reconstruct((images + 1) / 2))


@torch.no_grad()
def test_a_fitted_scaling_is_inside() -> None:
    vae, images = make_vae(), random_images(count=8)
    view = vae.as_diffusers()
    raw = view.encode(images)[0].mean
    vae.fit_scaling([(images + 1) / 2])
    assert vae.scaling is not None
    distribution = view.encode(images)[0]
    assert_close(distribution.mean, vae.scaling.normalise(raw))
    moments = distribution.mean.double()
    assert_close(moments.mean(dim=(0, 2, 3)), torch.zeros(4).double(), rtol=0, atol=1e-5)
    total = moments.square().mean(dim=(0, 2, 3)) + distribution.var.double().mean(dim=(0, 2, 3))
    assert_close(total, torch.ones(4).double(), rtol=0, atol=1e-3)
    assert_close(view.decode(distribution.mean)[0], 2 * vae.decode(raw) - 1, rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_deterministic_head_gives_points() -> None:
    view = make_vae(deterministic=True).as_diffusers()
    distribution = view.encode(random_images())[0]
    assert torch.equal(distribution.sample(), distribution.mean)
    assert not distribution.std.any()
    assert (distribution.logvar == -30).all()
    assert not distribution.kl().any()


@pytest.mark.parametrize(
    ("size", "sample_size", "blocks"), [((64, 96), (64, 96), 6), (32, 32, 6), ((70, 64), (70, 64), 6)]
)
def test_sizes_are_told(size: int | tuple[int, int], sample_size: int | tuple[int, int], blocks: int) -> None:
    config = make_vae(size=size).as_diffusers().config
    assert config.sample_size == sample_size
    assert len(config.block_out_channels) == blocks


def test_the_backbone_stays_frozen_and_the_model_is_shared() -> None:
    vae = make_vae()
    view = vae.as_diffusers().train().requires_grad_(requires_grad=True)
    assert not any(parameter.requires_grad for parameter in vae.backbone.parameters())
    assert not any(module.training for module in vae.backbone.network.modules())
    assert all(parameter.requires_grad for parameter in vae.trainable_parameters())
    view.requires_grad_(requires_grad=False)
    assert not any(parameter.requires_grad for parameter in view.parameters())
    assert {id(value) for value in view.parameters()} == {id(value) for value in vae.parameters()}


@torch.no_grad()
def test_half_precision_works_throughout() -> None:
    view = make_fitted_view().to(torch.bfloat16)
    assert view.dtype == torch.bfloat16
    assert view.device == torch.device("cpu")
    latents = view.encode(random_images().to(view.dtype))[0].sample()
    images = view.decode(latents.to(view.dtype))[0]
    assert images.isfinite().all()


@pytest.mark.usefixtures("without_shape_checks")
def test_what_does_not_fit_is_refused() -> None:
    backbone = make_backbone("resnet")
    with pytest.raises(ShapeError, match=r"vectors \(5,\); build one with head=\"spatial\""):
        tv.build_vae(backbone, image_size=SIZE, latent_dim=5, decoder=tv.Spec("resize", width=16)).as_diffusers()
    view = make_vae().as_diffusers()
    with pytest.raises(ImageSizeError):
        view.encode(random_images(size=(SIZE, 96)))
    with pytest.raises(InvalidImageError):
        view.encode(255 * random_images())
    with pytest.raises(ShapeError):
        view.decode(torch.zeros(1, 4, 3, 3))
    assert cast(Any, view).vae.scaling is None
