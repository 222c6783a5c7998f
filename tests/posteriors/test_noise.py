import math

import pytest
import torch

import transfervae as tv
from transfervae.errors import InvalidOptionError, UnknownNameError
from transfervae.heads import HEADS
from transfervae.posteriors.noise import NOISE_LAWS, add_noise

SECOND_MOMENTS = {"uniform": 1 / 3, "half_normal": 1.0}
"""E[level^2]: of a uniform number in [0, 1), and of |N(0, 1)|."""

FOURTH_MOMENTS = {"uniform": 1 / 5, "half_normal": 3.0}


@pytest.mark.parametrize("law", NOISE_LAWS)
def test_noise_has_the_moments_of_its_law(law: str) -> None:
    tau, count = 0.8, 200_000
    noise = add_noise(torch.zeros(count, 2), tau, law, torch.Generator().manual_seed(0)).double()
    assert noise.mean().abs() < 5 * tau / math.sqrt(2 * count)
    second, fourth = SECOND_MOMENTS[law] * tau**2, 3 * FOURTH_MOMENTS[law] * tau**4
    assert noise.square().mean().item() == pytest.approx(second, rel=0.02)
    assert noise.pow(4).mean().item() == pytest.approx(fourth, rel=0.1)
    both = noise.square().prod(dim=1).mean().item()  # the level is the item's: its numbers' squares go together
    assert both == pytest.approx(FOURTH_MOMENTS[law] * tau**4, rel=0.1)


@pytest.mark.parametrize("head", HEADS)
def test_every_head_adds_noise_in_training_alone(head: str) -> None:
    torch.manual_seed(0)
    spec = tv.Spec("timm:test_resnet", weights=None)
    plain = tv.build_vae(spec, image_size=32, head=head)
    noisy = tv.build_vae(spec, image_size=32, head=tv.Spec(head, tau=100.0, law="half_normal"))
    noisy.load_state_dict(plain.state_dict())
    images = torch.rand(4, 3, 32, 32)

    def latents(vae: tv.TransferVAE) -> torch.Tensor:
        latent: torch.Tensor = vae(images, generator=torch.Generator().manual_seed(0)).latent
        return latent

    assert torch.equal(latents(noisy.eval()), latents(plain.eval()))
    torch.testing.assert_close(noisy.encode(images).mode(), plain.encode(images).mode())
    difference = latents(noisy.train()) - latents(plain.train())
    assert difference.std() > 10


@pytest.mark.parametrize("head", HEADS)
def test_wrong_noise_is_refused(head: str) -> None:
    spec = tv.Spec("timm:test_resnet", weights=None)
    for tau in (-1.0, math.inf, math.nan):
        with pytest.raises(InvalidOptionError, match="tau"):
            tv.build_vae(spec, image_size=32, head=tv.Spec(head, tau=tau))
    with pytest.raises(UnknownNameError, match="law of noise"):
        tv.build_vae(spec, image_size=32, head=tv.Spec(head, law="cauchy"))
