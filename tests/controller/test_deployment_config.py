"""A deployment's YAML: what is accepted, and what is said of mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from controller.config import build_config, load_config
from protocol.errors import InvalidRequest


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"replica": 1}, "there is no key 'replica'; did you mean 'replicas'?"),
        ({"worker": {"num_cpu": 1}}, "there is no key 'worker.num_cpu'; did you mean 'worker.num_cpus'?"),
        ({"routers": {"prot": 1}}, "did you mean 'routers.port'?"),
        ({"zzz": 1}, "there is no key 'zzz'; it takes model, "),
        ({"replicas": -1}, "replicas: Input should be greater than or equal to 0"),
        ({"replicas": "two"}, "replicas: Input should be a valid integer"),
        ({"dtype": "int3"}, "dtype must be one of auto, float32, bfloat16, float16"),
        ({"worker": {"num_cpus": 0}}, "must be above 0, so that Ray can place a worker"),
    ],
)
def test_a_mistake_is_one_sentence_that_names_the_key(keys: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        build_config(keys, "file.yaml")
    assert sentence in caught.value.message and caught.value.message.startswith("file.yaml: ")


def test_single_keys_are_laid_over_a_file_section_by_section(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("replicas: 3\nrouters: {host: '::1', port: 9000}\n")
    config = load_config(file, {"routers": {"port": 1234}})
    assert (config.replicas, config.routers.host, config.routers.port) == (3, "::1", 1234)


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [", "\x00"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(InvalidRequest, match=r"c\.yaml"):
        load_config(file)


def test_an_empty_file_means_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.touch()
    assert load_config(file) == build_config({})


def test_keys_are_read_from_a_file_beside_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("# two tenants\nfirst\n\n second \n")
    (tmp_path / "c.yaml").write_text("api_keys: [zeroth]\napi_key_file: keys\n")
    assert load_config(tmp_path / "c.yaml").with_keys_read().api_keys == ("zeroth", "first", "second")


def test_a_key_file_without_keys_is_refused(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("# none yet\n")
    config = build_config({"api_key_file": str(tmp_path / "keys")})
    with pytest.raises(InvalidRequest, match="holds no key"):
        config.with_keys_read()


def test_no_key_is_shown() -> None:
    assert "s3cret" not in repr(build_config({"api_keys": ["s3cret"]}))


def test_routers_of_one_machine_take_ports_in_a_row() -> None:
    config = build_config({"routers": {"count": 2, "port": 8000}})
    assert [config.routers.port_of(index) for index in range(2)] == [8000, 8001]
    assert build_config({"routers": {"port": 0}}).routers.port_of(1) == 0


def test_a_worker_computes_with_as_many_threads_as_it_asks_cpus() -> None:
    assert build_config({"worker": {"num_cpus": 3.5}}).worker.num_threads == 3
    assert build_config({"worker": {"num_cpus": 0.5}}).worker.num_threads == 1
