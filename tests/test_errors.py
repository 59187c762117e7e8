"""The tree of errors."""

import pickle

import pytest

from serve_app.errors import EngineBroken, ModelUnavailable, Overloaded


@pytest.mark.parametrize("error", [ModelUnavailable("why", param="model"), EngineBroken("how"), Overloaded("full")])
def test_errors_survive_the_way_between_processes(error: Exception) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert vars(copy) == vars(error)
