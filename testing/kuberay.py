"""The fields of KubeRay's RayService that deploy/kuberay/ uses, and no others: a misspelt one would be ignored or refused."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]
Quantity = Annotated[str, StringConstraints(pattern=r"^[0-9]+(\.[0-9]+)?(m|[kMGT]|[KMGT]i)?$")]
Port = Annotated[int, Field(ge=1, le=65_535)]
Percent = Annotated[int, Field(ge=0, le=100)]


class Spec(BaseModel):
    """Part of a manifest. Kubernetes converts no types, and spells names in camel case."""

    model_config = ConfigDict(extra="forbid", strict=True)


class EmptyDir(Spec):
    sizeLimit: Quantity


class Claim(Spec):
    claimName: Name


class Volume(Spec):
    name: Name
    emptyDir: EmptyDir | None = None
    persistentVolumeClaim: Claim | None = None

    @model_validator(mode="after")
    def _has_one_source(self) -> "Volume":
        if (self.emptyDir is None) == (self.persistentVolumeClaim is None):
            raise ValueError("a volume has one source")
        return self


class Mount(Spec):
    name: Name
    mountPath: str


class SecretReference(Spec):
    name: Name


class EnvironmentSource(Spec):
    secretRef: SecretReference


class Variable(Spec):
    name: str
    value: str


class ContainerPort(Spec):
    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]{1,15}$")]
    containerPort: Port


class Capabilities(Spec):
    drop: list[Literal["ALL"]]


class ContainerRights(Spec):
    allowPrivilegeEscalation: Literal[False]
    readOnlyRootFilesystem: Literal[True]
    capabilities: Capabilities


class Resources(Spec):
    requests: dict[str, Quantity]
    limits: dict[str, Quantity]

    @model_validator(mode="after")
    def _limits_hold_the_requests(self) -> "Resources":
        if any(self.limits.get(name, amount) != amount for name, amount in self.requests.items()):
            raise ValueError("what has a limit is requested whole, or Ray counts more than there may be")
        return self


class Container(Spec):
    name: Name
    image: str
    ports: list[ContainerPort]
    securityContext: ContainerRights
    env: list[Variable]
    envFrom: list[EnvironmentSource]
    resources: Resources
    volumeMounts: list[Mount]


class SeccompProfile(Spec):
    type: Literal["RuntimeDefault"]


class PodRights(Spec):
    runAsNonRoot: Literal[True]
    runAsUser: Annotated[int, Field(ge=1)]
    runAsGroup: Annotated[int, Field(ge=1)]
    fsGroup: int
    seccompProfile: SeccompProfile


class Toleration(Spec):
    key: str
    operator: Literal["Exists"]
    effect: Literal["NoSchedule"]


class Pod(Spec):
    securityContext: PodRights
    tolerations: list[Toleration] = []
    terminationGracePeriodSeconds: Annotated[int, Field(ge=0)] = 30
    containers: Annotated[list[Container], Field(min_length=1)]
    volumes: list[Volume]

    @model_validator(mode="after")
    def _mounts_have_volumes(self) -> "Pod":
        names = {volume.name for volume in self.volumes}
        if any(mount.name not in names for container in self.containers for mount in container.volumeMounts):
            raise ValueError("a mount names no volume")
        return self


class PodMetadata(Spec):
    labels: dict[str, str]


class PodTemplate(Spec):
    metadata: PodMetadata
    spec: Pod


class HeadGroup(Spec):
    rayStartParams: dict[str, str]
    template: PodTemplate


class WorkerGroup(Spec):
    groupName: Name
    minReplicas: Annotated[int, Field(ge=0)]
    maxReplicas: Annotated[int, Field(ge=1)]
    rayStartParams: dict[str, str]
    template: PodTemplate


class AutoscalerOptions(Spec):
    idleTimeoutSeconds: Annotated[int, Field(ge=0)]
    resources: Resources


class Cluster(Spec):
    rayVersion: str
    enableInTreeAutoscaling: Literal[True]
    autoscalerOptions: AutoscalerOptions
    headGroupSpec: HeadGroup
    workerGroupSpecs: Annotated[list[WorkerGroup], Field(min_length=1)]


class ClusterUpgradeOptions(Spec):
    gatewayClassName: Name
    maxSurgePercent: Percent
    stepSizePercent: Percent
    intervalSeconds: Annotated[int, Field(ge=1)]

    @model_validator(mode="after")
    def _steps_fit(self) -> "ClusterUpgradeOptions":
        if self.stepSizePercent > self.maxSurgePercent:
            raise ValueError("stepSizePercent must be at most maxSurgePercent")
        return self


class UpgradeStrategy(Spec):
    type: Literal["NewCluster", "NewClusterWithIncrementalUpgrade"]
    clusterUpgradeOptions: ClusterUpgradeOptions | None = None

    @model_validator(mode="after")
    def _options_belong_to_the_type(self) -> "UpgradeStrategy":
        if (self.clusterUpgradeOptions is None) != (self.type == "NewCluster"):
            raise ValueError("clusterUpgradeOptions are for NewClusterWithIncrementalUpgrade, which needs them")
        return self


class ServiceSpec(Spec):
    upgradeStrategy: UpgradeStrategy
    rayClusterDeletionDelaySeconds: Annotated[int, Field(ge=0)]
    excludeHeadPodFromServeSvc: bool
    serveConfigV2: str
    rayClusterConfig: Cluster


class Metadata(Spec):
    name: Name


class RayService(Spec):
    """The whole manifest."""

    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayService"]
    metadata: Metadata
    spec: ServiceSpec
