import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import save_file

from transfervae.backbones.pretrained import read_pretrained
from transfervae.errors import CheckpointError, WeightsUnavailableError

CONFIG = {"width": 3}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def write_model(folder: Path, *, subfolder: str = "") -> Path:
    (folder / subfolder).mkdir(parents=True, exist_ok=True)
    (folder / subfolder / "config.json").write_text(json.dumps(CONFIG))
    save_file({"weight": torch.arange(3.0)}, folder / subfolder / "diffusion_pytorch_model.safetensors")
    return folder


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    return tmp_path / "hub"


def put_in_cache(cache: Path, name: str, *, subfolder: str = "", revision: str = "main") -> Path:
    repository = cache / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / revision).write_text(COMMIT)
    return write_model(repository / "snapshots" / COMMIT, subfolder=subfolder)


def write_shards(folder: Path, places: dict[str, str] | None = None) -> Path:
    """A model whose tensors lie in two files, with the index that diffusers writes."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    for number in (1, 2):
        save_file({f"tensor{number}": torch.full((2,), float(number))}, folder / f"part-{number}.safetensors")
    known = {f"tensor{number}": f"part-{number}.safetensors" for number in (1, 2)}
    index = {"metadata": {"total_size": 16}, "weight_map": known if places is None else places}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_a_model_in_shards_is_read_from_a_folder_and_from_the_hub(tmp_path: Path, hub_cache: Path) -> None:
    snapshot = put_in_cache(hub_cache, "owner/name")
    (snapshot / "diffusion_pytorch_model.safetensors").unlink()
    write_shards(snapshot)
    for source in (write_shards(tmp_path / "model"), "owner/name"):
        config, state = read_pretrained(source)
        assert config == CONFIG
        assert {name: value.tolist() for name, value in state.items()} == {"tensor1": [1, 1], "tensor2": [2, 2]}


@pytest.mark.parametrize(
    ("places", "words"),
    [
        ({"tensor1": "../part-1.safetensors"}, "no safetensors file beside it"),
        ({"tensor1": "/etc/passwd"}, "no safetensors file beside it"),
        ({"tensor1": ".."}, "no safetensors file beside it"),
        ({"tensor1": "config.json"}, "no safetensors file beside it"),
        ({"tensor1": "part-3.safetensors"}, r"There is no part-3\.safetensors beside"),
        ({"tensor1": "part-2.safetensors"}, "lacks tensor1"),
        ({"tensor1": 5}, "no index"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(places: dict[str, str], words: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=words):
        read_pretrained(write_shards(tmp_path / "model", places))


def test_shards_are_preferred_to_a_torch_file(tmp_path: Path) -> None:
    torch.save({"other": torch.zeros(1)}, write_shards(tmp_path) / "diffusion_pytorch_model.bin")
    assert set(read_pretrained(tmp_path).state) == {"tensor1", "tensor2"}


def test_a_shard_that_the_hub_s_cache_lacks_is_named(hub_cache: Path) -> None:
    snapshot = put_in_cache(hub_cache, "owner/name")
    (snapshot / "diffusion_pytorch_model.safetensors").unlink()
    (write_shards(snapshot) / "part-2.safetensors").unlink()
    with pytest.raises(WeightsUnavailableError, match=r"part-2\.safetensors of 'owner/name' is not in the Hub's cache"):
        read_pretrained("owner/name")


def test_a_revision_is_read_and_not_taken_for_another(hub_cache: Path) -> None:
    put_in_cache(hub_cache, "owner/name", revision="v2")
    assert read_pretrained("owner/name@v2").config == read_pretrained("owner/name", revision="v2").config == CONFIG
    with pytest.raises(WeightsUnavailableError):
        read_pretrained("owner/name@v3")


def test_what_is_in_memory_is_given_as_it_is() -> None:
    state = {"weight": torch.zeros(2)}
    assert read_pretrained((CONFIG, state)) == (CONFIG, state)


@pytest.mark.parametrize("subfolder", ["", "vae"])
def test_a_name_needs_no_network_once_cached(hub_cache: Path, subfolder: str) -> None:
    put_in_cache(hub_cache, "owner/name", subfolder=subfolder)
    config, state = read_pretrained("owner/name", subfolder=subfolder)
    assert config == CONFIG
    assert state["weight"].tolist() == [0, 1, 2]


@pytest.mark.usefixtures("hub_cache")
@pytest.mark.parametrize("offline", [False, True])
def test_without_a_network_a_name_gives_an_error_within_seconds(
    monkeypatch: pytest.MonkeyPatch, *, offline: bool
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    started = time.monotonic()
    reason = "HF_HUB_OFFLINE is set" if offline else "127.0.0.1:9 cannot be reached"
    with pytest.raises(WeightsUnavailableError, match=rf"'owner/name'.*{reason}\. Download the model where"):
        read_pretrained("owner/name")
    assert time.monotonic() - started < 9


def test_a_cached_configuration_without_weights_is_no_model(hub_cache: Path) -> None:
    put_in_cache(hub_cache, "owner/name")
    next(hub_cache.rglob("*.safetensors")).unlink()
    with pytest.raises(WeightsUnavailableError, match=r"diffusion_pytorch_model\.safetensors of 'owner/name'"):
        read_pretrained("owner/name")


@pytest.mark.parametrize("source", ["no folder", "/nowhere/at/all", "one", "a/b/c"])
def test_what_is_neither_folder_nor_name_is_refused(source: str) -> None:
    with pytest.raises(CheckpointError, match=re.escape(f"There is no folder {source!r}; give a folder that holds")):
        read_pretrained(source)


def test_a_path_is_never_looked_for_on_the_hub() -> None:
    with pytest.raises(CheckpointError, match="There is no folder 'owner/name'"):
        read_pretrained(Path("owner/name"))


@pytest.mark.usefixtures("hub_cache")
def test_a_name_that_the_hub_does_not_allow_is_refused() -> None:
    with pytest.raises(CheckpointError, match="'owner/na--me' is neither a folder nor a name"):
        read_pretrained("owner/na--me")


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub as fetching a file needs."""

    files: Path
    asked: list[str]

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def _answer(self, *, body: bool) -> None:
        prefix = f"/owner/name/resolve/{'v2' if '/v2/' in self.path else 'main'}/"
        self.asked.append(self.path)
        file = self.files / self.path.removeprefix(prefix)
        if self.path == "/":
            self.send_response(200)
            self.end_headers()
        elif self.path.startswith(prefix) and file.is_file():
            content = file.read_bytes()
            self.send_response(200)
            self.send_header("ETag", f'"{len(content):040x}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                self.wfile.write(content)
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound" if self.path.startswith(prefix) else "RepoNotFound")
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", "0")
            self.end_headers()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    Hub.files, Hub.asked = write_model(tmp_path / "served"), []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


PROGRAM = """
from transfervae.errors import TransferVAEError
from transfervae.backbones.pretrained import read_pretrained
NAME = "owner/name"
for name, subfolder in ((NAME, ""), (NAME, ""), (NAME, "vae"), ("owner/other", ""), (f"{NAME}@v2", "")):
    try:
        config, state = read_pretrained(name, subfolder=subfolder)
        print(config, state["weight"].tolist())
    except TransferVAEError as error:
        print(type(error).__name__, error)
"""


def test_a_name_is_fetched_once(hub: str, tmp_path: Path) -> None:
    environment = {**os.environ, "HF_ENDPOINT": hub, "HF_HUB_CACHE": str(tmp_path / "hub"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    first, second, subfolder, other, revision = done.stdout.splitlines()
    assert first == second == "{'width': 3} [0.0, 1.0, 2.0]"
    assert subfolder == "CheckpointError 'owner/name' on the Hub holds no vae/config.json; is it in a subfolder?"
    assert other.startswith("WeightsUnavailableError config.json of 'owner/other' is not in the Hub's cache")
    assert revision == first
    assert any(path.startswith("/owner/name/resolve/v2/config.json") for path in Hub.asked)
    fetched = [path for path in Hub.asked if path.endswith("main/diffusion_pytorch_model.safetensors")]
    assert len(fetched) <= 2  # its head and its body
    assert not any(path.endswith(".bin") for path in Hub.asked)
