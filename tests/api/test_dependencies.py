"""What FastAPI calls for each request."""

import inspect

from fastapi.routing import APIRoute

from serve_app.api import auth, rest
from testing.fake_service import FakeService


def test_no_dependency_takes_a_thread(server: FakeService) -> None:
    """FastAPI runs plain functions in threads, which costs a short request more than they do."""
    routes = [
        route
        for route in rest.create_router(server.service, auth.Keys(server.service.settings.auth)).routes
        if isinstance(route, APIRoute)
    ]
    calls = [dependency.call for route in routes for dependency in route.dependant.dependencies]
    assert len(calls) > 4
    assert all(inspect.iscoroutinefunction(call) for call in calls)
