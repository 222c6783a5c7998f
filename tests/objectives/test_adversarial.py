import math
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, distributed, nn
from torch.multiprocessing.spawn import spawn

import transfervae as tv
from tests.samples import make_vae, random_images, shared_backbone
from transfervae.errors import InvalidOptionError, UnknownNameError
from transfervae.model import VAEOutput
from transfervae.objectives import (
    DISCRIMINATORS,
    GAN_LOSSES,
    Adversarial,
    FeatureDiscriminator,
    Judgement,
    PatchDiscriminator,
)
from transfervae.objectives._augment import augment
from transfervae.posteriors import PointPosterior
from transfervae.training.module import last_layer_of

RANDOM: dict[str, Any] = {"network": "timm:test_vit", "weights": "none", "nodes": [0, 1]}


def made(reconstruction: Tensor) -> VAEOutput:
    latent = torch.zeros(len(reconstruction), 2)
    return VAEOutput(reconstruction, PointPosterior(latent), latent)


class Linear(nn.Module):
    """One logit: a fixed weighted sum of all values."""

    def __init__(self, slope: Tensor) -> None:
        super().__init__()
        self.slope = nn.Parameter(slope)

    def forward(self, images: Tensor) -> Judgement:
        logit = (images * self.slope).flatten(1).sum(dim=1, keepdim=True)
        return Judgement([logit], [images])


def linear_term(**options: Any) -> tuple[Adversarial, Tensor]:
    slope = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0))
    term = Adversarial(discriminator="patch", augment=False, rounded=False, **options)
    term.discriminator = cast(Any, Linear(slope))
    return term, slope


@pytest.mark.parametrize("kind", DISCRIMINATORS)
def test_either_side_learns_and_leaves_the_other_alone(kind: str) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = RANDOM if kind == "features" else {"width": 8, "layers": 2}
    term = Adversarial(discriminator=kind, **options).train()
    images = random_images("vit")
    reconstruction = random_images("vit", seed=1).requires_grad_()
    for parameter in term.parameters():
        parameter.requires_grad_(False)
    term(made(reconstruction), images).sum().backward()
    assert reconstruction.grad is not None
    assert reconstruction.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in term.parameters())
    for parameter in term.parameters():
        parameter.requires_grad_(True)
    reconstruction.grad = None
    term.own_loss(made(reconstruction.detach()), images).backward()
    assert reconstruction.grad is None
    assert all(parameter.grad is not None for parameter in term.parameters())
    assert sum(parameter.grad.abs().sum() for parameter in term.parameters() if parameter.grad is not None) > 0


def test_a_discriminator_learns_to_tell_images_apart() -> None:
    torch.manual_seed(0)
    term = Adversarial(**RANDOM, learning_rate=2e-3).train()
    optimizer = term.make_optimizer()
    dark, light = 0.3 * random_images("vit", count=8), 1 - 0.3 * random_images("vit", count=8, seed=1)
    first = term.own_loss(made(dark), light).item()
    for _ in range(60):
        optimizer.zero_grad()
        term.own_loss(made(dark), light).backward()
        optimizer.step()
    assert term.eval().own_loss(made(dark), light).item() < 0.7 * first
    assert (term(made(light), dark) < term(made(dark), light)).all()


@pytest.mark.parametrize("loss", GAN_LOSSES)
@given(logit=st.floats(-5, 5))
def test_losses_are_the_published_formulas(loss: str, logit: float) -> None:
    x, functions = torch.tensor(logit, dtype=torch.float64), GAN_LOSSES[loss]
    sigmoid = 1 / (1 + math.exp(-logit))
    wanted = {
        "hinge": (max(0, 1 - logit), max(0, 1 + logit), -logit),
        "non_saturating": (-math.log(sigmoid), -math.log(1 - sigmoid), -math.log(sigmoid)),
        "least_squares": ((logit - 1) ** 2, logit**2, (logit - 1) ** 2),
    }[loss]
    found = (functions.of_real(x), functions.of_made(x), functions.of_generator(x))
    assert [value.item() for value in found] == pytest.approx(wanted, abs=1e-9)


def test_the_discriminator_s_loss_is_half_the_sum_of_both_sides() -> None:
    term, slope = linear_term()
    real, drawn = torch.rand(4, 3, 8, 8), torch.rand(4, 3, 8, 8)
    logits = [(images * slope).flatten(1).sum(dim=1) for images in (real, drawn)]
    wanted = 0.5 * ((1 - logits[0]).relu().mean() + (1 + logits[1]).relu().mean())
    torch.testing.assert_close(term.own_loss(made(drawn), real), wanted)
    torch.testing.assert_close(term(made(drawn), real), -logits[1])


def test_r1_is_half_the_squared_gradient_at_photographs() -> None:
    real, drawn = torch.rand(4, 3, 8, 8), torch.rand(4, 3, 8, 8)
    plain, slope = linear_term()
    penalised, _ = linear_term(r1=3.0)
    difference = penalised.own_loss(made(drawn), real) - plain.own_loss(made(drawn), real)
    torch.testing.assert_close(difference, 1.5 * slope.square().sum(), rtol=1e-4, atol=1e-4)


def test_lecam_pulls_towards_the_running_mean_of_the_other_side() -> None:
    term, slope = linear_term(lecam=2.0)
    plain, _ = linear_term()
    running = torch.zeros(2)
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        real, drawn = (torch.rand(4, 3, 8, 8, generator=generator) for _ in range(2))
        of_real, of_made = ((images * slope).flatten(1).sum(dim=1) for images in (real, drawn))
        wanted = 2 * ((of_real - running[1]).square().mean() + (of_made - running[0]).square().mean())
        difference = term.own_loss(made(drawn), real) - plain.own_loss(made(drawn), real)
        torch.testing.assert_close(difference, wanted, rtol=1e-4, atol=1e-4)
        running = 0.99 * running + 0.01 * torch.stack([of_real.mean(), of_made.mean()])


def test_feature_matching_adds_the_difference_of_features() -> None:
    term, slope = linear_term(matching=0.7)
    real, drawn = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)
    logits = (drawn * slope).flatten(1).sum(dim=1)
    torch.testing.assert_close(
        term(made(drawn), real), -logits + 0.7 * (real - drawn).abs().flatten(1).mean(dim=1), rtol=1e-4, atol=1e-5
    )


def test_the_discriminator_sees_reconstructions_in_8_bits() -> None:
    term = Adversarial(discriminator="patch", width=8, layers=2, augment=False).eval()
    images = random_images("vit")
    drawn = (random_images("vit", seed=1) * 255).round() / 255
    near = (drawn + 0.4 / 255 * (torch.rand_like(drawn) - 0.5)).clamp(0, 1)
    torch.testing.assert_close(term.own_loss(made(near), images), term.own_loss(made(drawn), images))


@pytest.mark.parametrize("kind", ["packaged", "vit"])
def test_the_encoder_s_network_is_the_judge_by_default(kind: str) -> None:
    discriminator = FeatureDiscriminator()
    with pytest.raises(InvalidOptionError, match="attach"):
        discriminator(random_images(kind))
    discriminator.attach(shared_backbone(kind))
    judged = discriminator(random_images(kind))
    assert len(judged.logits) == len(judged.features) == len(discriminator.heads) > 1
    assert [name for name, _ in discriminator.named_parameters() if "network" in name] == []


def test_images_are_resized_for_a_network_that_wants_another_size() -> None:
    discriminator = FeatureDiscriminator(network="timm:test_vit", weights="none", nodes=[0], image_size=64)
    judged = discriminator(random_images("vit"))
    assert judged.features[0].shape[2:] == (4, 4)


def test_values_out_of_range_pass_their_gradient() -> None:
    discriminator = FeatureDiscriminator(**RANDOM)
    images = (3 * random_images("vit") - 1).requires_grad_()
    torch.stack([head.sum() for head in discriminator(images).logits]).sum().backward()
    assert images.grad is not None
    outside = (images < 0) | (images > 1)
    assert (images.grad[outside] != 0).float().mean() > 0.9


def test_patches_are_of_images_that_are_large_enough() -> None:
    patches = PatchDiscriminator(width=8, layers=3)
    assert patches(torch.rand(2, 3, patches.smallest_side, 40)).logits[0].numel() > 0
    with pytest.raises(InvalidOptionError, match="fewer layers"):
        patches(torch.rand(2, 3, 16, 40))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"discriminator": "patches"}, UnknownNameError, "Did you mean 'patch'"),
        ({"loss": "wgan"}, UnknownNameError, "adversarial loss"),
        ({"discriminator": "patch", "network": "packaged"}, InvalidOptionError, "has no option 'network'"),
        ({"width": 32}, InvalidOptionError, "The discriminator 'features' has no option 'width'"),
        ({"weights": "none"}, InvalidOptionError, "name it"),
        ({"r1": -1.0}, InvalidOptionError, "r1"),
        ({"learning_rate": 0.0}, InvalidOptionError, "learning_rate"),
        ({"betas": (0.5, 1.0)}, InvalidOptionError, "betas"),
        ({"discriminator_start_share": 1.0}, InvalidOptionError, "discriminator_start_share"),
        ({"discriminator": "patch", "layers": 0}, InvalidOptionError, "layers"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Adversarial(**options)


def test_a_start_is_an_epoch_a_step_or_a_share_of_the_run() -> None:
    def start(**options: Any) -> int | None:
        return Adversarial(discriminator="patch", width=8, **options).own_start(10, 100)

    assert start() is None
    assert start(discriminator_start_epoch=6) == 60
    assert start(discriminator_start_step=7) == 7
    assert start(discriminator_start_share=0.4) == 40
    assert start(discriminator_start_epoch=2, discriminator_start_share=0.4) == 40
    entry = tv.WeightedTerm(Adversarial(discriminator="patch", width=8), weight=0.5, start_share=0.5)
    assert [entry.weight_at(step, 10, 0.5, 100) for step in (0, 49, 50, 99)] == [0, 0, 0.5, 0.5]


@given(seed=st.integers(0, 1000), height=st.integers(8, 20), width=st.integers(8, 20))
def test_augmentation_only_shifts_and_changes_colours(seed: int, height: int, width: int) -> None:
    """Each image is some shift of an affine function of the image, its gray and its mean: colours of one pixel stay
    in one plane, and what is moved in is black."""
    torch.manual_seed(seed)
    images = torch.rand(2, 3, height, width)
    torch.manual_seed(seed + 1)
    changed = augment(images)
    assert changed.shape == images.shape
    torch.manual_seed(seed + 1)
    torch.testing.assert_close(augment(images), changed)
    rows, columns = round(height / 8), round(width / 8)
    for image, result in zip(images, changed, strict=True):
        chroma = image - image.mean(dim=0)
        fits = []
        for down in range(-rows, rows + 1):
            for right in range(-columns, columns + 1):
                inside = result[:, max(0, -down) : height - max(0, down), max(0, -right) : width - max(0, right)]
                from_ = chroma[:, max(0, down) : height + min(0, down), max(0, right) : width + min(0, right)]
                found = inside - inside.mean(dim=0)
                factor = (found * from_).sum() / from_.square().sum()
                fits.append((found - factor * from_).abs().max().item())
        assert min(fits) < 1e-4


def test_augmentation_passes_gradients() -> None:
    images = torch.rand(2, 3, 16, 16, requires_grad=True)
    augment(images).square().sum().backward()
    assert images.grad is not None
    assert (images.grad != 0).any(dim=1).float().mean() > 0.5


def balanced(objective: tv.Objective, vae: tv.TransferVAE, images: Tensor, **options: Any) -> Any:
    torch.manual_seed(3)
    output = vae(images)
    return objective(output, images, **options)


def test_the_adaptive_weight_is_the_ratio_of_gradients_at_the_last_layer() -> None:
    vae = make_vae("resnet", decoder="resize").train()
    objective = tv.Objective(
        "l1",
        tv.Spec("features", weight=0.1),
        tv.Spec("adversarial", weight=0.5, augment=False, **RANDOM),
        tv.Spec("kl", weight=1e-6),
    ).eval()  # spectral normalisation goes on estimating in training
    objective.attach(vae.backbone)
    for _name, entry in objective.items():  # noqa: PERF102 - this is no mapping
        entry.term.requires_grad_(False)
    last, images = last_layer_of(vae.decoder), random_images("resnet")
    plain = balanced(objective, vae, images)
    others = sum(plain.weighted[name] for name in ("l1", "features", "kl"))
    (of_others,) = torch.autograd.grad(others, last, retain_graph=True)
    (of_term,) = torch.autograd.grad(plain.raw["adversarial"], last, retain_graph=True)
    ratio = of_others.norm() / (of_term.norm() + 1e-6)
    assert not torch.isclose(ratio, torch.ones(()))
    value = balanced(objective, vae, images, last_layer=last)
    torch.testing.assert_close(value.ratios["adversarial"], ratio, rtol=1e-4, atol=0)
    torch.testing.assert_close(value.weighted["adversarial"], 0.5 * ratio * plain.raw["adversarial"], rtol=1e-4, atol=0)
    # The gradient of the whole is that of the terms with these weights, in all of head and decoder.
    wanted = torch.autograd.grad(others + 0.5 * ratio * plain.raw["adversarial"], [*vae.trainable_parameters()])
    found = torch.autograd.grad(value.total, [*vae.trainable_parameters()])
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-7)


def test_gradients_are_compared_at_the_reconstruction_of_a_frozen_decoder() -> None:
    vae = make_vae("resnet", decoder="resize")
    vae.decoder.requires_grad_(False)
    objective = tv.Objective("l1", tv.Spec("adversarial", weight=0.5, discriminator="patch", width=8, layers=1)).eval()
    images = random_images("resnet")
    output = vae(images)
    value = objective(output, images, last_layer=last_layer_of(vae.decoder))
    terms = [entry.term(output, images).mean() for _name, entry in objective.items()]
    of_l1, of_term = (torch.autograd.grad(term, output.reconstruction, retain_graph=True)[0] for term in terms)
    torch.testing.assert_close(value.ratios["adversarial"], of_l1.norm() / (of_term.norm() + 1e-6))
    value.total.backward()
    assert all(parameter.grad is not None for parameter in vae.head.parameters())


@pytest.mark.parametrize("name", tv.decoders.DECODERS)
def test_the_last_layer_of_every_decoder_makes_the_pixels(name: str) -> None:
    options: dict[str, Any] = {"depth": 1, "width": 32} if name == "vit" else {"width": 16}
    decoder = tv.decoders.DECODERS.build(tv.Spec(name, **options), (4,), (16, 16))
    decoder.eval()
    images = decoder(torch.randn(2, 4))
    (slope,) = torch.autograd.grad(images.sum(), last_layer_of(decoder))
    if name == "residual":  # it adds detail to a colour a cell, in every pixel
        latents = torch.randn(2, 4)
        before = decoder(latents)
        with torch.no_grad():
            last_layer_of(decoder).add_(torch.randn(last_layer_of(decoder).shape))
        assert ((decoder(latents) - before).abs() > 0).all()
        return
    with torch.no_grad():
        last_layer_of(decoder).zero_()
    if name in {"vit", "kl"}:
        assert slope.abs().sum() > 0
    flat = decoder(torch.randn(2, 4))
    if name == "vit":  # one colour a patch
        assert flat.flatten(2).std(dim=2).max() < 0.3
    else:
        assert flat.flatten(2).std(dim=2).max() < 1e-6


def test_parts_without_a_last_layer_are_refused() -> None:
    with pytest.raises(InvalidOptionError, match="last_layer"):
        last_layer_of(nn.Identity())


def _gradients(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    if world > 1:
        distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    vae = make_vae("resnet", decoder="resize", head="deterministic", latent_dim=None).train()
    objective = tv.Objective("l1", tv.Spec("adversarial", weight=0.5, augment=False, lecam=0.1, **RANDOM)).train()
    objective.attach(vae.backbone)
    torch.manual_seed(1)
    for parameter in objective.parameters():
        parameter.data.copy_(torch.randn_like(parameter) / 5)
        parameter.requires_grad_(False)
    images = random_images("resnet", count=4)[rank::world]
    output = vae(images)
    value = objective(output, images, last_layer=last_layer_of(vae.decoder))
    value.total.backward()
    found = {f"vae.{name}": parameter.grad for name, parameter in vae.decoder.named_parameters()}
    term = objective.terms_with_optimizer()["adversarial"].requires_grad_(True)
    detached = VAEOutput(output.reconstruction.detach(), output.posterior, output.latent)
    for _ in range(2):
        term.own_loss(detached, images).backward()
    found |= {f"term.{name}": parameter.grad for name, parameter in term.named_parameters()}
    found |= {"ratio": value.ratios["adversarial"], "running": cast(Tensor, term.running_logits)}
    if world > 1:
        for name, gradient in found.items():
            if gradient is not None and name not in {"ratio", "running"}:
                distributed.all_reduce(gradient)
                gradient.div_(world)
        distributed.destroy_process_group()
    torch.save(found, folder / f"{world}-{rank}.pt")


@pytest.mark.slow
def test_two_processes_give_the_gradients_of_one(tmp_path: Path) -> None:
    spawn(_gradients, args=(2, tmp_path), nprocs=2)
    _gradients(0, 1, tmp_path)
    one = torch.load(tmp_path / "1-0.pt")
    for rank in range(2):
        shared = torch.load(tmp_path / f"2-{rank}.pt")
        assert shared.keys() == one.keys()
        for name, value in one.items():
            torch.testing.assert_close(shared[name], value, rtol=1e-3, atol=1e-6, msg=f"{name} on rank {rank}")
    assert any(name.startswith("term.") and value.abs().sum() > 0 for name, value in one.items())
