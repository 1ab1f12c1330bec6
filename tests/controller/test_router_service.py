"""One router whole, without Ray: it listens, follows the membership, drains and ends."""

from __future__ import annotations

import asyncio
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator

import pytest

from protocol.deployment_secrets import DeploymentSecrets
from protocol.errors import InvalidRequest
from protocol.membership import Membership
from router.launch import RouterLaunch
from router.service import RouterService


async def nobody() -> AsyncIterator[Membership]:
    yield Membership(1, ())
    await asyncio.Event().wait()


def launch(host: str = "127.0.0.1", port: int = 0) -> RouterLaunch:
    return RouterLaunch("router-0", "sapling", None, host, port, DeploymentSecrets.generate())


@pytest.fixture
def service() -> Iterator[RouterService]:
    made = RouterService(launch(), nobody())
    thread = threading.Thread(target=lambda: asyncio.run(made.run()))
    thread.start()
    yield made
    made.close()
    thread.join(30)
    assert not thread.is_alive()


def status_of(service: RouterService, path: str) -> int:
    host, port = service.address.result(60)
    try:
        with urllib.request.urlopen(f"http://{host}:{port}{path}", timeout=10) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_it_listens_before_any_replica_is_ready(service: RouterService) -> None:
    assert status_of(service, "/liveness") == 200
    assert status_of(service, "/readiness") == 503


def test_after_a_drain_nobody_is_let_in(service: RouterService) -> None:
    assert status_of(service, "/liveness") == 200
    service.call(service.drain(5.0)).result(30)
    with pytest.raises(urllib.error.URLError, match="refused"):
        status_of(service, "/liveness")


async def test_a_taken_port_is_what_address_raises() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        service = RouterService(launch(port=taken.getsockname()[1]), nobody())
        with pytest.raises(InvalidRequest, match="cannot listen"):
            await service.run()
    with pytest.raises(InvalidRequest, match="cannot listen"):
        service.address.result(0)


def test_an_open_address_without_a_key_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="without an API key"):
        RouterService(launch(host="0.0.0.0"), nobody())


def test_the_controller_can_have_one_replica_drained(service: RouterService) -> None:
    assert service.call(service.drain_replica("replica-0", 5.0)).result(60) is True
