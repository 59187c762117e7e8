"""The application with Serve's own policy, by calls in flight, for benchmarks/autoscaling.py: a Serve config names builders."""

from ray.serve import Application

from serve_app.app import build_application
from serve_app.settings import Settings

SERVE_PUBLISH_S = 10.0
"""Serve's default, seconds."""


def build_app(args: Settings) -> Application:
    return build_application(args, scaled_by="calls", publish_s=SERVE_PUBLISH_S)


def build_prompt_app(args: Settings) -> Application:
    """With the counts as fresh as the demand is."""
    return build_application(args, scaled_by="calls")
