"""The schema, as numbered files of SQL in `migrations/` that are applied in order, each once. A file that was
released does not change any more.

A statement ends with a semicolon at the end of a line.
"""

from functools import cache
from importlib.resources import files

from serve_app.errors import StoreUnavailable
from serve_app.jobs.database import Transaction


class IncompatibleStore(StoreUnavailable):
    """The database was made by a newer version of the server."""


@cache
def migrations() -> dict[int, str]:
    """The SQL of each migration, by number, in order."""
    found = sorted((files("serve_app.jobs") / "migrations").iterdir(), key=lambda file: file.name)
    return {int(file.name.partition("_")[0]): file.read_text("utf-8") for file in found if file.name.endswith(".sql")}


def migrate(transaction: Transaction) -> None:
    """Apply what is missing. The caller holds a lock against other processes that do the same. Raises IncompatibleStore."""
    transaction.rows("CREATE TABLE IF NOT EXISTS schema_version (version BIGINT NOT NULL)")
    version = transaction.one("SELECT COALESCE(MAX(version), 0) AS version FROM schema_version")["version"]
    newest = max(migrations())
    if version > newest:
        raise IncompatibleStore(f"The database of jobs has version {version}, this server knows {newest}: it needs a newer one.")
    for number, script in migrations().items():
        if number > version:
            for statement in script.split(";\n"):
                if statement.strip():
                    transaction.rows(statement)
            transaction.rows("INSERT INTO schema_version VALUES (:number)", number=number)
