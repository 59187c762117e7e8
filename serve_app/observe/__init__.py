"""Metrics for Prometheus. Only `ray_recorder` and `node_exporter` know Ray; the rest of the server gets a `Recorder`."""
