"""What the Hub answers for a model that it does not give: the client's own code, a server here."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar
from urllib.parse import unquote

import pytest

ANSWERS: dict[str, tuple[int, dict[str, str]]] = {
    "gated/asked": (401, {"X-Error-Code": "GatedRepo"}),
    "gated/denied": (403, {"X-Error-Code": "GatedRepo"}),
    "no/where": (404, {"X-Error-Code": "RepoNotFound"}),
    "private/one": (401, {}),
    "bad/token": (401, {"X-Error-Message": "Invalid credentials in Authorization header"}),
    "forbidden/one": (403, {}),
}
"""Model → what the Hub says when a file of it is asked for."""

SCRIPT = """
import json, sys
from palimpsest.core.errors import PalimpsestError
from palimpsest.models.loading import load_model
told = {}
for name in json.loads(sys.argv[1]):
    try:
        load_model(name)
    except PalimpsestError as error:
        told[name] = str(error)
print(json.dumps(told))
"""


COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """Refuses every file, as `ANSWERS` says, but for those of `shelf`."""

    shelf: ClassVar[dict[str, dict[str, bytes]]] = {}
    """Repository → its files."""

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        parts = self.path.split("?")[0].removeprefix("/api/models").strip("/").split("/")
        name = "/".join(parts[:2])
        status, headers = ANSWERS.get(name, (404, {"X-Error-Code": "RepoNotFound"}))
        data = b""
        if name in self.shelf and parts[2] == "revision":
            files = [{"rfilename": file} for file in self.shelf[name]]
            status, headers = 200, {"Content-Type": "application/json"}
            data = json.dumps({"id": name, "sha": COMMIT, "siblings": files}).encode()
        elif name in self.shelf and parts[2] == "tree":
            named = ((n, len(b), hashlib.sha1(b).hexdigest()) for n, b in self.shelf[name].items())
            rows = [{"type": "file", "path": n, "size": s, "oid": oid} for n, s, oid in named]
            status, headers = 200, {"Content-Type": "application/json"}
            data = json.dumps(rows).encode()
        elif name in self.shelf:
            found = self.shelf[name].get(unquote("/".join(parts[4:])))
            status, headers = 404, {"X-Error-Code": "EntryNotFound"}
            if found is not None:
                etag = hashlib.sha256(found).hexdigest()
                status, headers, data = 200, {"ETag": f'"{etag}"'}, found
            headers["X-Repo-Commit"] = COMMIT
        self.send_response(status)
        for header, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(header, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def loading(site: str, home: object, **more: str) -> dict[str, str]:
    """Model → the sentence that it is refused by, in a process that asks this site."""
    names = [*ANSWERS, *(f"clip:{name}" for name in ANSWERS)]
    words = [sys.executable, "-c", SCRIPT, json.dumps(names)]
    env = {**os.environ, "HF_ENDPOINT": site, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", **more}
    made = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    return json.loads(made.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def told(site: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return loading(site, tmp_path_factory.mktemp("hf"))


@pytest.mark.parametrize("kind", ["", "clip:"])
@pytest.mark.parametrize("name", ANSWERS)
def test_what_the_hub_refuses_is_one_sentence_with_the_way_to_it(
    told: dict[str, str], site: str, name: str, kind: str
):
    said = told[kind + name]
    assert "\n" not in said
    assert repr(name) in said
    assert f"ask for access at {site}/{name}" in said
    assert "set HF_TOKEN" in said
    assert ("is gated on the Hub" in said) == name.startswith("gated/")
    assert ("check the name" in said) == (name in ("no/where", "private/one", "bad/token"))


def test_what_was_not_downloaded_before_is_not_had_offline(site: str, tmp_path: Path):
    for name, said in loading(site, tmp_path, HF_HUB_OFFLINE="1").items():
        assert "\n" not in said
        assert "was not downloaded before, and HF_HUB_OFFLINE is set" in said
        assert f"asked for at {site}/{name.removeprefix('clip:')}" in said


# --- what others published there ---


def published(site: str, home: object, *words: str, **more: str) -> list[str]:
    """Word → where it lies, or why it does not, in a process that asks this site."""
    script = """
import json, sys
from pathlib import Path
from palimpsest.core.errors import PalimpsestError
from palimpsest.models.hub import published
def told(word):
    try:
        place = published(Path(word))
    except PalimpsestError as error:
        return str(error)
    files = [place] if place.is_file() else sorted(p for p in place.rglob("*") if p.is_file())
    return [place.name, *(f.name for f in files)]
print(json.dumps([told(word) for word in sys.argv[1:]]))
"""
    env = {**os.environ, "HF_ENDPOINT": site, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", **more}
    done = subprocess.run(
        [sys.executable, "-c", script, *words], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def shelf(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, bytes]]:
    found = {
        "some/lora": {"pytorch_lora_weights.safetensors": b"weights", "README.md": b"words"},
        "some/shelf": {"a/one.pt": b"1", "two.pt": b"2", "picture.png": b"3"},
    }
    monkeypatch.setattr(Hub, "shelf", found)
    return found


def test_what_others_published_is_downloaded_once_and_then_had_offline(
    site: str, tmp_path: Path, shelf: dict
):
    words = ["some/lora", "some/shelf/a/one.pt", "some/shelf@main"]
    first = published(site, tmp_path, *words)
    assert first[0] == [COMMIT, "pytorch_lora_weights.safetensors"], "weights, and no words"
    assert first[1] == ["one.pt", "one.pt"]
    assert first[2] == [COMMIT, "one.pt", "two.pt"]
    assert published(site, tmp_path, *words, HF_HUB_OFFLINE="1") == first


def test_what_the_hub_does_not_give_is_one_sentence(site: str, tmp_path: Path, shelf: dict):
    words = [
        "gated/asked",
        "no/where",
        "some/shelf/three.pt",
        "nothing.pt",
        "a/b/c d/../e",
        "downlods/esd.pt",
    ]
    gated, nowhere, missing, local, strange, mistyped = published(site, tmp_path, *words)
    assert "'gated/asked' is gated on the Hub" in gated
    assert "check the name" in nowhere
    assert "some/shelf/three.pt: no such file or folder, and not to be had from the Hub" in missing
    assert local[0] == "nothing.pt", "left to whoever reads it: no name of the Hub"
    assert mistyped[0] == "esd.pt", "left likewise: a file's name, and no repository's"
    assert "\n" not in gated + nowhere + missing + str(strange)
