"""`trunkline status`: asks a router over HTTP, and prints its answer as a table or as it came."""

from __future__ import annotations

import argparse
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

from protocol.errors import InvalidRequest, NoReplica

TIMEOUT_S = 10.0
COLUMNS = ("UNIT", "MODEL", "STATE", "INCARNATION", "RANK", "PID", "NODE")
NUM_EVENTS = 8


def run(options: argparse.Namespace) -> int:
    """0 when every model has as many ready replicas as it wants, else 1."""
    status = fetch(options.url, options.api_key or os.environ.get("TRUNKLINE_API_KEY"))
    print(json.dumps(status, indent=2) if options.json else render(status))
    models = status["models"]
    complete = not status["missing_models"] and all(
        _num_ready(status, model) >= model["wanted_replicas"] for model in models
    )
    return 0 if models and complete else 1


def fetch(url: str, api_key: str | None) -> dict[str, Any]:
    """The router's answer. Raises TrunklineError with a sentence."""
    if not url.startswith(("http://", "https://")):
        raise InvalidRequest(f"--url must begin with http:// or https://, not {url!r}")
    headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
    request = urllib.request.Request(url.rstrip("/") + "/status", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
            answer = json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            raise InvalidRequest(f"{url} answers {error.code}: {_message(error.read())}") from None
    except (OSError, ValueError) as error:
        raise NoReplica(f"nothing of Trunkline answers at {url}: {error}") from None
    if not isinstance(answer, dict) or not answer.keys() >= {
        "models",
        "missing_models",
        "replicas",
        "deployment",
    }:
        raise NoReplica(f"what answers at {url} is no router of this version of Trunkline")
    return answer


def render(status: dict[str, Any]) -> str:
    """What is wanted and what there is; one line a worker; why something is not ready; what happened last."""
    replicas, deployment = status["replicas"], status["deployment"] or {}
    parts = [*_summary(status), *_table(status, deployment.get("routers", []))]
    if reasons := [_reason(each) for each in replicas if _troubled(each)]:
        parts += ["", *reasons]
    if events := deployment.get("events", [])[-NUM_EVENTS:]:
        parts += ["", *(_event(event) for event in events)]
    return "\n".join(parts)


def _summary(status: dict[str, Any]) -> list[str]:
    """One line where there is one model; else one a model, and one of the deployment if there is anything to say."""
    counts = [
        f"{_num_ready(status, model)} of {model['wanted_replicas']} replicas are ready"
        for model in status["models"]
    ]
    deployment, notes = status["deployment"] or {}, []
    if deployment.get("upgrading"):
        notes.append("an upgrade is under way")
    if deployment.get("upgrade_error"):
        notes.append(f"the last upgrade was taken back: {deployment['upgrade_error']}")
    notes += [f"{model['name']} is not here: {model['detail']}" for model in status["missing_models"]]
    if len(counts) == 1:
        return ["; ".join(counts + notes)]
    lines = [f"{label}: {count}" for label, count in zip(_labels(status).values(), counts, strict=True)]
    return lines + (["; ".join(notes)] if notes else [])


def _num_ready(status: dict[str, Any], model: dict[str, Any]) -> int:
    return sum(each["serves"] == model["version"] and each["state"] == "ready" for each in status["replicas"])


def _labels(status: dict[str, Any]) -> dict[str, str]:
    """What to call each version: by the model's name, which during an upgrade two versions share."""
    return {
        model["version"]: model["name"] if model["current"] else f"{model['name']} (old)"
        for model in status["models"]
    }


def _table(status: dict[str, Any], routers: Sequence[dict[str, Any]]) -> list[str]:
    rows, labels = [COLUMNS], _labels(status)
    for replica in status["replicas"]:
        head = (replica["id"], labels[replica["serves"]], replica["state"], str(replica["incarnation"]))
        ranks = [(str(each["rank"]), str(each["pid"]), str(each["node"])[:12]) for each in replica["workers"]]
        rows += [(*head, *rank) for rank in ranks or [("-", "-", "-")]]
    rows += [
        (each["id"], "-", each["state"], str(each["incarnation"]), "-", "-", _address(each))
        for each in routers
    ]
    columns = [column for column, title in enumerate(COLUMNS) if title != "MODEL" or len(labels) > 1]
    widths = [max(len(row[column]) for row in rows) for column in columns]
    return [
        "  ".join(row[column].ljust(width) for column, width in zip(columns, widths, strict=True)).rstrip()
        for row in rows
    ]


def _address(router: dict[str, Any]) -> str:
    return f"{router['host']}:{router['port']}" if router.get("host") else "-"


def _troubled(replica: dict[str, Any]) -> bool:
    return bool(replica.get("detail")) and (replica["state"] != "ready" or not replica.get("accepting", True))


def _reason(replica: dict[str, Any]) -> str:
    return f"{replica['id']}: {replica['detail']}"


def _event(event: dict[str, Any]) -> str:
    """In the reader's own time."""
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event["at"]))
    return f"{at}  {event['unit'] or 'deployment'}: {event['text']}"


def _message(body: bytes) -> str:
    """The sentence in OpenAI's shape of an error, or the body's beginning."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode(errors="replace")
