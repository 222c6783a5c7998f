import math
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.strategies import SEEDS
from transfervae.backbones import feature_spec
from transfervae.backbones.feature_spec import FUSIONS, FeatureSpec, Node
from transfervae.errors import ImageSizeError, InvalidOptionError, ShapeError, TransferVAEError, UnknownNameError

GRIDS = st.tuples(st.integers(1, 9), st.integers(1, 9))


def parse(node: Any = 0, *, fuse: str = "concat", grid: Any = None, norm: bool = False) -> FeatureSpec:
    return FeatureSpec.parse(node, fuse=fuse, grid=grid, norm=norm)


def triangle(length: int, target: int) -> Tensor:
    """Weights `[target, length]` of linear resampling by definition: triangles as wide as the coarser grid's step."""
    scale = length / target
    width = max(scale, 1)
    rows = []
    for cell in range(target):
        centre = (cell + 0.5) * scale
        row = [max(0.0, 1 - abs((position + 0.5 - centre) / width)) for position in range(length)]
        rows.append([weight / math.fsum(row) for weight in row])
    return torch.tensor(rows, dtype=torch.float64)


def resample(features: Tensor, grid: tuple[int, int]) -> Tensor:
    rows, columns = triangle(features.shape[2], grid[0]), triangle(features.shape[3], grid[1])
    return torch.einsum("yh,xw,bchw->bcyx", rows, columns, features.double()).to(features.dtype)


@pytest.mark.parametrize(
    ("node", "nodes"),
    [
        (None, ()),
        (0, (0,)),
        (-1, (-1,)),
        ("block5_pool", ("block5_pool",)),
        ([1, 2], (1, 2)),
        (("b", "a"), ("b", "a")),
        (range(3), (0, 1, 2)),
        (["only"], ("only",)),
    ],
)
def test_one_node_or_several_are_read_in_their_order(node: Any, nodes: tuple[Node, ...]) -> None:
    spec = parse(node)
    assert spec.nodes == nodes
    assert spec.or_at("default").nodes == (nodes or ("default",))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"node": ()}, InvalidOptionError, r"got \(\)"),
        ({"node": []}, InvalidOptionError, r"got \[\]"),
        ({"node": (1, 1)}, InvalidOptionError, r"twice, got \(1, 1\)"),
        ({"node": (1, "1")}, InvalidOptionError, "twice"),
        ({"node": ["a", "b", "a"]}, InvalidOptionError, "twice"),
        ({"node": 1.5}, InvalidOptionError, r"got 1\.5"),
        ({"node": (1, None)}, InvalidOptionError, "None"),
        ({"node": True}, InvalidOptionError, "True"),
        ({"fuse": "concatenate"}, UnknownNameError, "way to fuse nodes 'concatenate'.*Did you mean 'concat'"),
        ({"fuse": "max"}, UnknownNameError, "Known: concat, sum, mean"),
        ({"grid": 0}, ImageSizeError, "0"),
        ({"grid": (2, -1)}, ImageSizeError, "-1"),
        ({"grid": (1, 2, 3)}, ImageSizeError, r"\(1, 2, 3\)"),
    ],
)
@pytest.mark.usefixtures("without_shape_checks")
def test_options_that_cannot_work_are_refused(
    options: dict[str, Any], error: type[TransferVAEError], words: str
) -> None:
    with pytest.raises(error, match=words):
        parse(**options)


def test_options_hold_what_differs_from_reading_one_node_as_it_is() -> None:
    assert parse(0).options == {}
    assert parse(0, fuse="sum").options == {}
    assert parse((0, 1), fuse="sum", grid=4, norm=True).options == {"fuse": "sum", "grid": [4, 4], "norm": True}
    assert parse((0, 1)).options == {"fuse": "concat"}
    assert parse(0).node == 0
    assert parse((0, 1)).node == (0, 1)


def test_a_reading_cannot_be_changed() -> None:
    spec: Any = parse()
    with pytest.raises(FrozenInstanceError):
        spec.nodes = (1,)
    table: Any = FUSIONS
    with pytest.raises(TypeError):
        table["max"] = max


def test_norm_is_refused_by_those_that_have_none() -> None:
    assert parse().without_norm("vgg19") == parse()
    with pytest.raises(InvalidOptionError, match="vgg19 has no final normalisation"):
        parse(norm=True).without_norm("vgg19")


@given(
    grids=st.lists(GRIDS, min_size=1, max_size=4), grid=st.none() | GRIDS, fuse=st.sampled_from([*FUSIONS]), seed=SEEDS
)
def test_maps_are_resampled_and_fused_as_by_hand(
    grids: list[tuple[int, int]], grid: tuple[int, int] | None, fuse: str, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    maps = [torch.randn(2, 3, *sides, generator=generator) for sides in grids]
    resampled = [resample(features, grid or grids[0]) for features in maps]
    oracles = {
        "concat": lambda: torch.cat(resampled, dim=1),
        "sum": lambda: sum(resampled[1:], start=resampled[0]),
        "mean": lambda: sum(resampled[1:], start=resampled[0]) / len(resampled),
    }
    spec = parse(range(len(maps)), fuse=fuse, grid=grid)
    torch.testing.assert_close(spec.combine(maps), oracles[fuse](), rtol=1e-4, atol=1e-5)


def test_one_map_on_its_own_grid_is_the_very_map() -> None:
    features = torch.rand(1, 2, 3, 4)
    assert parse(0).combine([features]) is features


@given(grid=st.tuples(st.integers(1, 4), st.integers(1, 4)), factor=st.integers(2, 5))
def test_every_cell_counts_alike_where_the_grid_gets_coarser(grid: tuple[int, int], factor: int) -> None:
    height, width = grid
    features = torch.zeros(1, 1, factor * height, factor * width, requires_grad=True)
    parse(0, grid=grid).combine([features]).sum().backward()
    assert features.grad is not None
    assert (features.grad > 0).all()
    torch.testing.assert_close(features.grad.sum(), torch.tensor(float(height * width)))
    constant = torch.full((1, 1, factor * height, factor * width), 0.7)
    torch.testing.assert_close(parse(0, grid=grid).combine([constant]), torch.full((1, 1, *grid), 0.7))


@pytest.mark.parametrize("fuse", ["sum", "mean"])
def test_other_widths_are_named(fuse: str) -> None:
    spec = parse(("first", 7), fuse=fuse)
    message = f"fuse='{fuse}' needs nodes of equal width, got 2 at first, 5 at 7 channels; use fuse='concat'"
    with pytest.raises(ShapeError, match=message):
        spec.check_widths([2, 5])
    with pytest.raises(ShapeError, match=message):
        spec.combine([torch.zeros(1, 2, 3, 3), torch.zeros(1, 5, 3, 3)])
    spec.check_widths([5, 5])
    parse(("first", 7)).check_widths([2, 5])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("grid", [(3, 5), (9, 1), (16, 12)])
def test_half_precision_is_resampled_as_full_precision_is(dtype: torch.dtype, grid: tuple[int, int]) -> None:
    features = torch.randn(2, 3, 9, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = feature_spec.resample(features.float(), grid).to(dtype)
    assert torch.equal(feature_spec.resample(features, grid), expected)
