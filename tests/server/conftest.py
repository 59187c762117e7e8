"""Two lanes of servers at the most: the shared one of demo/, and beside it those of one other module after the other."""

from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            lane = "demo" if item.path.is_relative_to(HERE / "demo") else "other servers"
            item.add_marker(pytest.mark.xdist_group(lane))
