"""Generated inputs; values come from a seed, so that shapes and scales are what shrinks."""

import torch
from hypothesis import strategies as st
from torch import Tensor

from transfervae import DiagonalGaussian

SEEDS = st.integers(0, 2**31 - 1)
LATENT_DIMS = st.integers(1, 48)
FEATURE_SHAPES = st.tuples(st.integers(1, 24), st.integers(1, 6), st.integers(1, 6))
VECTOR_SHAPES = st.tuples(st.integers(1, 24))
MAP_SHAPES = st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 6))
LATENT_SHAPES = st.one_of(VECTOR_SHAPES, MAP_SHAPES)
IMAGE_SIZES = st.tuples(st.integers(1, 40), st.integers(1, 40))
BATCH_SIZES = st.integers(1, 4)
FLOAT_DTYPES = st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64])


@st.composite
def gaussians(
    draw: st.DrawFn,
    *,
    dtype: torch.dtype = torch.float64,
    batches: st.SearchStrategy[int] = BATCH_SIZES,
    latent_shapes: st.SearchStrategy[tuple[int, ...]] = LATENT_SHAPES,
) -> DiagonalGaussian:
    """Posteriors whose means reach far out and whose log-variances span the whole bounded range."""
    shape = (draw(batches), *draw(latent_shapes))
    generator = torch.Generator().manual_seed(draw(SEEDS))
    mean = torch.randn(shape, generator=generator, dtype=dtype) * draw(st.sampled_from([1e-3, 1.0, 30.0]))
    logvar = (torch.rand(shape, generator=generator, dtype=dtype) * 2 - 1) * draw(st.sampled_from([1e-3, 1.0, 10.0]))
    return DiagonalGaussian(mean, logvar)


@st.composite
def images(
    draw: st.DrawFn,
    *,
    sizes: st.SearchStrategy[tuple[int, int]] = IMAGE_SIZES,
    batches: st.SearchStrategy[int] = BATCH_SIZES,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Batches of RGB images in [0, 1]."""
    generator = torch.Generator().manual_seed(draw(SEEDS))
    return torch.rand((draw(batches), 3, *draw(sizes)), generator=generator, dtype=dtype)


@st.composite
def image_pairs(draw: st.DrawFn, *, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Two batches of images of one shape, some of them nearly or exactly equal."""
    first = draw(images(dtype=dtype))
    second = torch.rand(first.shape, generator=torch.Generator().manual_seed(draw(SEEDS)), dtype=dtype)
    closeness = draw(st.sampled_from([0.0, 1e-4, 0.1, 1.0]))
    return first, first + closeness * (second - first)


@st.composite
def features(draw: st.DrawFn, *, shapes: st.SearchStrategy[tuple[int, int, int]] = FEATURE_SHAPES) -> Tensor:
    """Float32 feature maps of any scale and offset, with Gaussian or heavy tails."""
    shape = (draw(BATCH_SIZES), *draw(shapes))
    generator = torch.Generator().manual_seed(draw(SEEDS))
    values = torch.randn(shape, generator=generator)
    if draw(st.booleans()):
        values = values / torch.rand(shape, generator=generator).clamp_min(1e-6)
    return values * 10 ** draw(st.floats(-4, 5)) + draw(st.sampled_from([0.0, -3.0, 100.0]))
