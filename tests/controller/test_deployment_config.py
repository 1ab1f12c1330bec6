"""A deployment's YAML: what is accepted, and what is said of mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from controller.config_file import build_config, load_config
from protocol.errors import InvalidRequest


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"replica": 1}, "there is no key 'replica'; did you mean 'replicas'?"),
        ({"worker": {"num_cpu": 1}}, "there is no key 'worker.num_cpu'; did you mean 'worker.num_cpus'?"),
        ({"routers": {"prot": 1}}, "did you mean 'routers.port'?"),
        ({"pipeline_parallel_size": 2}, "there is no key 'pipeline_parallel_size': layers are not spread"),
        ({"data_parallel_size": 2}, "there is no key 'data_parallel_size': set replicas"),
        (
            {"kv_offloading_size": 4},
            "'kv_offloading_size': a worker's KV lies in one pool, sized by kv_cache",
        ),
        ({"zzz": 1}, "there is no key 'zzz'; it takes models, routers, "),
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
    assert (config.num_replicas, config.routers.host, config.routers.port) == (3, "::1", 1234)


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
    assert load_config(tmp_path / "c.yaml").with_files_read().api_keys == ("zeroth", "first", "second")


def test_a_key_file_without_keys_is_refused(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("# none yet\n")
    config = build_config({"api_key_file": str(tmp_path / "keys")})
    with pytest.raises(InvalidRequest, match="holds nothing"):
        config.with_files_read()


def test_no_key_is_shown() -> None:
    assert "s3cret" not in repr(build_config({"api_keys": ["s3cret"]}))


def test_routers_of_one_machine_take_ports_in_a_row() -> None:
    config = build_config({"routers": {"count": 2, "port": 8000}})
    assert [config.routers.port_of(index) for index in range(2)] == [8000, 8001]
    assert build_config({"routers": {"port": 0}}).routers.port_of(1) == 0


def test_a_worker_computes_with_as_many_threads_as_it_asks_cpus() -> None:
    assert build_config({"worker": {"num_cpus": 3.5}}).models[0].worker.num_threads == 3
    assert build_config({"worker": {"num_cpus": 0.5}}).models[0].worker.num_threads == 1


def test_keys_at_the_top_hold_for_every_model_that_does_not_say_otherwise() -> None:
    models = [{"model": "a", "worker": {"num_gpus": 2}}, {"model": "b", "replicas": 5}]
    config = build_config({"models": models, "replicas": 1, "worker": {"num_cpus": 3}})
    assert [(each.name, each.replicas) for each in config.models] == [("a", 1), ("b", 5)]
    assert [each.worker.bundle for each in config.models] == [{"CPU": 3, "GPU": 2}, {"CPU": 3}]


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        (
            {"models": [{"model": "a"}, {"replcas": 2}]},
            "'models.1.replcas'; did you mean 'models.1.replicas'?",
        ),
        ({"models": [{"worker": {"num_cpu": 1}}]}, "did you mean 'models.0.worker.num_cpus'?"),
        ({"models": [{"model": "a"}, {"model": "a"}]}, "two models are called 'a'"),
        ({"models": []}, "models lists none"),
        ({"models": [{"model": "a"}], "rooters": 1}, "did you mean 'routers'?"),
    ],
)
def test_a_mistake_in_a_list_of_models_is_said_where_it_stands(keys: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        build_config(keys)
    assert sentence in caught.value.message


def test_an_option_of_one_model_is_refused_where_the_file_lists_several(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("models: [{model: a}, {model: b}]\n")
    with pytest.raises(InvalidRequest, match="lists several models, so replicas must be said there"):
        load_config(file, {"replicas": 3})
    assert load_config(file, {"routers": {"port": 1}}).routers.port == 1


def test_a_secret_is_read_from_its_file_and_shown_nowhere(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s3cret" * 6 + "\n")
    (tmp_path / "c.yaml").write_text("secret_file: secret\n")
    config = load_config(tmp_path / "c.yaml").with_files_read()
    assert config.secret == "s3cret" * 6 and "s3cret" not in repr(config)


def test_a_short_secret_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("short\n")
    with pytest.raises(InvalidRequest, match="must hold at least 32 characters"):
        build_config({"secret_file": str(tmp_path / "secret")}).with_files_read()
