"""What people read while a deployment starts."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest

from controller.config_file import build_config
from controller.progress import Progress, ready_text
from controller.status import DeploymentStatus, Phase, status_of, url_of
from protocol.membership import DeploymentView, Membership, ReplicaInfo, ReplicaState

READY = ReplicaInfo("replica-0", ReplicaState.READY, 1, "127.0.0.1", 4000)
ROUTER = ReplicaInfo("router-0", ReplicaState.READY, 1, "127.0.0.1", 8000)
STARTING = ReplicaInfo("replica-0", ReplicaState.STARTING, 1, detail="loads weights\nin detail")
FAILED = ReplicaInfo("replica-0", ReplicaState.FAILED, 1, detail="rank 1:\nTraceback")


def picture(replica: ReplicaInfo, router: ReplicaInfo = ROUTER) -> DeploymentStatus:
    return status_of(membership(replica, router), "", stopping=False)


def membership(replica: ReplicaInfo | None, router: ReplicaInfo | None) -> Membership:
    replicas, routers = (() if each is None else (each,) for each in (replica, router))
    return Membership(1, replicas, deployment=DeploymentView(routers))


def test_without_a_terminal_each_change_is_a_line() -> None:
    stream = io.StringIO()
    progress = Progress(1, stream)
    for replica in (STARTING, STARTING, READY, FAILED):
        progress.show(picture(replica))
    assert stream.getvalue().splitlines() == [
        "replica-0: starting: loads weights",
        "router-0: ready",
        "replica-0: ready",
        "replica-0: failed: rank 1:",
        "Traceback",
    ]


def test_the_ready_text_has_the_url_a_line_to_paste_and_the_logs() -> None:
    text = ready_text(build_config({}), picture(READY), Path("/logs"), 9.87)
    assert text.startswith("Trunkline serves sapling at http://127.0.0.1:8000 (1 replica, 9.9 s to ready)")
    assert "  curl http://127.0.0.1:8000/v1/completions -H 'Content-Type" in text and "Logs: /logs" in text


def test_the_ready_text_shows_no_key() -> None:
    text = ready_text(build_config({"api_keys": ["s3cret"]}), picture(READY), None, 1.0)
    assert "s3cret" not in text and "Authorization: Bearer YOUR-API-KEY" in text


def test_a_deployment_is_ready_when_all_of_it_is() -> None:
    assert picture(READY).phase is Phase.READY
    assert picture(STARTING).phase is Phase.STARTING
    assert picture(READY, replace(ROUTER, state=ReplicaState.FAILED)).phase is Phase.STARTING


def test_a_deployment_has_stopped_when_nothing_is_left() -> None:
    assert status_of(membership(READY, None), "", stopping=True).phase is Phase.STOPPING
    assert status_of(membership(None, None), "", stopping=True).phase is Phase.STOPPED


@pytest.mark.parametrize(
    ("host", "url"),
    [("127.0.0.1", "http://127.0.0.1:80"), ("0.0.0.0", "http://127.0.0.1:80"), ("::1", "http://[::1]:80")],
)
def test_an_address_is_shown_as_clients_reach_it(host: str, url: str) -> None:
    assert url_of(host, 80) == url
