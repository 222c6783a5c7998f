import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch.testing import assert_close

from transfervae.errors import CheckpointError, FileWriteError
from transfervae.files import (
    read_json,
    read_tensors,
    write_atomically,
    write_json,
    write_tensors,
)

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(7), "c": torch.rand(4).to(torch.bfloat16)}

WRITE_BEYOND_THE_LIMIT = """
import resource, signal, sys
from pathlib import Path
from transfervae.files import write_atomically
from transfervae.errors import FileWriteError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_atomically(Path(sys.argv[1]), b"x" * 100_000)
except FileWriteError as error:
    print(error)
"""

WRITE_FOR_EVER = """
import sys
from pathlib import Path
from transfervae.files import write_atomically
turn = 0
while True:
    write_atomically(Path(sys.argv[1]), bytes([turn % 256]) * 300_000)
    turn += 1
    if turn == 3:
        print("writing", flush=True)
"""


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@given(content=st.binary(max_size=100))
def test_a_written_file_holds_its_content_and_nothing_else_is_left(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "new" / "folder" / "file.bin"
    write_atomically(path, content)
    write_atomically(path, content + b"!")
    assert path.read_bytes() == content + b"!"
    assert names_in(path.parent) == ["file.bin"]


def test_a_write_that_fails_half_way_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    command = [sys.executable, "-c", WRITE_BEYOND_THE_LIMIT, str(path)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"{str(path)!r} cannot be written" in run.stdout
    assert path.read_bytes() == b"old"
    assert names_in(tmp_path) == ["file.bin"]


def test_a_folder_in_the_place_of_the_file_is_an_error_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "file.bin" / "inner").mkdir(parents=True)
    with pytest.raises(FileWriteError, match=r"file\.bin"):
        write_atomically(tmp_path / "file.bin", b"new")
    assert names_in(tmp_path) == ["file.bin"]


def test_a_file_in_the_place_of_the_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "folder").write_bytes(b"old")
    with pytest.raises(FileWriteError, match="cannot be written"):
        write_atomically(tmp_path / "folder" / "file.bin", b"new")
    assert (tmp_path / "folder").read_bytes() == b"old"


def test_a_killed_process_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    for _ in range(2):
        command = [sys.executable, "-c", WRITE_FOR_EVER, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"writing\n"
            os.kill(process.pid, signal.SIGKILL)
        content = path.read_bytes()
        assert len(content) == 300_000
        assert len(set(content)) == 1


def test_json_round_trips(tmp_path: Path) -> None:
    values = {"name": "ünï", "numbers": [1, 2.5, None], "nested": {"yes": True}}
    write_json(tmp_path / "file.json", values)
    assert read_json(tmp_path / "file.json") == values


@pytest.mark.parametrize("content", [b"", b"{", b"[1, 2]", b'"text"', b"\xff\xfe\x00", b"null"])
def test_a_file_without_a_json_object_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"file\.json"):
        read_json(tmp_path / "file.json")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"There is no file\.json"):
        read_json(tmp_path / "file.json")
    with pytest.raises(CheckpointError, match=r"There is no file\.safetensors"):
        read_tensors(tmp_path / "file.safetensors")


def test_tensors_round_trip_with_their_types_and_text(tmp_path: Path) -> None:
    write_tensors(tmp_path / "file.safetensors", TENSORS, plain='{"step": 3, "text": "a  b"}')
    tensors, plain = read_tensors(tmp_path / "file.safetensors")
    assert plain == '{"step": 3, "text": "a  b"}'
    assert_close(tensors, TENSORS, rtol=0, atol=0)


def test_shared_and_strided_tensors_are_stored(tmp_path: Path) -> None:
    base = torch.rand(4, 4, requires_grad=True)
    tensors = {"base": base, "again": base, "transposed": base.t(), "nhwc": torch.rand(1, 3, 2, 2).permute(0, 2, 3, 1)}
    write_tensors(tmp_path / "file.safetensors", tensors)
    read, plain = read_tensors(tmp_path / "file.safetensors")
    assert plain == ""
    assert_close(read, {name: tensor.detach() for name, tensor in tensors.items()}, rtol=0, atol=0)


def test_the_same_tensors_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("first", "second"):
        write_tensors(tmp_path / name, TENSORS, plain="text")
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


def test_a_foreign_safetensors_file_is_refused(tmp_path: Path) -> None:
    for metadata in (None, {"format": "pt"}, {"transfervae_format": "999"}):
        save_file(TENSORS, tmp_path / "file.safetensors", metadata)
        with pytest.raises(CheckpointError, match="not written by this version"):
            read_tensors(tmp_path / "file.safetensors")


@given(data=st.data())
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "file.safetensors"
    write_tensors(path, TENSORS)
    content = path.read_bytes()
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(CheckpointError, match=r"file\.safetensors"):
        read_tensors(path)


@given(content=st.binary(max_size=64))
def test_garbage_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError):
        read_tensors(tmp_path / "file.safetensors")
