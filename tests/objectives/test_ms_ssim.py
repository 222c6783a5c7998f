import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchmetrics.image import MultiScaleStructuralSimilarityIndexMeasure

from transfervae.errors import InvalidOptionError
from transfervae.model import VAEOutput
from transfervae.objectives import TERMS, Term
from transfervae.options import Spec
from transfervae.posteriors import PointPosterior


def evaluate(reconstruction: Tensor, images: Tensor) -> Tensor:
    latent = torch.zeros(len(images), 1)
    term: Term = TERMS.build(Spec("ms_ssim"))
    value: Tensor = term(VAEOutput(reconstruction, PointPosterior(latent), latent), images)
    return value


def test_it_is_one_minus_the_metric_where_all_scales_fit() -> None:
    images = torch.rand(3, 3, 176, 190, generator=torch.Generator().manual_seed(0))
    other = (images + 0.2 * torch.randn(images.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    metric = MultiScaleStructuralSimilarityIndexMeasure(data_range=1.0, reduction="none", normalize="relu")
    torch.testing.assert_close(evaluate(other, images), 1 - metric(other, images))


@given(height=st.integers(11, 60), width=st.integers(11, 60))
def test_images_of_any_size_from_the_window_on_are_compared(height: int, width: int) -> None:
    images = torch.rand(2, 3, height, width)
    reconstruction = torch.rand(2, 3, height, width, requires_grad=True)
    value = evaluate(reconstruction, images)
    assert value.shape == (2,)
    assert ((value >= 0) & (value <= 1)).all()
    value.sum().backward()
    assert reconstruction.grad is not None
    assert reconstruction.grad.isfinite().all()
    assert evaluate(images, images).abs().max() < 1e-5


def test_a_shift_of_colour_costs_less_than_lost_structure() -> None:
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert (
        evaluate(0.9 * images, images) < evaluate(images.mean(dim=(2, 3), keepdim=True).expand_as(images), images)
    ).all()


def test_images_smaller_than_the_window_are_refused() -> None:
    images = torch.rand(1, 3, 10, 40)
    with pytest.raises(InvalidOptionError, match="at least 11 pixels"):
        evaluate(images, images)
