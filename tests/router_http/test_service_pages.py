"""The JSON of `/status`, `/load` and `/v1/models`, of several models at once."""

from __future__ import annotations

from protocol.membership import DeploymentView, Event, ReplicaInfo, ReplicaState, ServedModel, WorkerInfo
from router.http.service_pages import load_json, model_json, status_json
from router.prefixes.prefix_index import IndexState
from router.router_status import ModelStatus, ReplicaStatus, RouterStatus, ServiceStatus

VIEW = DeploymentView(
    (ReplicaInfo("router-0", ReplicaState.READY, 2, "::1", 8),), True, "no memory", (Event(1.5, "", "began"),)
)


def replica(replica_id: str) -> ReplicaStatus:
    workers = (WorkerInfo(0, 4711, "node-a", (3,)),)
    return ReplicaStatus(
        *(replica_id, ReplicaState.READY, 3, True, IndexState.SYNCED, 70, 1, 9, None, workers, "")
    )


def model(served: ServedModel, num_live: int, num_waiting: int, *replicas: str) -> ModelStatus:
    router = RouterStatus(
        *("router-0", served.name, bool(replicas), False, 16, 256, num_live, num_waiting),
        tuple(map(replica, replicas)),
        num_queued_tokens=50,
        max_queued_tokens=None,
    )
    return ModelStatus(served, router)


OLD = ServedModel("tiny", "/models/tiny", "v1", 0, current=False)
NEW = ServedModel("tiny", "/models/tiny-2", "v2", 2)
STATUS = ServiceStatus(
    *("router-0", True, False), (model(OLD, 3, 1, "tiny-0"), model(NEW, 4, 2, "tiny-1", "tiny-2")), VIEW
)


def test_a_status_sums_the_requests_of_all_models() -> None:
    page = status_json(STATUS, "1.0")
    assert (page["version"], page["router"], page["ready"], page["draining"]) == (
        "1.0",
        "router-0",
        True,
        False,
    )
    assert (page["requests"], page["waiting_requests"]) == (7, 3)
    assert load_json(STATUS) == {"server_load": 7}


def test_a_status_tells_each_version_of_each_model() -> None:
    old, new = status_json(STATUS, "1.0")["models"]
    assert new == {
        "name": "tiny",
        "source": "/models/tiny-2",
        "version": "v2",
        "current": True,
        "wanted_replicas": 2,
        "ready": True,
        "block_size": 16,
        "max_model_len": 256,
        "requests": 4,
        "waiting_requests": 2,
        "queued_tokens": 50,
        "max_queued_tokens": None,
    }
    assert (old["version"], old["current"], old["wanted_replicas"], old["requests"]) == ("v1", False, 0, 3)


def test_every_replica_tells_what_it_serves() -> None:
    replicas = status_json(STATUS, "1.0")["replicas"]
    served = [(each["id"], each["model"], each["serves"]) for each in replicas]
    assert served == [("tiny-0", "tiny", "v1"), ("tiny-1", "tiny", "v2"), ("tiny-2", "tiny", "v2")]
    assert (replicas[0]["incarnation"], replicas[0]["index"], replicas[0]["prefill_tokens"]) == (
        3,
        "SYNCED",
        9,
    )
    assert replicas[0]["workers"] == [{"rank": 0, "pid": 4711, "node": "node-a", "devices": (3,)}]


def test_the_deployment_is_told_as_the_controller_told_it() -> None:
    (router,) = (deployment := status_json(STATUS, "1.0")["deployment"])["routers"]
    assert (router["id"], router["state"], router["incarnation"]) == ("router-0", "ready", 2)
    assert (router["host"], router["port"]) == ("::1", 8)
    assert (deployment["upgrading"], deployment["upgrade_error"]) == (True, "no memory")
    assert deployment["events"] == [{"at": 1.5, "unit": "", "text": "began"}]
    assert status_json(ServiceStatus("router-0", False, True, ()), "1.0")["deployment"] is None


def test_a_model_is_listed_as_openai_does() -> None:
    entry = model_json("tiny", "/models/tiny", 1700000000, 256)
    assert (entry["id"], entry["object"], entry["created"]) == ("tiny", "model", 1700000000)
    assert (entry["root"], entry["max_model_len"]) == ("/models/tiny", 256)
