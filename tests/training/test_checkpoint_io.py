from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from transfervae.errors import CheckpointError
from transfervae.training._checkpoint_io import SafetensorsIO

tensors = st.tuples(
    st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool]), st.lists(st.integers(0, 3), max_size=3)
).map(lambda spec: torch.arange(torch.Size(spec[1]).numel()).reshape(spec[1]).to(spec[0]))
plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
keys = st.text() | st.integers()
trees = st.recursive(
    plain | tensors,
    lambda inner: (
        st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple) | st.dictionaries(keys, inner, max_size=3)
    ),
    max_leaves=8,
)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return bool(one == other) and type(one) is type(other)


@given(checkpoint=st.dictionaries(st.text(), trees, max_size=4))
def test_what_is_written_is_read(checkpoint: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("checkpoints") / "last.safetensors"
    SafetensorsIO().save_checkpoint(checkpoint, path)
    assert same(SafetensorsIO().load_checkpoint(path), checkpoint)


def test_what_is_neither_plain_nor_a_tensor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="Path"):
        SafetensorsIO().save_checkpoint({"place": tmp_path}, tmp_path / "last.safetensors")
    assert not list(tmp_path.iterdir())


def test_an_optimiser_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    SafetensorsIO().save_checkpoint({"optimizer": optimizer.state_dict()}, tmp_path / "a.safetensors")
    other = torch.optim.Adam(layer.parameters())
    other.load_state_dict(SafetensorsIO().load_checkpoint(tmp_path / "a.safetensors")["optimizer"])
    assert same(other.state_dict(), optimizer.state_dict())


def test_a_model_file_is_no_checkpoint_of_a_run(tmp_path: Path) -> None:
    from transfervae.files import write_tensors

    write_tensors(tmp_path / "model.safetensors", {"weight": torch.zeros(2)})
    with pytest.raises(CheckpointError, match="no checkpoint of a run"):
        SafetensorsIO().load_checkpoint(tmp_path / "model.safetensors")


def test_removing_is_forgiving(tmp_path: Path) -> None:
    SafetensorsIO().remove_checkpoint(tmp_path / "nothing.safetensors")
