"""Serve's log: its form, and the request that a line belongs to.

`request_id`, `set_request_id` and `own_context` use Serve's private context (2.60): its log takes the id from there, and so do
calls to other deployments.
"""

import logging
from contextvars import Context
from logging.handlers import MemoryHandler
from typing import Literal

from ray.serve import context

from serve_app.errors import SpeechError

log = logging.getLogger("ray.serve")


def apply(log_format: Literal["text", "json"]) -> None:
    """For the constructor of a deployment: gives the lines on stderr the form of those in the log file of this process.

    Serve writes JSON to the file alone.
    """
    of_file = next((handler for handler in log.handlers if isinstance(handler, MemoryHandler)), None)
    if log_format != "json" or of_file is None or of_file.target is None:
        return
    for handler in log.handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setFormatter(of_file.target.formatter)
            for each in of_file.filters:
                handler.addFilter(each)


def without_traceback(record: logging.LogRecord) -> bool:
    """Filter of Serve's log: where it reports an exception that is foreseen, the message says it all."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, SpeechError):
        record.msg, record.args, record.exc_info = f"{record.getMessage()} {type(error).__name__}: {error}", (), None
    return True


def request_id() -> str:
    """The id of the request that this task works for; empty if it is none."""
    return context._get_serve_request_context().request_id


def set_request_id(request_id: str) -> None:
    """Have this task work for that request."""
    context._set_request_context(request_id=request_id)


def own_context() -> Context:
    """For calls of other deployments, which whoever waits for them has to cancel. Log lines keep the request's id.

    In the context of a request, Serve and Ray cancel its calls before the task that waits for them, to which they look lost with
    their replica. And all its calls get one id from Serve, by which a router could not tell them apart.
    """
    current, own = context._get_serve_request_context(), Context()
    own.run(context._set_request_context, route=current.route, request_id=current.request_id, app_name=current.app_name)
    return own
