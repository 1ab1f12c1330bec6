"""One router whole, without Ray: it listens, follows the membership, drains and ends."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from protocol.deployment_secrets import DeploymentSecrets
from protocol.errors import Draining, InvalidRequest, ModelNotFound
from protocol.membership import Membership, ServedModel
from router.launch import RouterLaunch
from router.service import RouterService

SAPLING = ServedModel("sapling", "sapling", "1")


async def following(*memberships: Membership) -> AsyncIterator[Membership]:
    for membership in memberships:
        yield membership
    await asyncio.Event().wait()


def launch(host: str = "127.0.0.1", port: int = 0) -> RouterLaunch:
    return RouterLaunch("router-0", host, port, DeploymentSecrets.generate())


@pytest.fixture
def running() -> Iterator[Callable[..., RouterService]]:
    """`running(membership, ...)`: a service on a thread of its own, closed when the test ends."""
    made: list[tuple[RouterService, threading.Thread]] = []

    def start(*memberships: Membership) -> RouterService:
        service = RouterService(launch(), following(*memberships))
        thread = threading.Thread(target=lambda: asyncio.run(service.run()))
        thread.start()
        made.append((service, thread))
        return service

    yield start
    for service, thread in made:
        service.close()
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture
def service(running: Callable[..., RouterService]) -> RouterService:
    return running(Membership(1, (), (SAPLING,)))


def answer_of(service: RouterService, path: str) -> tuple[int, bytes]:
    host, port = service.address.result(60)
    try:
        with urllib.request.urlopen(f"http://{host}:{port}{path}", timeout=10) as response:
            return int(response.status), response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def status_of(service: RouterService, path: str) -> int:
    return answer_of(service, path)[0]


def test_it_listens_before_any_replica_is_ready(service: RouterService) -> None:
    assert status_of(service, "/liveness") == 200
    assert status_of(service, "/readiness") == 503


def test_it_listens_once_a_model_is_named(running: Callable[..., RouterService]) -> None:
    waiting = running(Membership(1, ()))
    with pytest.raises(TimeoutError):
        waiting.address.result(0.2)
    listening = running(Membership(1, ()), Membership(2, (), (SAPLING,)))
    assert status_of(listening, "/liveness") == 200


async def test_a_service_that_is_closed_before_it_listened_says_so() -> None:
    service = RouterService(launch(), following(Membership(1, ())))
    running = asyncio.create_task(service.run())
    await asyncio.sleep(0)
    service.close()
    await running
    with pytest.raises(Draining, match="closed before it listened"):
        service.address.result(0)


def test_several_models_are_listed(running: Callable[..., RouterService]) -> None:
    models = (SAPLING, ServedModel("other", "sapling", "2", scales_to_zero=True))
    status, body = answer_of(running(Membership(1, (), models)), "/v1/models")
    assert status == 200
    assert [(each["id"], each["max_model_len"]) for each in json.loads(body)["data"]] == [
        ("other", 4096),
        ("sapling", 4096),
    ]


async def test_a_model_that_is_not_there_ends_the_service() -> None:
    models = (ServedModel("other", "/no/such/model", "2"),)
    service = RouterService(launch(), following(Membership(1, (), models)))
    with pytest.raises(ModelNotFound, match="no directory"):
        await service.run()
    with pytest.raises(ModelNotFound, match="no directory"):
        service.address.result(0)


def test_after_a_drain_nobody_is_let_in(service: RouterService) -> None:
    assert status_of(service, "/liveness") == 200
    service.call(service.drain(5.0)).result(30)
    with pytest.raises(urllib.error.URLError, match="refused"):
        status_of(service, "/liveness")


def test_who_still_waits_at_the_end_of_a_drain_is_told_so(service: RouterService) -> None:
    host, port = service.address.result(60)
    client = http.client.HTTPConnection(host, port, timeout=30)
    client.request(
        "POST", "/v1/completions", json.dumps({"prompt": "Once"}), {"content-type": "application/json"}
    )
    while not service.call(service.demand()).result(10)[0].num_waiting:
        time.sleep(0.01)
    drain = service.call(service.drain(0.2))
    response = client.getresponse()
    assert response.status == 503
    assert json.load(response)["error"]["code"] == "draining"
    drain.result(30)


async def test_a_taken_port_is_what_address_raises() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        named = following(Membership(1, (), (SAPLING,)))
        service = RouterService(launch(port=taken.getsockname()[1]), named)
        with pytest.raises(InvalidRequest, match="cannot listen"):
            await service.run()
    with pytest.raises(InvalidRequest, match="cannot listen"):
        service.address.result(0)


def test_an_open_address_without_a_key_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="without an API key"):
        RouterService(launch(host="0.0.0.0"), following())


def test_the_controller_can_have_one_replica_drained(service: RouterService) -> None:
    assert service.call(service.drain_replica("replica-0", 5.0)).result(60) is True


def test_the_controller_can_ask_for_every_models_demand(service: RouterService) -> None:
    (demand,) = service.call(service.demand()).result(60)
    assert (demand.version, demand.num_requests, demand.loads) == ("1", 0, ())
    assert service.call(service.own_blocks()).result(60) == ()


def test_a_meeting_that_nobody_waits_for_any_more_ends(service: RouterService) -> None:
    meeting = service.call(service.meet("replica-0", 1, timeout_s=0.01))
    assert meeting.result(60) == "it could not be reached in 0.01 s"
