"""Models on the Hub, against a stand-in for it on this machine that speaks as much of its protocol as is used."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import beitkit
from beitkit.cli import main
from beitkit.configs.model import BackboneConfig, ClassifierConfig
from beitkit.configs.tokenizer import DVAEConfig
from beitkit.errors import UserError
from beitkit.interop import hub


class StandIn(ThreadingHTTPServer):
    """Models by name, and every request that came."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.models: dict[str, dict[str, bytes]] = {}
        self.requests: list[str] = []
        self.private: dict[str, bool] = {}

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: StandIn
    COMMIT = "0123456789abcdef0123456789abcdef01234567"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_POST(self) -> None:
        self.server.requests.append(f"POST {self.path}")
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            self.server.models.setdefault(name, {})
            self.server.private.setdefault(name, asked.get("private") or asked.get("visibility") == "private")
            return self._json({"url": f"{self.server.address}/{name}"})
        if self.path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        _, _, _, user, name, action, *_ = self.path.split("/")
        if action == "preupload":
            files = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]
            return self._json({"files": files})
        for line in body.splitlines():
            item = json.loads(line)
            if item["key"] == "file":
                self.server.models[f"{user}/{name}"][item["value"]["path"]] = base64.b64decode(item["value"]["content"])
        url = f"{self.server.address}/{user}/{name}/commit/{self.COMMIT}"
        return self._json({"commitUrl": url, "commitOid": self.COMMIT, "pullRequestUrl": None})

    def do_GET(self) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        parts = self.path.partition("?")[0].strip("/").split("/")
        name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        files = self.server.models.get(name)
        if files is None:
            return self._missing("RepoNotFound")
        if parts[0] == "api" and parts[4] == "tree":
            return self._json(
                [{"type": "file", "path": path, "size": len(data), "oid": sha1(data).hexdigest()} for path, data in files.items()]
            )
        if parts[0] == "api":
            if parts[4:] not in ([], ["revision", "main"], ["revision", self.COMMIT]):
                return self._missing("RevisionNotFound")
            return self._json({"id": name, "sha": self.COMMIT, "siblings": [{"rfilename": path} for path in files]})
        data = files.get("/".join(parts[4:]))
        if data is None:
            return self._missing("EntryNotFound")
        return self._answer(200, data, {"ETag": f'"{sha1(data).hexdigest()}"', "X-Repo-Commit": self.COMMIT})

    def do_HEAD(self) -> None:
        self.do_GET()

    def _json(self, content: Any) -> None:
        self._answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _missing(self, code: str) -> None:
        self._answer(404, b"{}", {"X-Error-Code": code})

    def _answer(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(data))}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StandIn]:
    constants = pytest.importorskip("huggingface_hub.constants")
    server = StandIn()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_stand_in")
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    hub._downloaded.cache_clear()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()
    hub._downloaded.cache_clear()


def classifier() -> beitkit.Classifier:
    torch.manual_seed(0)
    backbone = BackboneConfig.named("nano/16", image_size=32, relative_positions="per_block", final_norm=False)
    return beitkit.Classifier(ClassifierConfig(backbone=backbone, classes=("cat", "dog"))).eval()


def command(*arguments: object) -> object:
    with pytest.raises(SystemExit) as stopped:
        main([*map(str, arguments)])
    return stopped.value.code


def test_a_model_goes_to_the_hub_and_comes_back(stand_in: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = classifier()
    beitkit.save(model, tmp_path / "cls")
    assert (
        command("export", "--model", tmp_path / "cls", "--format", "huggingface", "--out", tmp_path / "out", "--push", "ada/cats")
        == 0
    )
    assert "pushed: hf://ada/cats" in capsys.readouterr().out
    assert stand_in.private == {"ada/cats": True}
    files = stand_in.models["ada/cats"]
    assert set(files) == {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}
    card = files["README.md"].decode()
    assert [title for title in ("## Data", "## Compute", "## Evaluation", "## Limits") if title not in card] == []
    assert str(tmp_path) not in card

    again = beitkit.load("hf://ada/cats")
    assert isinstance(again, beitkit.Classifier)
    assert again.config.classes == ("cat", "dog")
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(again(images), model(images))
    assert command("inspect", "hf://ada/cats") == 0  # by the command line, which makes a `Path` of it
    asked = len(stand_in.requests)
    beitkit.load("hf://ada/cats", task="classify", num_classes=3)
    assert len(stand_in.requests) == asked, "one process asks once"


def test_tokenizers_and_single_files(stand_in: StandIn, tmp_path: Path) -> None:
    tokenizer = beitkit.DiscreteVAE(DVAEConfig(vocabulary=8, stride=4, hidden=16, codebook_dim=8))
    beitkit.save(tokenizer, tmp_path / "tok")
    stand_in.models["ada/tok"] = {path.name: path.read_bytes() for path in (tmp_path / "tok").iterdir()}
    assert beitkit.load_tokenizer("hf://ada/tok").fingerprint == beitkit.load_tokenizer(tmp_path / "tok").fingerprint
    beitkit.save(classifier(), tmp_path / "cls.pth", format="microsoft")
    stand_in.models["ada/pth"] = {"old/cls.pth": (tmp_path / "cls.pth").read_bytes(), "big.bin": b"not to be fetched"}
    assert isinstance(beitkit.load("hf://ada/pth@main/old/cls.pth"), beitkit.Classifier)
    assert not any("big.bin" in request for request in stand_in.requests)


def test_safetensors_are_preferred_and_folders_left_out(stand_in: StandIn, tmp_path: Path) -> None:
    beitkit.save(classifier(), tmp_path / "cls", format="huggingface")
    files = {path.name: path.read_bytes() for path in (tmp_path / "cls").iterdir()}
    stand_in.models["ada/two"] = files | {"pytorch_model.bin": b"0", "onnx/model.safetensors": b"0"}
    assert isinstance(beitkit.load("hf://ada/two"), beitkit.Classifier)
    assert not any("pytorch_model" in request or "/onnx/" in request for request in stand_in.requests if "resolve" in request)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("hf://ada", "is not a model on the Hub; expected hf://USER/NAME"),
        ("hf://ada/nothing", "is not on the Hub, or not for you to see"),
        ("hf://ada/there@nowhere", "no such branch, tag or commit"),
        ("hf://ada/there/no.pth", "no such file"),
        ("hf://ada/there", "gives no checkpoint that beitkit knows"),
    ],
)
def test_mistakes_are_one_line(stand_in: StandIn, address: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    stand_in.models["ada/there"] = {"notes.txt": b""}
    assert command("inspect", address) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.strip().splitlines()[-1].startswith("beitkit: ")


def test_what_was_fetched_is_there_without_the_hub(stand_in: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beitkit.save(classifier(), tmp_path / "cls")
    stand_in.models["ada/cats"] = {path.name: path.read_bytes() for path in (tmp_path / "cls").iterdir()}
    beitkit.load("hf://ada/cats")
    monkeypatch.setattr(pytest.importorskip("huggingface_hub.constants"), "HF_HUB_OFFLINE", True)
    hub._downloaded.cache_clear()
    asked = len(stand_in.requests)
    beitkit.load("hf://ada/cats")
    with pytest.raises(UserError, match="the Hub cannot be reached, or is not to be"):
        beitkit.load("hf://ada/dogs")
    assert len(stand_in.requests) == asked


def test_nothing_is_asked_of_the_hub_unless_it_is_named(
    stand_in: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden() -> ModuleType:
        raise AssertionError("the Hub was asked")

    monkeypatch.setattr(hub, "_library", forbidden)
    beitkit.save(classifier(), tmp_path / "cls")
    beitkit.load(tmp_path / "cls")
    assert command("export", "--model", tmp_path / "cls", "--format", "native", "--out", tmp_path / "out") == 0
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hf:" / "ada").mkdir(parents=True)
    beitkit.save(classifier(), tmp_path / "hf:" / "ada" / "cls")
    assert isinstance(beitkit.load("hf:/ada/cls"), beitkit.Classifier), "what is on the disk comes first"
    assert stand_in.requests == []


def test_pushing_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    beitkit.save(classifier(), tmp_path / "cls")
    for options, expected in (
        (["--format", "native", "--push", "cats"], "--push expects USER/NAME"),
        (["--format", "microsoft", "--push", "ada/cats"], "--push uploads folders"),
    ):
        assert command("export", "--model", tmp_path / "cls", "--out", tmp_path / "out", *options) == 2
        assert expected in capsys.readouterr().err
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    assert (
        command("export", "--model", tmp_path / "cls", "--format", "native", "--out", tmp_path / "out", "--push", "ada/cats") == 2
    )
    assert "pip install 'beitkit[hub]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
