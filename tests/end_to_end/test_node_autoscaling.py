"""A replica that finds no room brings a node, and a node without a replica goes: Ray's autoscaler, without a cloud."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]
Eventually = Callable[[Callable[[], bool], float, str], None]


def cluster(gcs_port: int) -> dict[str, Any]:
    """A head that takes no replica, and a node type with room for one. What is empty, Ray's launcher would fill in."""
    empty = ("file_mounts", "cluster_synced_files", "worker_setup_commands", "worker_start_ray_commands")
    return {
        **{name: {} if name == "file_mounts" else [] for name in empty},
        "auth": {},
        "upscaling_speed": 1.0,
        "cluster_name": "trunkline-test",
        "max_workers": 2,
        "idle_timeout_minutes": 0.1,
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "gcs_address": f"127.0.0.1:{gcs_port}",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 2}, "node_config": {}, "max_workers": 0},
            "room": {
                "resources": {"CPU": 1, "room": 1},
                "node_config": {},
                "min_workers": 0,
                "max_workers": 2,
            },
        },
        "head_node_type": "ray.head.default",
    }


@pytest.fixture
def head(
    tmp_path: Path, start_head: Callable[..., Any], free_ports: Callable[[int], list[int]]
) -> Iterator[Any]:
    port = free_ports(1)[0]
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(cluster(port)))
    options = (f"--autoscaling-config={tmp_path / 'cluster.yaml'}", "--num-cpus=2")
    environment = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    with start_head(tmp_path / "head.log", *options, port=port, environment=environment) as running:
        yield running


def test_demand_brings_a_node_and_idleness_removes_it(
    head: Any,
    tmp_path: Path,
    at_url: Callable[[str], Any],
    free_ports: Callable[[int], list[int]],
    eventually: Eventually,
) -> None:
    port = free_ports(1)[0]
    config = {
        "replicas": 1,
        "worker": {"num_cpus": 1, "resources": {"room": 1}},
        "routers": {"port": port},
        "drain_timeout_s": 2,
    }
    (tmp_path / "deployment.yaml").write_text(yaml.safe_dump(config))
    head.trunkline("serve", "--config", str(tmp_path / "deployment.yaml"), "--detach")
    system = at_url(f"http://127.0.0.1:{port}")
    eventually(system.is_ready, 150, "the first replica is on the node that it brought")
    (first,) = system.status()["replicas"]
    assert "2 replicas are ready" in head.trunkline("scale", "2")
    nodes = {each["workers"][0]["node"] for each in system.status()["replicas"]}
    assert len(nodes) == 2 and first["workers"][0]["node"] in nodes
    head.trunkline("scale", "1")
    eventually(lambda: len(living_nodes(head)) == 2, 60, "the idle node has gone")
    assert system.is_ready()
    head.trunkline("stop", "--grace", "1")


def living_nodes(head: Any) -> list[str]:
    program = "import ray; ray.init(address='auto'); print(*(n['NodeID'] for n in ray.nodes() if n['Alive']))"
    printed: str = head.run([sys.executable, "-c", program], timeout_s=60)
    return [word for word in printed.split() if len(word) == 56 and set(word) <= set("0123456789abcdef")]
