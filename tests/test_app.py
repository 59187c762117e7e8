"""Resources of the deployments."""

import pytest

from serve_app.app import gpus_per_replica, ingress_replicas_per_node
from serve_app.request_settings import IngressSettings
from serve_app.settings import ModelSettings, Settings


class TestGpusPerReplica:
    MODELS = Settings(
        models=(
            ModelSettings(name="a", source="nvidia/a"),
            ModelSettings(name="b", source="nvidia/b"),
            ModelSettings(name="f", source="nvidia/f"),
            ModelSettings(name="c", source="nvidia/c", device="cpu"),
            ModelSettings(name="d", source="bundled"),
            ModelSettings(name="e", source="nvidia/e", gpus_per_replica=0.25),
        )
    )

    @pytest.mark.parametrize(("gpus", "share"), [(0, 0.0), (1, 0.33), (2, 0.5), (3, 1.0), (8, 1.0)])
    def test_one_for_each_model_that_leaves_it_open_or_an_equal_share(self, gpus: float, share: float) -> None:
        assert gpus_per_replica(self.MODELS, gpus) == {"a": share, "b": share, "f": share, "c": 0.0, "d": 0.0, "e": 0.25}


class TestIngressReplicas:
    @pytest.mark.parametrize(
        ("node_cpus", "per_node"), [([2], 1), ([15], 1), ([16], 2), ([100, 100], 12), ([100, 8, 4], 1), ([0], 1)]
    )
    def test_one_for_every_eight_cores_of_the_smallest_node(self, node_cpus: list[float], per_node: int) -> None:
        assert ingress_replicas_per_node(Settings(ingress=IngressSettings(replicas=0)), node_cpus) == per_node

    @pytest.mark.parametrize(("node_cpus", "per_node"), [([2], 5), ([32, 2], 3), ([2] * 9, 1)])
    def test_a_number_of_ones_own(self, node_cpus: list[float], per_node: int) -> None:
        assert ingress_replicas_per_node(Settings(ingress=IngressSettings(replicas=5)), node_cpus) == per_node
