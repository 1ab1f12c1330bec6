"""`trunkline status`: asks a router over HTTP, and prints its answer as a table or as it came."""

from __future__ import annotations

import argparse
import json
import os
import urllib.error
import urllib.request
from typing import Any

from protocol.errors import InvalidRequest, NoReplica

TIMEOUT_S = 10.0
COLUMNS = ("REPLICA", "STATE", "INCARNATION", "RANK", "PID", "NODE")


def run(options: argparse.Namespace) -> int:
    """0 when every replica is ready, else 1."""
    status = fetch(options.url, options.api_key or os.environ.get("TRUNKLINE_API_KEY"))
    print(json.dumps(status, indent=2) if options.json else render(status))
    replicas = status.get("replicas", [])
    return 0 if replicas and all(replica.get("state") == "ready" for replica in replicas) else 1


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
    if not isinstance(answer, dict):
        raise NoReplica(f"nothing of Trunkline answers at {url}: not an object")
    return answer


def render(status: dict[str, Any]) -> str:
    """One line a worker, then why a replica is not ready."""
    rows = [COLUMNS]
    reasons = []
    for replica in status.get("replicas", []):
        head = (str(replica["id"]), str(replica["state"]), str(replica["incarnation"]))
        workers = replica.get("workers", [])
        ranks = [(str(each["rank"]), str(each["pid"]), str(each["node"])[:12]) for each in workers]
        rows += [(*head, *rank) for rank in ranks or [("-", "-", "-")]]
        if replica.get("detail") and replica["state"] != "ready":
            reasons.append(f"{replica['id']}: {replica['detail']}")
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    return "\n".join([*lines, *(["", *reasons] if reasons else [])])


def _message(body: bytes) -> str:
    """The sentence in OpenAI's shape of an error, or the body's beginning."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode(errors="replace")
