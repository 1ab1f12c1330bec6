"""The JSON of the pages about the service itself: `/v1/models`, `/status`, `/load`."""

from __future__ import annotations

import dataclasses
from typing import Any

from protocol.membership import DeploymentView, ServedModel
from router.router_status import ModelStatus, ReplicaStatus, ServiceStatus


def model_json(name: str, root: str, created: int, max_model_len: int | None) -> dict[str, Any]:
    """One entry of `/v1/models`. `root`: where the model comes from; `created`: seconds since the epoch."""
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "trunkline",
        "root": root,
        "parent": None,
        "max_model_len": max_model_len,
        "permission": [_permission(name, created)],
    }


def status_json(status: ServiceStatus, version: str) -> dict[str, Any]:
    """`version`: of Trunkline. Each replica tells which of the models it serves."""
    routers = [model.router for model in status.models]
    return {
        "version": version,
        "router": status.router_id,
        "ready": status.ready,
        "draining": status.draining,
        "requests": sum(router.num_live_requests for router in routers),
        "waiting_requests": sum(router.num_waiting_requests for router in routers),
        "missing_models": [{"name": name, "detail": detail} for name, detail in status.missing],
        "models": [_model_status_json(model) for model in status.models],
        "replicas": [
            _replica_json(model.served, replica)
            for model in status.models
            for replica in model.router.replicas
        ],
        "deployment": None if status.deployment is None else _deployment_json(status.deployment),
    }


def load_json(status: ServiceStatus) -> dict[str, Any]:
    return {"server_load": sum(model.router.num_live_requests for model in status.models)}


def _model_status_json(model: ModelStatus) -> dict[str, Any]:
    served, router = model.served, model.router
    return {
        "name": served.name,
        "source": served.source,
        "version": served.version,
        "current": served.current,
        "wanted_replicas": served.num_wanted,
        "ready": router.ready,
        "block_size": router.block_size,
        "max_model_len": router.max_model_len,
        "requests": router.num_live_requests,
        "waiting_requests": router.num_waiting_requests,
        "queued_tokens": router.num_queued_tokens,
        "max_queued_tokens": router.max_queued_tokens,
    }


def _deployment_json(view: DeploymentView) -> dict[str, Any]:
    return {
        "upgrading": view.upgrading,
        "upgrade_error": view.upgrade_error,
        "routers": [
            {
                "id": router.replica_id,
                "state": router.state.value,
                "incarnation": router.incarnation,
                "host": router.host,
                "port": router.port,
                "detail": router.detail,
            }
            for router in view.routers
        ],
        "events": [dataclasses.asdict(event) for event in view.events],
    }


def _replica_json(served: ServedModel, replica: ReplicaStatus) -> dict[str, Any]:
    return {
        "id": replica.replica_id,
        "model": served.name,
        "serves": served.version,
        "state": replica.state.value,
        "incarnation": replica.incarnation,
        "connected": replica.connected,
        "accepting": replica.accepting,
        "index": replica.index.name,
        "indexed_blocks": replica.num_indexed_blocks,
        "requests": replica.num_live_requests,
        "prefill_tokens": replica.prefill_tokens,
        "workers": [dataclasses.asdict(worker) for worker in replica.workers],
        "load": None if replica.load is None else dataclasses.asdict(replica.load),
        "detail": replica.detail,
    }


def _permission(name: str, created: int) -> dict[str, Any]:
    """Nobody reads it, but older clients require the field."""
    return {
        "id": f"modelperm-{name}",
        "object": "model_permission",
        "created": created,
        "allow_create_engine": False,
        "allow_sampling": True,
        "allow_logprobs": True,
        "allow_search_indices": False,
        "allow_view": True,
        "allow_fine_tuning": False,
        "organization": "*",
        "group": None,
        "is_blocking": False,
    }
