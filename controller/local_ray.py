"""The Ray under a deployment: a slim one of our own on this machine, or a running one that is joined.

Owned by the foreground process. Ours ends with it, and then leaves no process, socket file or shared memory; its logs
stay. While ours runs, a file of mode 600 tells `trunkline stop` where it is.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from controller.config import DeploymentConfig
from controller.names import NAMESPACE

# Read by Ray's processes as they start: no idle workers, no metrics agent, no usage report.
SLIM = {
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
CHECKOUT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class RayCluster:
    address: str
    log_directory: Path | None  # on this machine
    is_ours: bool


@contextmanager
def connected(address: str | None, config: DeploymentConfig) -> Iterator[RayCluster]:
    """Join the Ray at `address`, or else at RAY_ADDRESS; without either, run one for as long as this lasts."""
    address = address or os.environ.get("RAY_ADDRESS")
    with joined(address) if address else _own_ray(config) as cluster:
        yield cluster


@contextmanager
def joined(address: str) -> Iterator[RayCluster]:
    """A Ray that runs already, and goes on afterwards."""
    context: Any = ray.init(
        address=address,
        namespace=NAMESPACE,
        log_to_driver=False,
        logging_level=logging.ERROR,
        logging_config=ray.LoggingConfig(encoding="TEXT", log_level="INFO"),
    )
    try:
        session = context.address_info.get("session_dir")
        gcs_address = str(context.address_info.get("gcs_address", address))
        yield RayCluster(gcs_address, Path(session) / "logs" if session else None, is_ours=False)
    finally:
        ray.shutdown()


@contextmanager
def _own_ray(config: DeploymentConfig) -> Iterator[RayCluster]:
    session: Path | None = None
    with _environment({**SLIM, "PYTHONPATH": _python_path()}):
        try:
            context: Any = ray.init(
                address="local",
                include_dashboard=False,
                num_cpus=logical_cpus(config),
                namespace=NAMESPACE,
                log_to_driver=False,
                logging_level=logging.ERROR,
                logging_config=ray.LoggingConfig(encoding="TEXT", log_level="INFO"),
            )
            session = Path(context.address_info["session_dir"])
            address = str(context.address_info["gcs_address"])
            with _announced(address):
                yield RayCluster(address, session / "logs", is_ours=True)
        finally:
            ray.shutdown()
            if session is not None:
                shutil.rmtree(session / "sockets", ignore_errors=True)  # Ray leaves one behind


def logical_cpus(config: DeploymentConfig) -> int:
    """What Ray is told: at least what the replicas ask for, so that a small machine starts them all."""
    asked = config.replicas * config.tensor_parallel_size * config.worker.num_cpus
    return max(os.cpu_count() or 1, int(asked + 0.999))


def running_addresses() -> list[str]:
    """Of this user's own Rays under running deployments on this machine."""
    found = []
    for file in sorted(_announcements().glob("*.address")) if _announcements().is_dir() else []:
        if Path(f"/proc/{file.stem}").exists():
            found.append(file.read_text(encoding="utf-8"))
        else:
            file.unlink(missing_ok=True)  # its process was killed
    return found


@contextmanager
def _announced(address: str) -> Iterator[None]:
    directory = _announcements()
    directory.mkdir(mode=0o700, exist_ok=True)
    file = directory / f"{os.getpid()}.address"
    file.write_text(address, encoding="utf-8")
    file.chmod(0o600)
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            directory.rmdir()  # not while another deployment is in it


def _announcements() -> Path:
    return Path(tempfile.gettempdir()) / f"trunkline-{os.getuid()}"


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
