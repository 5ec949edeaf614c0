"""What the Hub answers for a model that it does not give: the client's own code, a server here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

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


class Hub(BaseHTTPRequestHandler):
    """Refuses every file, as `ANSWERS` says."""

    def do_HEAD(self) -> None:
        name = "/".join(self.path.removeprefix("/api/models").strip("/").split("/")[:2])
        status, headers = ANSWERS.get(name, (404, {}))
        self.send_response(status)
        for header, value in {**headers, "Content-Length": "0"}.items():
            self.send_header(header, value)
        self.end_headers()

    do_GET = do_HEAD  # noqa: N815

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
