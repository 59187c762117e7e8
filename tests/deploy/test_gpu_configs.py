"""The configurations for two and for eight GPUs: every replica that a model may have finds a GPU, whatever the others have."""

from itertools import permutations

import pytest

from serve_app.app import gpus_per_replica
from serve_app.settings import Settings
from testing.paths import ROOT
from tests.test_settings import application_args

GPUS = {"two_gpus.yaml": 2, "eight_gpus.yaml": 8}


def waits(shares: tuple[float, ...], gpus: int) -> bool:
    """Whether a replica finds no GPU when replicas with these shares start one after the other.

    Of the GPUs with enough left, Ray takes the one with the least.
    """
    free = [1.0] * gpus
    for share in shares:
        enough = [index for index in range(gpus) if free[index] >= share - 1e-9]
        if not enough:
            return True
        free[min(enough, key=lambda index: free[index])] -= share
    return False


def orders(settings: Settings, gpus: int) -> set[tuple[float, ...]]:
    """Shares of all replicas that there may be, in every order in which they may start: first those of the server's start."""
    shares = gpus_per_replica(settings, gpus)
    first = [shares[model.name] for model in settings.models for _ in range(model.min_replicas)]
    later = [shares[model.name] for model in settings.models for _ in range(model.max_replicas - model.min_replicas)]
    return {head + tail for head in set(permutations(first)) for tail in set(permutations(later))}


def settings_of(name: str) -> Settings:
    return Settings(**application_args(ROOT / "configs" / name))


@pytest.mark.parametrize(("name", "gpus"), GPUS.items())
def test_no_model_starves_another(name: str, gpus: int) -> None:
    assert [order for order in orders(settings_of(name), gpus) if waits(order, gpus)] == []


@pytest.mark.parametrize(("name", "gpus"), GPUS.items())
def test_every_gpu_can_be_used_and_every_model_is_loaded(name: str, gpus: int) -> None:
    settings = settings_of(name)
    shares = gpus_per_replica(settings, gpus)
    assert sum(shares[model.name] * model.max_replicas for model in settings.models) == pytest.approx(gpus)
    assert all(model.min_replicas >= 1 for model in settings.models)


@pytest.mark.parametrize(("changed", "replicas"), [(0, (2, 3)), (1, (2, 2)), (1, (1, 3))])
def test_other_numbers_would_starve_one(changed: int, replicas: tuple[int, int]) -> None:
    """What the numbers for two GPUs are for."""
    settings = settings_of("two_gpus.yaml")
    models = list(settings.models)
    minimum, maximum = replicas
    models[changed] = models[changed].model_copy(update={"min_replicas": minimum, "max_replicas": maximum})
    assert any(waits(order, 2) for order in orders(settings.model_copy(update={"models": tuple(models)}), 2))
