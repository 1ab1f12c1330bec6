"""Every file of `cluster_configs/` says whom it is for and is accepted by whatever reads it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml

from controller.config_file import build_config, load_config

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "cluster_configs"
SCHEMAS = Path(__file__).parent / "schemas"
OTHERS = ("ray-cluster.", "kuberay.", "load-balancer.", "prometheus.")
OURS = [path for path in sorted(CONFIGS.glob("*.yaml")) if not path.name.startswith(OTHERS)]


def documents(pattern: str) -> list[tuple[str, dict[str, Any]]]:
    return [
        (path.name, document)
        for path in sorted(CONFIGS.glob(pattern))
        for document in yaml.safe_load_all(path.read_text(encoding="utf-8"))
    ]


def of_kind(kind: str) -> list[Any]:
    found = [(name, each) for name, each in documents("*.yaml") if each.get("kind") == kind]
    return [pytest.param(each, id=f"{name}-{each['metadata']['name']}") for name, each in found]


def pod_templates(resource: dict[str, Any]) -> Iterator[dict[str, Any]]:
    spec = resource["spec"].get("rayClusterSpec", resource["spec"])
    yield spec["headGroupSpec"]["template"]
    for group in spec["workerGroupSpecs"]:
        yield group["template"]


@pytest.mark.parametrize("path", sorted(CONFIGS.iterdir()), ids=lambda path: path.name)
def test_every_file_begins_by_saying_whom_it_is_for_and_how_it_is_applied(path: Path) -> None:
    head = path.read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    assert all(line.startswith("#") for line in head)
    assert head[1] == "#" and head[2].startswith("# For: ")
    applied = next(place for place, line in enumerate(head) if line.startswith("# Applied by"))
    assert head[applied + 1].startswith("#   ")


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.name)
def test_our_own_files_fit_our_schema(path: Path) -> None:
    config = load_config(path)
    assert config.num_replicas >= 1 and path.name in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("document", of_kind("ConfigMap"))
def test_a_deployment_inside_a_manifest_fits_our_schema(document: dict[str, Any]) -> None:
    config = build_config(yaml.safe_load(document["data"]["trunkline.yaml"]))
    assert config.routers.per_node and config.routers.host == "node"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("ray-cluster.*.yaml")), ids=lambda path: path.name)
def test_a_launcher_file_fits_rays_schema(path: Path) -> None:
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    jsonschema.validate(config, schema)
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in str(config["head_start_ray_commands"])
    types = config.get("available_node_types", {})
    assert config.get("head_node_type", "head") in (types or {"head"})


def strict(schema: Any) -> Any:
    """With unknown keys refused, as the API server does, wherever the schema names the known ones."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items()}
    if isinstance(made.get("properties"), dict) and not made.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    if made.pop("x-kubernetes-int-or-string", False):
        made.pop("type", None)
    return made


def kuberay(kind: str) -> Any:
    schema = json.loads((SCHEMAS / f"kuberay-1.7-{kind}.json").read_text())
    schema["properties"]["metadata"] = {"type": "object"}  # Kubernetes' own
    return strict(schema)


@pytest.mark.parametrize("document", of_kind("RayCluster"))
def test_a_ray_cluster_fits_kuberays_schema(document: dict[str, Any]) -> None:
    jsonschema.validate(document, kuberay("rayclusters"))


@pytest.mark.parametrize("document", of_kind("RayJob"))
def test_a_ray_job_fits_kuberays_schema(document: dict[str, Any]) -> None:
    jsonschema.validate(document, kuberay("rayjobs"))


def test_the_schemas_catch_a_typing_error() -> None:
    document = of_kind("RayCluster")[0].values[0]
    assert isinstance(document, dict)
    typo = json.loads(json.dumps(document).replace('"readinessProbe"', '"readynessProbe"', 1))
    typo["spec"]["workerGroupSpecs"][0]["maxReplica"] = 2
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(typo, kuberay("rayclusters"))


@pytest.mark.parametrize("document", [*of_kind("RayCluster"), *of_kind("RayJob")])
def test_pods_bear_the_label_that_the_service_selects_and_open_its_port(document: dict[str, Any]) -> None:
    (service,) = (
        each for name, each in documents("load-balancer.kubernetes.yaml") if each["kind"] == "Service"
    )
    for template in pod_templates(document):
        assert template["metadata"]["labels"].items() >= service["spec"]["selector"].items()
        ports = [port["containerPort"] for port in template["spec"]["containers"][0]["ports"]]
        assert service["spec"]["ports"][0]["targetPort"] in ports


@pytest.mark.parametrize("document", [*of_kind("RayCluster"), *of_kind("RayJob")])
def test_every_volume_that_is_mounted_is_there(document: dict[str, Any]) -> None:
    for template in pod_templates(document):
        volumes = {volume["name"] for volume in template["spec"]["volumes"]}
        mounts = template["spec"]["containers"][0]["volumeMounts"]
        assert {mount["name"] for mount in mounts} <= volumes


def test_the_ingress_and_the_budget_belong_to_the_service_and_its_pods() -> None:
    kinds = {each["kind"]: each for _, each in documents("load-balancer.kubernetes.yaml")}
    backend = kinds["Ingress"]["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]
    assert backend["name"] == kinds["Service"]["metadata"]["name"]
    assert backend["port"]["name"] in [port["name"] for port in kinds["Service"]["spec"]["ports"]]
    budget = kinds["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"]
    assert budget == kinds["Service"]["spec"]["selector"]


def test_prometheus_scrapes_where_routers_listen() -> None:
    (config,) = (each for _, each in documents("prometheus.yaml"))
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    assert {job["metrics_path"] for job in jobs.values()} == {"/metrics"}
    assert jobs["trunkline"]["static_configs"][0]["targets"] == ["127.0.0.1:8000", "127.0.0.1:8001"]


def test_the_dockerfile_has_both_targets_that_the_manifests_use() -> None:
    text = (CONFIGS / "Dockerfile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^FROM base AS (\w+)$", text, re.MULTILINE))
    used = {
        image.rpartition("-")[2]
        for path in CONFIGS.glob("kuberay.*.yaml")
        for image in re.findall(r"image: (trunkline:\S+)", path.read_text(encoding="utf-8"))
    }
    assert used == targets == {"cpu", "cuda"}


@pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")
def test_nginx_accepts_its_configuration() -> None:
    path = CONFIGS / "load-balancer.nginx.conf"
    checked = subprocess.run(["nginx", "-t", "-c", str(path)], capture_output=True, text=True, timeout=30)
    assert checked.returncode == 0, checked.stderr


@pytest.mark.skipif(shutil.which("haproxy") is None, reason="haproxy is not installed")
def test_haproxy_accepts_its_configuration() -> None:
    path = CONFIGS / "load-balancer.haproxy.cfg"
    checked = subprocess.run(["haproxy", "-c", "-f", str(path)], capture_output=True, text=True, timeout=30)
    assert checked.returncode == 0, checked.stderr
