import hashlib
import os
import pickle
import socket
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn
from torch.testing import assert_close

from transfervae import create_backbone
from transfervae.backbones import _weights as weights_module
from transfervae.backbones._weights import describe_misfits, fetch_weights, load_strictly, read_weights
from transfervae.errors import CheckpointError, WeightsMismatchError, WeightsUnavailableError

NOWHERE = "http://127.0.0.1:9/models/net-0123abcd.pth"
SECONDS = 10.0
STATE = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor([1, 2])}


class Code:
    """A pickle of this runs code when it is loaded carelessly."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty torch cache."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        connections = []

        def accept() -> None:
            while True:
                try:
                    connections.append(server.accept()[0])
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        for connection in connections:
            connection.close()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def file_server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """Serves a folder."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = partial(QuietHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", folder
        server.shutdown()
        thread.join()


def publish(folder: Path) -> str:
    """Put weights into a served folder under a name that carries their hash."""
    torch.save(STATE, folder / "net.pth")
    content = (folder / "net.pth").read_bytes()
    name = f"net-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    (folder / "net.pth").rename(folder / name)
    return name


def fetch_timed(url: str) -> str:
    start = time.monotonic()
    with pytest.raises(WeightsUnavailableError) as caught:
        fetch_weights(url, owner="Net")
    assert time.monotonic() - start < SECONDS
    return str(caught.value)


@pytest.mark.parametrize("suffix", ["pth", "pt", "safetensors", "bin"])
def test_both_formats_are_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights.{suffix}"
    if suffix == "safetensors":
        save_file(STATE, path)
    else:
        torch.save(STATE, path)
    for given_path in (path, str(path)):
        assert_close(read_weights(given_path), STATE, rtol=0, atol=0)


def test_a_state_dict_inside_a_training_checkpoint_is_found(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "state_dict": STATE}, tmp_path / "weights.pth")
    assert_close(read_weights(tmp_path / "weights.pth"), STATE, rtol=0, atol=0)


@pytest.mark.parametrize("content", [[1, 2], {"a": 3}, torch.zeros(2), {"state_dict": {"a": 3}}, "text"])
def test_a_file_that_holds_no_state_dict_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match="holds no state dict"):
        read_weights(tmp_path / "weights.pth")


def test_a_pickle_that_would_run_code_is_refused_unrun(tmp_path: Path) -> None:
    made = tmp_path / "made by code"
    torch.save({"a": Code(made)}, tmp_path / "weights.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"a": Code(made)}, protocol=2))
    for name in ("weights.pth", "plain.pth"):
        with pytest.raises(CheckpointError, match=name):
            create_backbone("vgg19", node="block1_pool", weights=tmp_path / name)
    assert not made.exists()


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@given(data=st.data())
def test_a_file_cut_anywhere_is_refused_by_name(tmp_path: Path, suffix: str, data: st.DataObject) -> None:
    path = tmp_path / f"weights.{suffix}"
    save_file(STATE, path) if suffix == "safetensors" else torch.save(STATE, path)
    content = path.read_bytes()
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(CheckpointError, match=rf"weights\.{suffix}"):
        read_weights(path)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@given(content=st.binary(max_size=64))
def test_garbage_is_refused_by_name(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"weights.{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"weights\.{suffix}"):
        read_weights(path)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_missing_file_and_a_folder_are_refused_by_name(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"folder.{suffix}").mkdir()
    for name in (f"folder.{suffix}", f"missing.{suffix}"):
        with pytest.raises(CheckpointError, match=f"There is no weights file .*{name}"):
            read_weights(tmp_path / name)


@given(missing=st.integers(0, 2), unexpected=st.integers(0, 2), misshapen=st.booleans())
def test_misfits_are_named_counted_and_nothing_is_loaded(missing: int, unexpected: int, misshapen: bool) -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = {name: value + 1 for name, value in before.items()}
    for name in list(state)[:missing]:
        del state[name]
    state |= {f"more{i}": torch.zeros(1) for i in range(unexpected)}
    if misshapen:
        state["1.bias"] = torch.zeros(9)
    if missing + unexpected + misshapen == 0:
        load_strictly(network, state, owner="Net")
        assert all(torch.equal(value, before[name] + 1) for name, value in network.state_dict().items())
        return
    with pytest.raises(WeightsMismatchError, match="do not fit Net") as caught:
        load_strictly(network, state, owner="Net")
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    total = missing + unexpected + misshapen
    named = sum(str(caught.value).count(word) for word in ("is missing", "is not expected", "instead of"))
    assert named == min(total, 3)
    assert (f"and {total - 3} more" in str(caught.value)) == (total > 3)


def test_misfits_are_described_in_order() -> None:
    assert describe_misfits("Net", ["a", "b"]) == "The weights do not fit Net: a; b."
    assert describe_misfits("Net", list("abcde")) == "The weights do not fit Net: a; b; c, and 2 more."


def test_a_closed_port_is_an_error_within_seconds_that_names_the_way_out(cache: Path) -> None:
    message = fetch_timed(NOWHERE)
    for part in ("Net", "net-0123abcd.pth", str(cache), "127.0.0.1:9", "weights=PATH"):
        assert part in message


def test_a_server_that_never_answers_is_an_error_within_seconds(cache: Path, silent_server: str) -> None:
    assert str(cache) in fetch_timed(f"{silent_server}/net-0123abcd.pth")


def test_an_unknown_host_is_an_error_within_seconds(cache: Path) -> None:
    assert str(cache) in fetch_timed("http://no-such-host.invalid/net-0123abcd.pth")


def test_a_missing_page_is_an_error(cache: Path, file_server: tuple[str, Path]) -> None:
    assert str(cache) in fetch_timed(f"{file_server[0]}/net-0123abcd.pth")


def test_cached_weights_need_no_server(cache: Path) -> None:
    cache.mkdir(parents=True)
    torch.save(STATE, cache / "net-0123abcd.pth")
    assert_close(fetch_weights(NOWHERE, owner="Net"), STATE, rtol=0, atol=0)


@pytest.mark.usefixtures("cache")
def test_weights_are_fetched_once_and_kept(file_server: tuple[str, Path], capfd: pytest.CaptureFixture[str]) -> None:
    address, folder = file_server
    name = publish(folder)
    assert_close(fetch_weights(f"{address}/{name}", owner="Net"), STATE, rtol=0, atol=0)
    (folder / name).unlink()
    assert_close(fetch_weights(f"{address}/{name}", owner="Net"), STATE, rtol=0, atol=0)
    capfd.readouterr()


def test_several_threads_fetch_once(cache: Path, file_server: tuple[str, Path]) -> None:
    address, folder = file_server
    name = publish(folder)
    results: list[Any] = []
    threads = [
        threading.Thread(target=lambda: results.append(fetch_weights(f"{address}/{name}", owner="Net")))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert {path.name for path in cache.iterdir()} <= {name, f"{name}.lock"}


def test_a_fetched_file_with_a_wrong_hash_is_an_error_and_not_kept(cache: Path, file_server: tuple[str, Path]) -> None:
    address, folder = file_server
    (folder / "net-00000000.pth").write_bytes(b"something else")
    with pytest.raises(WeightsUnavailableError, match="net-00000000"):
        fetch_weights(f"{address}/net-00000000.pth", owner="Net")
    assert not (cache / "net-00000000.pth").exists()


def test_vgg19_s_default_weights_out_of_reach_are_an_error_within_seconds(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.models import VGG19_Weights

    file = Path(VGG19_Weights.IMAGENET1K_V1.url).name
    monkeypatch.setattr(weights_module, "require_reachable", partial(redirect, weights_module.require_reachable))
    start = time.monotonic()
    with pytest.raises(WeightsUnavailableError, match=r"weights=PATH") as caught:
        create_backbone("vgg19", node="block1_pool")
    assert time.monotonic() - start < SECONDS
    assert file in str(caught.value)
    assert str(cache) in str(caught.value)


def redirect(ask: Any, _: str, **options: Any) -> None:
    ask(NOWHERE, **options)


@pytest.mark.parametrize("name", ["timm:test_resnet", "timm:test_resnet.r160_in1k"])
def test_timm_s_default_weights_out_of_reach_are_an_error_within_seconds(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.file_download, "HF_HUB_CACHE", str(tmp_path), raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    start = time.monotonic()
    with pytest.raises(WeightsUnavailableError, match=r"weights=PATH") as caught:
        create_backbone(name)
    assert time.monotonic() - start < SECONDS
    assert "model.safetensors" in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "127.0.0.1:9" in str(caught.value)


@pytest.mark.parametrize("wrapping", ["state_dict", "model"])
def test_tensors_are_found_beside_an_optimiser_s_state(wrapping: str, tmp_path: Path) -> None:
    torch.save({wrapping: {"weight": torch.ones(2)}, "epoch": 3}, tmp_path / "checkpoint.pth")
    assert torch.equal(read_weights(tmp_path / "checkpoint.pth")["weight"], torch.ones(2))


def test_a_file_that_would_run_code_is_refused_without_advice_to_run_it(tmp_path: Path) -> None:
    torch.save({"weight": Path("harmless")}, tmp_path / "code.pth")
    with pytest.raises(CheckpointError, match="what would run code is never loaded") as caught:
        read_weights(tmp_path / "code.pth")
    assert "weights_only" not in str(caught.value)
