"""`trunkline status`: over HTTP, as a table or as it came."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from trunkline.cli import main
from trunkline.status import render

STATUS: dict[str, Any] = {
    "replicas": [
        {
            "id": "replica-0",
            "state": "ready",
            "incarnation": 1,
            "workers": [{"rank": 0, "pid": 11, "node": "n" * 56}, {"rank": 1, "pid": 12, "node": "m"}],
        },
        {"id": "replica-1", "state": "failed", "incarnation": 7, "workers": [], "detail": "out of memory"},
    ]
}


class Router(BaseHTTPRequestHandler):
    """Answers `/status` to whoever knows the key."""

    def do_GET(self) -> None:
        known = self.headers.get("Authorization") == "Bearer right" and self.path == "/status"
        answer = STATUS if known else {"error": {"message": "this API key is not known here"}}
        body = json.dumps(answer).encode()
        self.send_response(200 if known else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Router) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_line_a_worker_and_the_reason_of_what_is_not_ready() -> None:
    assert render(STATUS).splitlines() == [
        "1 of 2 replicas are ready",
        "UNIT       STATE   INCARNATION  RANK  PID  NODE",
        "replica-0  ready   1            0     11   nnnnnnnnnnnn",
        "replica-0  ready   1            1     12   m",
        "replica-1  failed  7            -     -    -",
        "",
        "replica-1: out of memory",
    ]


def test_what_is_wanted_and_what_happened_last_is_told() -> None:
    deployment = {
        "wanted_replicas": 3,
        "upgrading": True,
        "upgrade_error": "",
        "routers": [
            {"id": "router-0", "state": "ready", "incarnation": 2, "host": "::1", "port": 8, "detail": ""}
        ],
        "events": [{"at": number, "unit": "", "text": f"event {number}"} for number in range(20)],
    }
    lines = render({"replicas": [STATUS["replicas"][0]], "deployment": deployment}).splitlines()
    assert lines[0] == "1 of 3 replicas are ready; an upgrade is under way"
    assert lines[4] == "router-0   ready  2            -     -    ::1:8"
    assert [line[-8:] for line in lines[6:]] == [f"event {number:2}" for number in range(12, 20)]


def test_a_ready_replica_that_takes_nothing_says_why() -> None:
    hung = {**STATUS["replicas"][0], "accepting": False, "detail": "no step for 60 s"}
    assert render({"replicas": [hung]}).splitlines()[-1] == "replica-0: no step for 60 s"


def test_json_is_what_the_router_said(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--url", url, "--api-key", "right", "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == STATUS


def test_the_key_may_come_from_the_environment(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUNKLINE_API_KEY", "right")
    assert main(["status", "--url", url]) == 1


def test_a_refusal_is_told_in_the_routers_words(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--url", url, "--api-key", "wrong"]) == 2
    assert "answers 401: this API key is not known here" in capsys.readouterr().err


def test_nobody_there_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert main(["status", "--url", f"http://127.0.0.1:{port}"]) == 2
    assert "nothing of Trunkline answers" in capsys.readouterr().err
