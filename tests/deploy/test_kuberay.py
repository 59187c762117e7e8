"""The manifests for Kubernetes: valid, like configs/, and in accord with each other, the image and the server."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from ray._private import ray_constants

from serve_app import __version__, run
from serve_app.app import DRAIN_S
from serve_app.request_settings import LimitSettings
from serve_app.settings import Settings
from testing.kuberay import PodTemplate, RayService
from testing.paths import ROOT

FOLDER = ROOT / "deploy" / "kuberay"
CONFIGS = {"cpu.yaml": "cluster_cpu.yaml", "gpu.yaml": "cluster.yaml"}
CRD = "KUBERAY_CRD"
"""Variable that names KubeRay's file ray.io_rayservices.yaml, against which the manifests are checked too."""
ALERTS = (ROOT / "deploy" / "prometheus" / "alerts.yml").read_text()
DRAIN_VARIABLE = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"


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


def templates(service: RayService) -> tuple[PodTemplate, PodTemplate]:
    """Of the head and of the workers."""
    cluster = service.spec.rayClusterConfig
    (group,) = cluster.workerGroupSpecs
    return cluster.headGroupSpec.template, group.template


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


def test_they_serve_what_the_config_says_with_other_bounds(name: str, service: RayService) -> None:
    """`max_replicas` are for the pods that there may be, which a configuration for any cluster does not know."""
    served = yaml.safe_load(service.spec.serveConfigV2)
    config = yaml.safe_load((ROOT / "configs" / CONFIGS[name]).read_text())
    for content in (served, config):
        for model in content["applications"][0]["args"]["models"]:
            assert model.pop("max_replicas") > 1
    assert served == config


def test_no_model_takes_the_pods_of_another_one(service: RayService) -> None:
    """A pod has room for one replica, see below."""
    (application,) = yaml.safe_load(service.spec.serveConfigV2)["applications"]
    (group,) = service.spec.rayClusterConfig.workerGroupSpecs
    assert sum(model.max_replicas for model in Settings(**application["args"]).models) == group.maxReplicas


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
    assert f"ray=={service.spec.rayClusterConfig.rayVersion}" in (ROOT / "constraints.txt").read_text().splitlines()
    assert service.spec.rayClusterDeletionDelaySeconds == DRAIN_S
    for template in templates(service):
        (container,) = template.spec.containers
        assert container.image.endswith(f":{__version__}")
        assert [mount.mountPath for mount in container.volumeMounts] == ["/models", "/tmp"]


def test_a_worker_that_is_stopped_finishes_its_requests(service: RayService) -> None:
    """On SIGTERM, `ray start --block` drains its node for as long as the variable says. Serve gives an ingress on it DRAIN_S."""
    assert hasattr(ray_constants, DRAIN_VARIABLE)
    _, worker = templates(service)
    drain_s = float({variable.name: variable.value for variable in worker.spec.containers[0].env}[DRAIN_VARIABLE])
    assert drain_s == DRAIN_S
    assert worker.spec.terminationGracePeriodSeconds > drain_s + run.SHUT_DOWN_S


def test_what_they_refer_to_exists(service: RayService) -> None:
    claim = manifest("models.yaml")
    for template in templates(service):
        claims = [volume.persistentVolumeClaim for volume in template.spec.volumes if volume.persistentVolumeClaim]
        assert [found.claimName for found in claims] == [claim["metadata"]["name"]]
        assert template.spec.containers[0].envFrom[0].secretRef.name == "parakeet"


def test_policies_and_metrics_are_of_every_pod(service: RayService) -> None:
    monitor, policy = yaml.safe_load_all((FOLDER / "metrics.yaml").read_text())
    policies = [manifest("network-policy.yaml"), policy]
    selectors = [monitor["spec"]["selector"], *(each["spec"]["podSelector"] for each in policies)]
    for template in templates(service):
        assert [selector["matchLabels"] for selector in selectors] == 3 * [template.metadata.labels]
        assert f'job="{template.metadata.labels[monitor["spec"]["jobLabel"]]}"' in ALERTS


def test_an_ingress_leads_to_the_service_and_waits_as_long_as_a_request_may_take(service: RayService) -> None:
    content = manifest("ingress.yaml")
    (rule,) = content["spec"]["rules"]
    (path,) = rule["http"]["paths"]
    assert path["backend"]["service"]["name"] == f"{service.metadata.name}-serve-svc"
    (policy_port,) = manifest("network-policy.yaml")["spec"]["ingress"][-1]["ports"]
    assert path["backend"]["service"]["port"]["number"] == policy_port["port"]
    annotations = {name.rpartition("/")[2]: value for name, value in content["metadata"]["annotations"].items()}
    for name in ("proxy-read-timeout", "proxy-send-timeout"):
        assert int(annotations[name]) > LimitSettings().request_timeout_s
    assert [annotations[name] for name in ("proxy-body-size", "proxy-request-buffering", "proxy-buffering")] == [
        "0",
        "off",
        "off",
    ]


def test_a_full_disk_is_announced(service: RayService) -> None:
    """Kubernetes evicts a pod that fills its folder. The alert comes at half of it."""
    (alert_bytes,) = re.findall(r"ray_parakeet_upload_spool_bytes\) > (\S+)", ALERTS)
    for template in templates(service):
        (folder,) = [volume.emptyDir for volume in template.spec.volumes if volume.emptyDir]
        assert float(folder.sizeLimit.removesuffix("Gi")) * 2**30 >= 2 * float(alert_bytes)


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
