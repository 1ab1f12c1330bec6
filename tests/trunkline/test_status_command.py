"""`trunkline status`: over HTTP, as a table or as it came."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from protocol.membership import DeploymentView, ReplicaInfo, ReplicaState, ServedModel
from router.http.service_pages import status_json
from router.prefixes.prefix_index import IndexState
from router.router_status import ModelStatus, ReplicaStatus, RouterStatus, ServiceStatus
from trunkline.cli import main
from trunkline.status import render


def replica(replica_id: str, state: str = "ready", serves: str = "v1", **other: Any) -> dict[str, Any]:
    common = {"id": replica_id, "model": "-", "serves": serves, "state": state, "incarnation": 1}
    return {**common, "workers": [{"rank": 0, "pid": 11, "node": "n"}], **other}


def model(name: str, wanted: int, version: str = "v1", *, current: bool = True) -> dict[str, Any]:
    return {"name": name, "version": version, "wanted_replicas": wanted, "current": current}


def status(
    models: list[dict[str, Any]], *replicas: dict[str, Any], deployment: dict[str, Any] | None = None
) -> dict[str, Any]:
    return {"models": models, "missing_models": [], "replicas": list(replicas), "deployment": deployment}


WORKERS = [{"rank": 0, "pid": 11, "node": "n" * 56}, {"rank": 1, "pid": 12, "node": "m"}]
FAILED = replica("replica-1", "failed", incarnation=7, workers=[], detail="out of memory")
STATUS = status([model("tiny", 2)], replica("replica-0", workers=WORKERS), FAILED)


class Router(BaseHTTPRequestHandler):
    """Answers `/status` to whoever knows the key."""

    answers: Any = STATUS

    def do_GET(self) -> None:
        known = self.headers.get("Authorization") == "Bearer right" and self.path == "/status"
        answer = self.answers if known else {"error": {"message": "this API key is not known here"}}
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
        "upgrading": True,
        "upgrade_error": "",
        "routers": [
            {"id": "router-0", "state": "ready", "incarnation": 2, "host": "::1", "port": 8, "detail": ""}
        ],
        "events": [{"at": number, "unit": "", "text": f"event {number}"} for number in range(20)],
    }
    shown = status([model("tiny", 3)], STATUS["replicas"][0], deployment=deployment)
    lines = render(shown).splitlines()
    assert lines[0] == "1 of 3 replicas are ready; an upgrade is under way"
    assert lines[4] == "router-0   ready  2            -     -    ::1:8"
    assert [line[-8:] for line in lines[6:]] == [f"event {number:2}" for number in range(12, 20)]


def test_several_models_have_a_line_each_and_a_column() -> None:
    routers = [{"id": "router-0", "state": "ready", "incarnation": 1}]
    models = [model("small", 1), model("large", 2, "v2"), model("rare", 0, "v3")]
    deployment = {"upgrading": False, "upgrade_error": "no memory", "routers": routers}
    shown = status(models, replica("small-0"), replica("large-0", serves="v2"), deployment=deployment)
    assert render(shown).splitlines() == [
        "small: 1 of 1 replicas are ready",
        "large: 1 of 2 replicas are ready",
        "rare: 0 of 0 replicas are ready",
        "the last upgrade was taken back: no memory",
        "UNIT      MODEL  STATE  INCARNATION  RANK  PID  NODE",
        "small-0   small  ready  1            0     11   n",
        "large-0   large  ready  1            0     11   n",
        "router-0  -      ready  1            -     -    -",
    ]


def test_the_version_that_an_upgrade_replaces_is_told_from_its_successor() -> None:
    models = [model("tiny", 1, current=False), model("tiny", 2, "v2")]
    lines = render(status(models, replica("tiny-0"), replica("tiny-1", "starting", "v2"))).splitlines()
    assert lines[:2] == ["tiny (old): 1 of 1 replicas are ready", "tiny: 0 of 2 replicas are ready"]
    assert [line.split()[:3] for line in lines[3:]] == [
        ["tiny-0", "tiny", "(old)"],
        ["tiny-1", "tiny", "starting"],
    ]


def test_what_a_router_says_is_what_is_understood() -> None:
    starting = ReplicaStatus(
        *("tiny-0", ReplicaState.STARTING, 1, False, IndexState.BLIND, 0, 0, 0, None, (), "waits for a GPU")
    )
    core = RouterStatus("router-0", "tiny", False, False, None, None, 0, 0, (starting,))
    router = ReplicaInfo("router-0", ReplicaState.READY, 1, "::1", 8)
    models = (ModelStatus(ServedModel("tiny", "/tiny", "v1", num_wanted=1), core),)
    said = status_json(ServiceStatus("router-0", False, False, models, DeploymentView((router,))), "1.0")
    assert render(said).splitlines() == [
        "0 of 1 replicas are ready",
        "UNIT      STATE     INCARNATION  RANK  PID  NODE",
        "tiny-0    starting  1            -     -    -",
        "router-0  ready     1            -     -    ::1:8",
        "",
        "tiny-0: waits for a GPU",
    ]


def test_a_ready_replica_that_takes_nothing_says_why() -> None:
    hung = replica("replica-0", accepting=False, detail="no step for 60 s")
    assert render(status([model("tiny", 1)], hung)).splitlines()[-1] == "replica-0: no step for 60 s"


@pytest.mark.parametrize(
    ("shown", "code"),
    [
        (status([model("a", 1), model("b", 1, "v2")], replica("a-0"), replica("b-0", serves="v2")), 0),
        (status([model("a", 1), model("b", 1, "v2")], replica("a-0"), replica("a-1")), 1),
        (status([model("a", 1), model("b", 0, "v2")], replica("a-0")), 0),
        (status([model("a", 1)], replica("a-0"), FAILED), 0),
        (status([model("a", 2)], replica("a-0"), FAILED), 1),
        (status([model("a", 1)], replica("a-0"), replica("a-1")), 0),
        (status([]), 1),
    ],
)
def test_zero_when_every_model_has_the_ready_replicas_that_it_wants(
    url: str, monkeypatch: pytest.MonkeyPatch, shown: dict[str, Any], code: int
) -> None:
    monkeypatch.setattr(Router, "answers", shown)
    assert main(["status", "--url", url, "--api-key", "right"]) == code


def test_json_is_what_the_router_said(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--url", url, "--api-key", "right", "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == STATUS


def test_the_key_may_come_from_the_environment(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUNKLINE_API_KEY", "right")
    assert main(["status", "--url", url]) == 1


def test_a_refusal_is_told_in_the_routers_words(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--url", url, "--api-key", "wrong"]) == 2
    assert "answers 401: this API key is not known here" in capsys.readouterr().err


@pytest.mark.parametrize("answer", [[], {"status": "ok"}])
def test_somebody_else_there_is_one_sentence(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], answer: Any
) -> None:
    monkeypatch.setattr(Router, "answers", answer)
    assert main(["status", "--url", url, "--api-key", "right"]) == 2
    assert "is no router of this version of Trunkline" in capsys.readouterr().err


def test_nobody_there_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert main(["status", "--url", f"http://127.0.0.1:{port}"]) == 2
    assert "nothing of Trunkline answers" in capsys.readouterr().err


def test_a_model_that_a_router_could_not_load_is_named_and_not_ready(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = [{"name": "oak", "detail": "it could not be loaded"}]
    answer = status([model("tiny", 1)], replica("replica-0")) | {"missing_models": missing}
    monkeypatch.setattr(Router, "answers", answer)
    assert main(["status", "--url", url, "--api-key", "right"]) == 1
    assert "1 of 1 replicas are ready; oak is not here: it could not be loaded" in capsys.readouterr().out
