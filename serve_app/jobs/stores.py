"""Makes the store: in a folder of one node, or in a database for a cluster."""

import time
from pathlib import Path

from serve_app.jobs.database import Database
from serve_app.jobs.sql_store import SqlStore
from serve_app.jobs.sqlite import SqliteConnection

DATABASE_NAME = "jobs.sqlite"
"""File of the database in the folder of jobs."""


def store_in(folder: Path, *, lease_s: float) -> SqlStore:
    """The store in a folder of this node, which is made if need be. Other users may not read it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / DATABASE_NAME
    return SqlStore(
        Database(lambda reads_only: SqliteConnection(path, reads_only=reads_only)), lease_s=lease_s, clock_s=time.time
    )


def store_at(url: str, *, lease_s: float) -> SqlStore:
    """The store in a PostgreSQL database. Raises ImportError if psycopg is not installed (the extra `postgres`)."""
    from serve_app.jobs.postgres import PostgresConnection

    database = Database(lambda reads_only: PostgresConnection(url, reads_only=reads_only))
    return SqlStore(database, lease_s=lease_s, clock_s=lambda: None)
