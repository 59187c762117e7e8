"""The manifests for Kubernetes: valid, equal to configs/, and in accord with each other, the image and the server."""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from serve_app import __version__
from serve_app.app import DRAIN_S
from serve_app.settings import Settings
from testing.kuberay import RayService
from testing.paths import ROOT

FOLDER = ROOT / "deploy" / "kuberay"
CONFIGS = {"cpu.yaml": "cluster_cpu.yaml", "gpu.yaml": "cluster.yaml"}
CRD = "KUBERAY_CRD"
"""Variable that names KubeRay's file ray.io_rayservices.yaml, against which the manifests are checked too."""


def manifest(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((FOLDER / name).read_text())
    return content


def merged(content: Any, patch: Any) -> Any:
    """`kubectl patch --type merge`."""
    if not (isinstance(content, dict) and isinstance(patch, dict)):
        return patch
    return content | {name: merged(content.get(name), value) for name, value in patch.items()}


def upgraded_in_steps(name: str) -> dict[str, Any]:
    patched: dict[str, Any] = merged(manifest(name), manifest("incremental-upgrade.yaml"))
    return patched


@pytest.fixture(params=CONFIGS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def service(name: str) -> RayService:
    return RayService.model_validate(manifest(name))


def test_with_either_upgrade_strategy_they_are_valid(name: str, service: RayService) -> None:
    assert service.spec.upgradeStrategy.type == "NewCluster"
    assert RayService.model_validate(upgraded_in_steps(name)).spec.upgradeStrategy.type == "NewClusterWithIncrementalUpgrade"


@pytest.mark.parametrize(
    "patch",
    [
        {"kind": "RayCluster"},
        {"spec": {"serveConfig": ""}},
        {"spec": {"upgradeStrategy": {"type": "RollingUpdate"}}},
        {"spec": {"upgradeStrategy": {"type": "NewClusterWithIncrementalUpgrade"}}},
        {"spec": {"rayClusterDeletionDelaySeconds": "600"}},
        {"spec": {"rayClusterConfig": {"workerGroupSpecs": []}}},
    ],
    ids=str,
)
def test_mistakes_are_found(name: str, patch: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        RayService.model_validate(merged(manifest(name), patch))


def test_they_serve_what_the_config_says(name: str, service: RayService) -> None:
    assert yaml.safe_load(service.spec.serveConfigV2) == yaml.safe_load((ROOT / "configs" / CONFIGS[name]).read_text())


def test_a_worker_has_room_for_an_ingress_and_a_replica_of_any_model(name: str, service: RayService) -> None:
    (application,) = yaml.safe_load(service.spec.serveConfigV2)["applications"]
    settings = Settings(**application["args"])
    (group,) = service.spec.rayClusterConfig.workerGroupSpecs
    limits = group.template.spec.containers[0].resources.limits
    for model in settings.models:
        assert settings.ingress.cpus_per_replica + model.cpus_per_replica <= float(limits["cpu"])
        assert (model.gpus_per_replica or 0) == float(limits.get("nvidia.com/gpu", "0"))
    assert group.minReplicas >= sum(model.min_replicas for model in settings.models)


def test_versions_and_times_are_those_of_the_project(service: RayService) -> None:
    cluster = service.spec.rayClusterConfig
    assert f"ray=={cluster.rayVersion}" in (ROOT / "constraints.txt").read_text().splitlines()
    assert service.spec.rayClusterDeletionDelaySeconds == DRAIN_S
    for template in (cluster.headGroupSpec.template, *(group.template for group in cluster.workerGroupSpecs)):
        (container,) = template.spec.containers
        assert container.image.endswith(f":{__version__}")
        assert [mount.mountPath for mount in container.volumeMounts] == ["/models", "/tmp"]


def test_what_they_refer_to_exists(service: RayService) -> None:
    templates = [
        service.spec.rayClusterConfig.headGroupSpec.template,
        *(group.template for group in service.spec.rayClusterConfig.workerGroupSpecs),
    ]
    claim, policy = manifest("models.yaml"), manifest("network-policy.yaml")
    for template in templates:
        claims = [volume.persistentVolumeClaim for volume in template.spec.volumes if volume.persistentVolumeClaim]
        assert [found.claimName for found in claims] == [claim["metadata"]["name"]]
        assert template.metadata.labels == policy["spec"]["podSelector"]["matchLabels"]
        assert template.spec.containers[0].envFrom[0].secretRef.name == "parakeet"


@pytest.mark.skipif(CRD not in os.environ, reason=f"{CRD} does not name KubeRay's ray.io_rayservices.yaml")
def test_kuberay_knows_every_field(name: str) -> None:
    import jsonschema  # type: ignore[import-untyped]

    (version,) = [
        version
        for version in yaml.load(Path(os.environ[CRD]).read_text(), yaml.CSafeLoader)["spec"]["versions"]
        if version["name"] == "v1"
    ]
    schema = closed(version["schema"]["openAPIV3Schema"])
    for content in (manifest(name), upgraded_in_steps(name)):
        jsonschema.validate(content, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(merged(manifest(name), {"spec": {"serveConfig": ""}}), schema)


def closed(schema: Any) -> Any:
    """A schema of Kubernetes as one of JSON that allows no other fields, which Kubernetes would drop."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    made = {name: closed(value) for name, value in schema.items()}
    has_fields = isinstance(schema.get("properties"), dict) and schema.get("type") == "object"
    if has_fields and "additionalProperties" not in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        made["additionalProperties"] = False
    return made
