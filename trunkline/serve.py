"""`trunkline serve`: the command line laid over a configuration file, then the controller's foreground process."""

from __future__ import annotations

import argparse
import os
import socket
from typing import Any

from controller.config import DeploymentConfig
from controller.config_file import build_config, load_config
from protocol.errors import InvalidRequest
from protocol.model_source import resolve_model
from router.http.auth import check_bind
from trunkline.model_options import model_options
from workers.preflight import check_model

MAX_THREADS_A_WORKER = 16  # more gain nothing on one replica


def run(options: argparse.Namespace) -> int:
    """The exit status. What a user can get wrong is found before anything starts."""
    config = config_from(options).with_files_read()
    check_bind(config.routers.host, config.api_keys, anybody=config.no_api_key)
    for model in config.models:
        check_model(model.engine(), resolve_model(model.model, served_name=model.served_model_name))
    if on_its_own(options) and config.routers.host != "node":
        for index in range(config.routers.count):
            check_port(config.routers.host, config.routers.port_of(index))
    from controller.background import serve

    return serve(config, options.address, detach=options.detach)


def config_from(options: argparse.Namespace) -> DeploymentConfig:
    """Raises InvalidRequest."""
    overrides = _overrides(options)
    if options.config is not None:
        return load_config(options.config, overrides)
    config = build_config(overrides)
    return with_all_cores(config) if on_its_own(options) and options.num_cpus is None else config


def on_its_own(options: argparse.Namespace) -> bool:
    """It will start a Ray on this machine; otherwise routers may run on any node."""
    return not (options.address or os.environ.get("RAY_ADDRESS"))


def check_port(host: str, port: int) -> None:
    """Raises InvalidRequest now, rather than after Ray has started."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.create_server((host, port), family=family):
            pass
    except OSError as error:
        raise InvalidRequest(
            f"cannot listen on {host}:{port}: {error.strerror or error}; --port takes another", param="port"
        ) from None


def with_all_cores(config: DeploymentConfig, cores: int | None = None) -> DeploymentConfig:
    """On a machine of its own each worker gets an equal share of the cores, at least one."""
    (model,) = config.models  # the command line names one
    share = (cores or os.cpu_count() or 1) // max(1, model.replicas * model.tensor_parallel_size)
    threads = float(min(max(1, share), MAX_THREADS_A_WORKER))
    worker = model.worker.model_copy(update={"num_cpus": threads})
    return config.model_copy(update={"models": (model.model_copy(update={"worker": worker}),)})


def _overrides(options: argparse.Namespace) -> dict[str, Any]:
    given = model_options(options)
    top = {
        "replicas": options.replicas,
        "served_model_name": options.served_model_name,
        "api_keys": options.api_key,
        "api_key_file": options.api_key_file,
        "no_api_key": options.no_api_key,
        "drain_timeout_s": options.drain_timeout,
    }
    worker = {"num_cpus": options.num_cpus, "num_gpus": options.num_gpus}
    routers = {"count": options.routers, "host": options.host, "port": options.port}
    given |= _present(top)
    sections = {"worker": _present(worker), "routers": _present(routers)}
    return given | {name: section for name, section in sections.items() if section}


def _present(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
