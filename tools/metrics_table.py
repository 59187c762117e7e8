"""Print the table of metrics in docs/operating.md, from the metrics themselves.

python -m tools.metrics_table
"""

from serve_app.observe.catalogue import METRICS, Metric

HEADER = "| metric | kind | labels | meaning |\n|---|---|---|---|"


def table() -> str:
    """The table as Markdown, one row per metric."""
    return "\n".join([HEADER, *map(_row, METRICS)])


def _row(metric: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    return f"| `{metric.exported_name}` | {metric.kind} | {labels} | {metric.meaning} |"


if __name__ == "__main__":
    print(table())
