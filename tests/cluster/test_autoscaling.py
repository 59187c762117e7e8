"""How many replicas are wanted: single decisions, and whole bursts in virtual time with Serve's own delays around the policy."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray import cloudpickle
from ray.serve import autoscaling_policy
from ray.serve._private.common import DeploymentID, ReplicaID, TimeStampedValue
from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy

from serve_app.app import LOOK_BACK_S, UPSCALE_DELAY_S, ScaledBy, autoscaling
from serve_app.cluster.autoscaling import LIVE, RATE, REMAINING, AudioPolicy, published
from serve_app.settings import BatchingSettings, ModelSettings, Settings

RATE_OF_REPLICA = 100.0
TARGET_WAIT_S = 15.0
LOAD_S = 10.0
IDLE_UNLOAD_S = 60.0
MAX_REPLICAS = 6
MODEL = ModelSettings(
    name="m",
    source="simulated",
    min_replicas=1,
    max_replicas=MAX_REPLICAS,
    idle_unload_s=IDLE_UNLOAD_S,
    target_wait_s=TARGET_WAIT_S,
)
SETTINGS = Settings(models=(MODEL,), batching=BatchingSettings(max_batch_audio_s=96))

Metrics = Mapping[str, Sequence[Sequence[float]]]
"""By name: the values of each replica, oldest first."""

NOTHING: Metrics = {}


def wanted(metrics: Metrics, *, running: int = 1, target: int | None = None, calls: float = 1.0) -> int:
    """The policy's decision, with bounds and delays left out."""
    context = context_of(metrics, running=running, target=target or running, calls=calls)
    replicas, state = AudioPolicy(TARGET_WAIT_S)(context)
    assert state == {}
    return replicas


def context_of(metrics: Metrics, *, running: int, target: int, calls: float, state: dict[str, Any] | None = None) -> Any:
    deployment = DeploymentID("m", "app")
    ids = [ReplicaID(str(number), deployment) for number in range(MAX_REPLICAS)]
    return AutoscalingContext(
        deployment_id=deployment,
        deployment_name="m",
        app_name="app",
        current_num_replicas=running,
        target_num_replicas=target,
        running_replicas=ids[:running],
        total_num_requests=calls,
        total_queued_requests=0.0,
        aggregated_metrics=None,
        raw_metrics={
            name: {ids[n]: [TimeStampedValue(at_s, value) for at_s, value in enumerate(series)] for n, series in enumerate(each)}
            for name, each in metrics.items()
        },
        capacity_adjusted_min_replicas=MODEL.min_replicas,
        capacity_adjusted_max_replicas=MAX_REPLICAS,
        policy_state=state or {},
        last_scale_up_time=None,
        last_scale_down_time=None,
        current_time=0.0,
        config=autoscaling(MODEL, SETTINGS, 0.0),
    )


def metrics_of(remaining: Sequence[Sequence[float]], live: Sequence[Sequence[float]] = ((0,),), rate: float = 100.0) -> Metrics:
    return {REMAINING: remaining, LIVE: live, RATE: [[rate]] * len(remaining)}


class TestOneDecision:
    @pytest.mark.parametrize(("remaining_s", "replicas"), [(1, 1), (1500, 1), (1501, 2), (10_800, 8)])
    def test_as_many_as_bring_the_wait_under_the_target(self, remaining_s: float, replicas: int) -> None:
        assert wanted(metrics_of([[remaining_s]])) == replicas

    def test_every_replica_publishes_the_demand_of_the_cluster_so_it_counts_once(self) -> None:
        assert wanted(metrics_of([[3000], [2900], [3000]], [[0], [0], [0]]), running=3) == 2

    def test_live_streams_need_their_load_and_room_for_windows_that_come_together(self) -> None:
        assert wanted(metrics_of([[0]], [[400]])) == 4
        assert wanted(metrics_of([[300]], [[400]])) == 5

    def test_the_rate_is_the_mean_of_the_replicas(self) -> None:
        assert wanted({REMAINING: [[3000], [3000]], LIVE: [[0], [0]], RATE: [[10, 50], [150]]}, running=2) == 2

    def test_more_by_the_newest_values_fewer_by_the_mean_of_the_look_back_period(self) -> None:
        falling = metrics_of([[9000, 8900, 100]])
        assert wanted(falling, target=1) == 1
        assert wanted(falling, target=3, running=3) == 3
        assert wanted(falling, target=6, running=6) == 4
        assert wanted(metrics_of([[100, 100, 9000]]), target=1) == 6

    def test_without_demand_none_unless_a_call_is_in_flight(self) -> None:
        assert wanted(metrics_of([[0]]), calls=0) == 0
        assert wanted(metrics_of([[0]]), calls=0.5) == 1

    @pytest.mark.parametrize("metrics", [{}, {REMAINING: [[]], LIVE: [[]], RATE: [[]]}, {RATE: [[100]]}])
    def test_until_the_demand_is_known_the_calls_in_flight_count(self, metrics: Metrics) -> None:
        assert wanted(metrics, calls=7) == 3, "three windows fill a batch"

    def test_without_replicas_a_call_wakes_one(self) -> None:
        policy = AudioPolicy(TARGET_WAIT_S)
        assert policy(context_of({}, running=0, target=0, calls=0.2))[0] == 1
        assert policy(context_of({}, running=0, target=0, calls=0))[0] == 0
        assert policy(context_of({}, running=0, target=2, calls=0))[0] == 2, "those that are being loaded"


def test_what_a_replica_publishes_are_numbers_of_the_type_that_serve_accepts() -> None:
    values = published(1, 2, 3)
    assert values == {REMAINING: 1.0, LIVE: 2.0, RATE: 3.0}
    assert all(type(value) is float for value in values.values())


def test_the_controller_can_unpickle_it_without_this_project(tmp_path: Path) -> None:
    config = autoscaling(MODEL, SETTINGS, 0.0)
    assert config.policy.policy_kwargs == {"target_wait_s": TARGET_WAIT_S}
    path = tmp_path / "policy"
    path.write_bytes(config.policy.get_serialized_policy_def() or b"")
    code = (
        "import sys; from ray import cloudpickle; sys.modules['serve_app'] = None;"
        f"print(cloudpickle.loads(open({str(path)!r}, 'rb').read())(target_wait_s=1.0))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "AudioPolicy" in done.stdout
    assert cloudpickle.loads(path.read_bytes()).__name__ == "AudioPolicy"


@dataclass
class Burst:
    """One file on a simulated cluster, under a policy, with Serve's delays, in virtual time."""

    scaled_by: ScaledBy
    remaining_s: float
    publish_s: float = 2.0
    now_s: float = 0.0
    done_s: float = 0.0
    replica_s: float = 0.0
    started_s: list[float] = field(default_factory=lambda: [-LOAD_S])
    counts: list[int] = field(default_factory=list)

    def run(self, monkeypatch: pytest.MonkeyPatch, tick_s: float = 0.5) -> "Burst":
        monkeypatch.setattr(autoscaling_policy, "time", SimpleNamespace(time=lambda: self.now_s))
        config = autoscaling(MODEL, SETTINGS, 0.0, self.scaled_by)
        decide = autoscaling_policy._apply_autoscaling_config(callable_of(config.policy))
        state: dict[str, Any] = {}
        known: list[tuple[float, float, float]] = []  # time, remaining, calls in flight
        calls, metrics, publish_at_s = 0.0, NOTHING, 0.0
        while self.remaining_s or len(self.started_s) > 1:
            running = sum(self.now_s - at_s >= LOAD_S for at_s in self.started_s)
            # A file has two full batches in flight for each replica.
            known.append((self.now_s, self.remaining_s, 6.0 * running if self.remaining_s else 0.0))
            known = [each for each in known if each[0] > self.now_s - LOOK_BACK_S]
            if self.now_s >= publish_at_s:
                publish_at_s += self.publish_s
                metrics = metrics_of([[each[1] for each in known]] * running, [[0]] * running, RATE_OF_REPLICA)
                calls = sum(each[2] for each in known) * tick_s / LOOK_BACK_S
            target = len(self.started_s)
            context = context_of(metrics, running=running, target=target, calls=calls, state=state)
            decision, state = decide(context)
            decision = max(MODEL.min_replicas, min(MAX_REPLICAS, decision))
            self.started_s = self.started_s[:decision] + [self.now_s] * (decision - target)
            self.counts.append(decision)
            self.replica_s += decision * tick_s
            self.remaining_s = max(0.0, self.remaining_s - running * RATE_OF_REPLICA * tick_s)
            self.now_s += tick_s
            self.done_s = self.done_s if not self.remaining_s and self.done_s else self.now_s
            assert self.now_s < 3600
        return self


def callable_of(policy: AutoscalingPolicy) -> Any:
    """As the controller makes it."""
    made = policy.get_policy()
    return made(**policy.policy_kwargs) if isinstance(made, type) else made


class TestBursts:
    def test_a_long_file_gets_all_its_replicas_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        burst = Burst("audio", 10_800).run(monkeypatch)
        increases = {count for before, count in zip(burst.counts, burst.counts[1:], strict=False) if count > before}
        assert increases == {MAX_REPLICAS}

    def test_it_is_done_sooner_than_by_calls_and_costs_no_more(self, monkeypatch: pytest.MonkeyPatch) -> None:
        by_audio = Burst("audio", 10_800).run(monkeypatch)
        by_calls = Burst("calls", 10_800, publish_s=10.0).run(monkeypatch)
        assert by_audio.done_s < by_calls.done_s
        assert by_audio.replica_s <= by_calls.replica_s

    def test_a_short_file_starts_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        burst = Burst("audio", 0.9 * TARGET_WAIT_S * RATE_OF_REPLICA).run(monkeypatch)
        assert set(burst.counts) == {1}

    def test_replicas_stay_until_they_were_not_needed_for_idle_unload_s(self, monkeypatch: pytest.MonkeyPatch) -> None:
        burst = Burst("audio", 10_800).run(monkeypatch)
        at_once = [after - before for before, after in zip(burst.counts, burst.counts[1:], strict=False)]
        falls = [number for number, change in enumerate(at_once) if change < 0]
        rises = [number for number, change in enumerate(at_once) if change > 0]
        assert rises
        assert falls
        assert 0.5 * (falls[0] - rises[-1]) >= IDLE_UNLOAD_S
        assert 0.5 * (rises[0] + 1) >= UPSCALE_DELAY_S


def test_serve_takes_the_configuration() -> None:
    config = autoscaling(MODEL, SETTINGS, 0.0)
    assert isinstance(config, AutoscalingConfig)
    assert (config.min_replicas, config.max_replicas, config.downscale_delay_s) == (1, MAX_REPLICAS, IDLE_UNLOAD_S)
    assert config.get_target_ongoing_requests() == 3
