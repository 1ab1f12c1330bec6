"""The command line: what is given reaches the configuration, and mistakes are one sentence."""

from __future__ import annotations

import inspect
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from controller.config import DeploymentConfig
from controller.config_file import build_config
from controller.model_config import ModelConfig
from protocol.errors import InvalidRequest
from trunkline import LLM
from trunkline.cli import build_parser, main
from trunkline.generate import sampling_from
from trunkline.model_options import ENGINE_OPTIONS
from trunkline.serve import check_port, config_from, with_all_cores
from workers.engine_config import EngineConfig


@pytest.fixture(autouse=True)
def no_ray_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield taken.getsockname()[1]


def config(*arguments: str) -> DeploymentConfig:
    return config_from(build_parser().parse_args(["serve", *arguments]))


def test_serve_without_arguments_is_two_replicas_of_sapling_on_loopback() -> None:
    made = config()
    (model,) = made.models
    assert (model.model, model.replicas) == ("sapling", 2)
    assert (made.routers.host, made.routers.port) == ("127.0.0.1", 8000)


def test_options_of_serve_reach_the_configuration() -> None:
    made = config(
        *("m", "--replicas", "3", "--tensor-parallel-size", "2", "--port", "1", "--dtype", "float32"),
        *("--api-key", "a", "--api-key", "b", "--no-enable-prefix-caching", "--max-model-len", "99"),
        *("--served-model-name", "name", "--num-cpus", "2", "--drain-timeout", "1.5"),
    )
    (model,) = made.models
    assert (model.model, model.name, model.replicas, model.tensor_parallel_size) == ("m", "name", 3, 2)
    assert (model.enable_prefix_caching, model.max_model_len, model.worker.num_cpus) == (False, 99, 2.0)
    assert (made.api_keys, made.drain_timeout_s, made.routers.port) == (("a", "b"), 1.5, 1)


def test_every_option_of_the_engine_can_be_given_everywhere() -> None:
    options = {each.name for each in fields(EngineConfig)}
    assert options <= set(ModelConfig.model_fields)
    assert options - set(inspect.signature(LLM).parameters) == {"served_model_name"}
    assert options - set(ENGINE_OPTIONS) == {"model", "served_model_name"}


def test_options_go_before_the_file(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("model: other\nreplicas: 5\nrouters: {port: 9000}\n")
    made = config("--config", str(file), "--replicas", "1")
    assert (made.models[0].model, made.models[0].replicas, made.routers.port) == ("other", 1, 9000)


@pytest.mark.parametrize(
    ("cores", "replicas", "threads"), [(8, 2, 4.0), (2, 2, 1.0), (1, 4, 1.0), (64, 1, 16.0)]
)
def test_on_its_own_machine_workers_share_the_cores(cores: int, replicas: int, threads: float) -> None:
    assert with_all_cores(build_config({"replicas": replicas}), cores).models[0].worker.num_cpus == threads


def test_a_mistake_is_one_sentence_and_status_two(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--replicas", "-1"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: the command line: replicas: ") and said.count("\n") == 1


def test_no_replica_at_all_is_refused_where_none_would_ever_come(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--replicas", "0", "--port", "0"]) == 2
    assert "replicas must be at least 1" in capsys.readouterr().err


def test_a_model_that_does_not_exist_is_refused_before_anything_starts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["serve", "/no/such/model", "--port", "0"]) == 2
    assert "there is no directory '/no/such/model'" in capsys.readouterr().err


def test_an_open_address_without_a_key_is_refused_before_anything_starts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["serve", "--host", "0.0.0.0"]) == 2
    assert "without an API key" in capsys.readouterr().err


def test_a_taken_port_is_refused_before_anything_starts(taken_port: int) -> None:
    with pytest.raises(InvalidRequest, match="cannot listen"):
        check_port("127.0.0.1", taken_port)


def test_generate_takes_sampling_options() -> None:
    options = build_parser().parse_args(["generate", "m", "--stop", "x", "--n", "2", "--temperature", "0"])
    sampling = sampling_from(options)
    assert (sampling.n, sampling.stop, sampling.greedy) == (2, ("x",), True)


@pytest.mark.parametrize("command", ["serve", "generate", "status", "stop", "simulate"])
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        build_parser().parse_args([command, "--help"])
    assert left.value.code == 0 and f"usage: trunkline {command}" in capsys.readouterr().out


def test_the_command_line_loads_neither_ray_nor_torch() -> None:
    code = "import sys, trunkline, trunkline.cli; print({'ray', 'torch', 'pydantic'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
