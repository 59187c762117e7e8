"""The model replica's log. tests/server/ drives whole replicas."""

import logging

import pytest

from serve_app.deployments import without_traceback
from serve_app.errors import ModelUnavailable


@pytest.mark.parametrize(("error", "has_traceback"), [(ModelUnavailable("it is not there"), False), (KeyError("x"), True)])
def test_what_is_foreseen_is_logged_without_a_traceback(
    error: Exception, has_traceback: bool, caplog: pytest.LogCaptureFixture
) -> None:
    log = logging.getLogger("test_deployments")
    log.addFilter(without_traceback)
    try:
        raise error
    except Exception:
        log.exception("Request failed.")
    assert "Request failed." in caplog.text
    assert ("Traceback" in caplog.text) == has_traceback
    assert type(error).__name__ in caplog.text
