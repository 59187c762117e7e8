"""The rules that keep the file list the architecture: who may import what, no circles, short files."""

import ast
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from testing.paths import ROOT

PACKAGE = ROOT / "serve_app"
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in sorted(PACKAGE.rglob("*.py"))}
MAX_LINES = 300

RAY_CLUSTER = [
    *("cluster.model_client", "cluster.routing", "cluster.running_application", "cluster.backpressure", "cluster.message_socket"),
    *("cluster.proxies", "cluster.proxy_patch", "cluster.calls", "cluster.diarizer_client"),
]
"""The modules of cluster/ that know Ray."""

RAY_OBSERVE = ["observe.ray_recorder", "observe.node_exporter", "observe.serve_log"]
"""The same of observe/."""

MAY_IMPORT = {
    "ray": ["app", "run", "ingress", "deployments", "replica", *RAY_CLUSTER, *RAY_OBSERVE],
    "torch": ["engine", "live.vad", "diarization.sortformer", "diarization.number_format"],
    "nemo": ["engine", "diarization.sortformer"],
    "omegaconf": ["engine"],
    "fastapi": ["api", "ingress"],
    "starlette": ["api", "cluster.backpressure", "cluster.message_socket", "cluster.proxies", "cluster.proxy_patch"],
    "av": ["audio"],
    "sqlite3": ["jobs.sqlite"],
    "psycopg": ["jobs.postgres"],
    "opentelemetry": ["observe.otel_tracer"],
    "httpx2": ["command_line", "engine.model_files", "observe.node_exporter", "jobs.webhook_targets", "jobs.webhook_client"],
}
"""By package: the folders and modules of serve_app that may import it, anywhere in them."""

PURE = [
    *("audio", "decoders", "merging", "output", "live.session", "live.windows", "live.endpointing", "live.detection"),
    *("engine.protocol", "engine.batch_queue", "engine.batch_policy", "engine.batch_cost", "engine.decode_rate"),
    *("cluster.status", "cluster.admission", "cluster.demand", "cluster.autoscaling"),
    *("diarization.protocol", "diarization.chunks", "diarization.references", "diarization.simulated", "diarization.state"),
    "jobs",
    *("observe.catalogue", "observe.recorder", "observe.job_meter", "observe.ingress_state"),
    *("observe.tracing", "observe.job_trace", "observe.window_trace", "observe.tracers", "observe.otel_tracer"),
    *(
        "chunking",
        "joining",
        "diarizing",
        "job_options",
        "replica_settings",
        "pipeline",
        "service",
        "settings",
        "request_settings",
        "key_entries",
        "model_source",
        "seed_variables",
        "cores",
        "tasks",
        "errors",
        "events",
        "transcript",
        "window",
    ),
]
"""No ray, torch, nemo or fastapi, neither directly nor through other modules of serve_app (engine/__init__ aside)."""

LAYERS = [
    ["run"],
    ["app"],
    ["ingress", "deployments", "diarizer_deployment"],
    ["replica"],
    ["diarization.sortformer"],
    ["diarization.sortformer_files"],
    ["api", *RAY_CLUSTER, "engine", "observe.ingress_state"],
    ["jobs.service", "jobs.worker", "jobs.transcription"],
    ["service"],
    ["job_options"],
    ["pipeline", "diarizing", "decoders", "engine.protocol", "engine.batch_queue", "engine.batch_policy"],
    ["joining"],
    ["chunking", "live", "cluster", "diarization"],
    ["settings"],
    ["replica_settings"],
    ["audio", "merging", "output", "observe", "live.windows", "seed_variables", "jobs.progress", "jobs.stores"],
    ["events", "request_settings"],
    ["jobs"],
    ["transcript", "window", "errors", "key_entries", "model_source", "cores", "tasks"],
]
"""A module imports from layers below its own, and from its own folder."""


def is_in(module: str, places: list[str]) -> bool:
    name = module.removeprefix("serve_app.")
    return any(name == place or name.startswith(f"{place}.") for place in places)


def imports_of(path: Path) -> set[str]:
    """Every module that a file imports anywhere in it; those of serve_app by their full name."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            names |= {name if name in MODULES else node.module for name in whole}
    return names


OURS = {module: {name for name in imports_of(path) if name in MODULES} for module, path in MODULES.items()}
OTHERS = {module: {name.split(".")[0] for name in imports_of(path)} - {"serve_app"} for module, path in MODULES.items()}


@pytest.mark.parametrize("module", MODULES)
def test_packages_are_imported_where_they_may_be(module: str) -> None:
    for package in OTHERS[module] & set(MAY_IMPORT):
        assert is_in(module, MAY_IMPORT[package]), package


@pytest.mark.parametrize("module", [module for module in MODULES if is_in(module, PURE)])
def test_pure_modules_import_only_pure_modules(module: str) -> None:
    assert not OTHERS[module] & {"ray", "torch", "nemo", "omegaconf", "fastapi", "starlette"}
    assert all(is_in(name, PURE) for name in OURS[module])


def test_what_ray_pickles_into_the_controller_needs_the_standard_library_alone() -> None:
    policy = "serve_app.cluster.autoscaling"
    assert OURS[policy] == set()
    assert OTHERS[policy] <= sys.stdlib_module_names


def layer_of(module: str) -> int:
    """Of the longest place that holds the module."""
    name = module.removeprefix("serve_app.")
    held = [(len(place), layer) for layer, places in enumerate(LAYERS) for place in places if is_in(name, [place])]
    return max(held)[1]


@pytest.mark.parametrize(
    "module", [module for module in MODULES if not is_in(module, ["command_line"]) and module != "serve_app.__init__"]
)
def test_imports_point_down(module: str) -> None:
    for name in OURS[module]:
        is_neighbour = name.rpartition(".")[0] == module.rpartition(".")[0] != "serve_app"
        assert is_neighbour or layer_of(name) > layer_of(module), name


def test_there_is_no_circle() -> None:
    try:
        TopologicalSorter(OURS).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_the_command_line_needs_only_what_decodes_a_file() -> None:
    for module in MODULES:
        if is_in(module, ["command_line"]):
            assert all(is_in(name, ["command_line", "audio", "errors", "window", "__init__"]) for name in OURS[module])


@pytest.mark.parametrize("module", MODULES)
def test_files_are_short(module: str) -> None:
    assert len(MODULES[module].read_text().splitlines()) <= MAX_LINES


def test_only_the_stores_of_jobs_know_sql() -> None:
    sql = ["jobs.database", "jobs.schema", "jobs.sqlite", "jobs.postgres"]
    sql += [name.removeprefix("serve_app.") for name in MODULES if name.startswith("serve_app.jobs.sql_")]
    for module in MODULES:
        if not is_in(module, [*sql, "jobs.stores"]):
            assert not [name for name in OURS[module] if is_in(name, sql)], module


def test_no_module_is_called_utils() -> None:
    assert not list(PACKAGE.rglob("util*.py"))


@pytest.mark.parametrize("module", ["diarizer_deployment", *MAY_IMPORT["ray"]])
def test_annotations_that_serve_reads_are_not_deferred(module: str) -> None:
    """With deferred annotations Serve passes `build_app` a raw dict and says nothing."""
    assert "__future__" not in imports_of(MODULES[f"serve_app.{module}"])


@pytest.mark.parametrize("module", MODULES)
def test_timeouts_lose_no_cancellation(module: str) -> None:
    """Python 3.11's `asyncio.wait_for` does, where its result comes at the same moment; `asyncio.timeout` does not."""
    assert "wait_for(" not in MODULES[module].read_text()
