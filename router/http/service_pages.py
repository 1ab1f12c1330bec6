"""The JSON of the pages about the service itself: `/v1/models`, `/status`, `/load`."""

from __future__ import annotations

import dataclasses
from typing import Any

from protocol.membership import DeploymentView
from router.http.serving import Serving
from router.router_status import ReplicaStatus, RouterStatus


def model_json(serving: Serving, name: str) -> dict[str, Any]:
    """One entry of `/v1/models`."""
    created = serving.config.created
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "trunkline",
        "root": serving.config.model,
        "parent": None,
        "max_model_len": serving.bounds.context_tokens,
        "permission": [_permission(name, created)],
    }


def status_json(status: RouterStatus, version: str) -> dict[str, Any]:
    return {
        "model": status.model,
        "version": version,
        "router": status.router_id,
        "ready": status.ready,
        "draining": status.draining,
        "block_size": status.block_size,
        "max_model_len": status.max_model_len,
        "requests": status.num_live_requests,
        "waiting_requests": status.num_waiting_requests,
        "queued_tokens": status.num_queued_tokens,
        "max_queued_tokens": status.max_queued_tokens,
        "replicas": [_replica_json(replica) for replica in status.replicas],
        "deployment": None if status.deployment is None else _deployment_json(status.deployment),
    }


def _deployment_json(view: DeploymentView) -> dict[str, Any]:
    return {
        "wanted_replicas": view.num_wanted,
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


def load_json(status: RouterStatus) -> dict[str, Any]:
    return {"server_load": status.num_live_requests}


def _replica_json(replica: ReplicaStatus) -> dict[str, Any]:
    return {
        "id": replica.replica_id,
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
