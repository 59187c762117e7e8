"""Which deployments an application has, by what Serve's controller says at each time."""

import logging
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve.schema import ApplicationStatus

from serve_app.cluster import running_application
from serve_app.cluster.running_application import RunningApplication

REQUEST: ContextVar[str] = ContextVar("REQUEST", default="")
"""What Ray keeps of a request is of this kind: it cancels the calls that are made in that context together with the request."""


class Controller:
    """Answers with what it is told to."""

    def __init__(self) -> None:
        self.status = ApplicationStatus.RUNNING
        self.deployments = ["ingress", "model a"]
        self.error: Exception | None = None
        self.requests = set[str]()
        """For whom it was asked."""

    def get_serve_status(self, name: str) -> Any:
        assert name == "app"
        self.requests.add(REQUEST.get())
        if self.error is not None:
            raise self.error
        names = [SimpleNamespace(name=deployment) for deployment in self.deployments]
        return SimpleNamespace(app_status=SimpleNamespace(status=self.status), deployment_statuses=names)


@pytest.fixture
def controller(monkeypatch: pytest.MonkeyPatch) -> Controller:
    controller = Controller()
    monkeypatch.setattr(running_application, "_get_global_client", lambda: controller)
    monkeypatch.setattr(running_application, "MAX_AGE_S", 0.0)
    return controller


async def test_a_model_is_removed_once_its_deployment_is_not_named(controller: Controller) -> None:
    application = RunningApplication("app")
    assert await application.includes("model a")
    assert not await application.includes("model b")
    controller.deployments = ["ingress"]
    assert not await application.includes("model a")


@pytest.mark.parametrize("status", [ApplicationStatus.DEPLOYING, ApplicationStatus.DEPLOY_FAILED])
async def test_while_an_application_is_built_anew_the_old_one_counts(controller: Controller, status: ApplicationStatus) -> None:
    """Serve names no deployment then."""
    application = RunningApplication("app")
    assert await application.includes("model a")
    controller.status, controller.deployments = status, []
    assert await application.includes("model a")
    assert not await application.includes("model b")


@pytest.mark.parametrize("status", [ApplicationStatus.DELETING, ApplicationStatus.NOT_STARTED])
async def test_an_application_that_is_removed_has_none(controller: Controller, status: ApplicationStatus) -> None:
    application = RunningApplication("app")
    controller.status = status
    assert not await application.includes("ingress")


async def test_it_is_asked_for_no_request_in_particular(controller: Controller, caplog: pytest.LogCaptureFixture) -> None:
    of_line: list[str] = []

    def note(_: logging.LogRecord) -> bool:
        of_line.append(REQUEST.get())
        return True

    application = RunningApplication("app")
    REQUEST.set("a request")
    assert await application.includes("model a")
    controller.error = RuntimeError("no controller")
    caplog.handler.addFilter(note)
    assert await application.includes("model a")
    assert of_line == [""]
    assert controller.requests == {""}


async def test_a_controller_that_does_not_answer_changes_nothing(controller: Controller) -> None:
    application = RunningApplication("app")
    controller.error = RuntimeError("no controller")
    assert await application.includes("model a")
    controller.error = None
    assert not await application.includes("model b")
    controller.error = RuntimeError("no controller")
    assert await application.includes("model a")
    assert not await application.includes("model b")
