"""The Ray under a deployment: a slim one of our own on this machine, or a running one that is joined.

Owned by the foreground process. Ours ends with it, and then leaves no process, socket file or shared memory; its logs
stay.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from controller.announcement import announced
from controller.names import NAMESPACE
from protocol.errors import InvalidRequest

# Read by Ray's processes as they start: no idle workers, no metrics agent, no usage report; workers not niced (Ray's
# default of 15 starves them beside anything else); no minute's wait for a head that has gone, since it cannot return.
SLIM = {
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "5",
}
# Bookkeeping only: on one's own machine whoever starts replicas decides how many, and scaling must find room.
LOGICAL_CPUS = 4096
CHECKOUT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class RayCluster:
    address: str
    log_directory: Path | None  # on this machine
    is_ours: bool


@contextmanager
def connected(address: str | None) -> Iterator[RayCluster]:
    """Join the Ray at `address`, or else at RAY_ADDRESS; without either, run one for as long as this lasts."""
    address = address or os.environ.get("RAY_ADDRESS")
    with joined(address) if address else _own_ray() as cluster:
        yield cluster


@contextmanager
def joined(address: str) -> Iterator[RayCluster]:
    """A Ray that runs already, and goes on afterwards."""
    try:
        context = _init(address=address)
    except (ConnectionError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InvalidRequest(
            f"cannot join the Ray at {address}: {reason}. Does it run, and does it know this user's token "
            "(~/.ray/auth_token, or RAY_AUTH_TOKEN with RAY_AUTH_MODE=token)?"
        ) from None
    try:
        session = context.address_info.get("session_dir")
        gcs_address = str(context.address_info.get("gcs_address", address))
        yield RayCluster(gcs_address, Path(session) / "logs" if session else None, is_ours=False)
    finally:
        ray.shutdown()


@contextmanager
def _own_ray() -> Iterator[RayCluster]:
    session: Path | None = None
    with _environment({**SLIM, "PYTHONPATH": _python_path()}):
        try:
            context = _init(address="local", include_dashboard=False, num_cpus=LOGICAL_CPUS)
            session = Path(context.address_info["session_dir"])
            address = str(context.address_info["gcs_address"])
            with announced(address):
                yield RayCluster(address, session / "logs", is_ours=True)
        finally:
            ray.shutdown()
            if session is not None:
                shutil.rmtree(session / "sockets", ignore_errors=True)  # Ray leaves one behind


def _init(**options: Any) -> Any:
    """Ray's context. Actors log to Ray's files; what Ray says to everybody who connects is kept to itself."""
    logging.disable(logging.WARNING)
    try:
        return ray.init(
            namespace=NAMESPACE,
            log_to_driver=False,
            logging_config=ray.LoggingConfig(encoding="TEXT", log_level="INFO"),
            **options,
        )
    finally:
        logging.disable(logging.NOTSET)


def _python_path() -> str:
    """Workers import this very checkout, whether or not it is installed."""
    return os.pathsep.join(filter(None, [str(CHECKOUT), os.environ.get("PYTHONPATH")]))


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Set for the processes that Ray starts meanwhile; a value that the user has set stands."""
    before = dict(os.environ)
    os.environ.update({name: value for name, value in variables.items() if name not in before})
    os.environ["PYTHONPATH"] = variables["PYTHONPATH"]
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
