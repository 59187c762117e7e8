"""Makes the store: in a folder of one node, or in a database for a cluster."""

import asyncio
import time
from pathlib import Path

from serve_app.errors import StoreUnavailable
from serve_app.jobs.database import Database
from serve_app.jobs.sql_store import SqlStore
from serve_app.jobs.sqlite import SqliteConnection
from serve_app.jobs.uploads import Uploads
from serve_app.request_settings import JobSettings

UPLOADS_NAME = "uploads"
"""Folder of the uploads in the folder of jobs."""

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


def store_of(settings: JobSettings, *, lease_s: float) -> SqlStore:
    """The store that the settings ask for; `directory` is set. Raises OSError if the folder cannot be used, and ImportError."""
    assert settings.directory is not None
    if settings.database_url is None:
        return store_in(settings.directory, lease_s=lease_s)
    return store_at(settings.database_url.get_secret_value(), lease_s=lease_s)


def uploads_of(settings: JobSettings) -> Uploads:
    """The folder of uploads; `directory` is set. Raises OSError if it cannot be used."""
    assert settings.directory is not None
    return Uploads(settings.directory / UPLOADS_NAME)


def check(settings: JobSettings, nodes: int) -> None:
    """Find out at start whether a cluster of so many nodes can have these jobs. Raises ValueError with the reason."""
    if settings.directory is None:
        if settings.database_url is not None:
            raise ValueError("jobs.database_url needs jobs.directory, a folder for the uploads that all nodes share")
        return
    if nodes > 1 and settings.database_url is None:
        raise ValueError(
            f"the cluster has {nodes} nodes, and SQLite serves only one: set jobs.database_url to a PostgreSQL database"
        )
    try:
        uploads_of(settings)
        asyncio.run(_open(settings))
    except ImportError as error:
        raise ValueError("jobs.database_url needs psycopg: pip install 'parakeet-ray-serve[postgres]'") from error
    except (OSError, StoreUnavailable) as error:
        raise ValueError(f"the jobs cannot be stored: {error}") from error


async def _open(settings: JobSettings) -> None:
    store = store_of(settings, lease_s=0.0)
    try:
        await store.open()
    finally:
        await store.close()
