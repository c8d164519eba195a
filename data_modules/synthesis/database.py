"""The SQLite file below the journal: its tables, and that one process alone changes it."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FORMAT = 1
"""`user_version` of the file; raised when the tables change."""

TABLES = f"""
CREATE TABLE plan (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE calls (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    request TEXT NOT NULL,
    repair INTEGER NOT NULL,
    kind TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'pending'
        CHECK (state IN ('pending', 'written', 'in flight', 'accepted', 'rejected', 'refused')),
    batch INTEGER NOT NULL DEFAULT 0,
    failures INTEGER NOT NULL DEFAULT 0,
    interrupted INTEGER NOT NULL DEFAULT 0,
    reserved_prompt INTEGER NOT NULL DEFAULT 0,
    reserved_completion INTEGER NOT NULL DEFAULT 0,
    lost_prompt INTEGER NOT NULL DEFAULT 0,
    lost_completion INTEGER NOT NULL DEFAULT 0,
    text TEXT,
    model TEXT,
    prompt_tokens INTEGER,
    completion_tokens INTEGER,
    turns TEXT,
    reason_kind TEXT NOT NULL DEFAULT '',
    reason TEXT NOT NULL DEFAULT '',
    UNIQUE (request, repair),
    CHECK ((state IN ('accepted', 'rejected')) = (text IS NOT NULL)),
    CHECK ((text IS NULL) = (prompt_tokens IS NULL) AND (text IS NULL) = (completion_tokens IS NULL)),
    CHECK ((state = 'accepted') = (turns IS NOT NULL)),
    CHECK (state NOT IN ('rejected', 'refused') OR reason != '')
);
CREATE INDEX states ON calls (state, number);
PRAGMA user_version = {FORMAT};
"""


@contextmanager
def connected(path: Path, mode: str) -> Iterator[sqlite3.Connection]:
    """A connection that commits to the disk.

    Args:
        mode: 'rwc' to make a new file where there is none, 'rw' else.

    Raises:
        ValueError: The file is no journal, or is damaged.
    """
    database = None
    try:
        address = f"{path.resolve().as_uri()}?mode={mode}"
        database = sqlite3.connect(address, uri=True, isolation_level=None, timeout=60)
        database.execute("PRAGMA synchronous = FULL")
        if (found := version(database)) not in (0, FORMAT) or (not found and _tables(database)):
            raise ValueError(f"{path}: found format {found}, expected a journal of format {FORMAT}")
        yield database
    except sqlite3.Error as error:
        raise ValueError(f"{path}: found no journal that can be used ({error})") from error
    finally:
        if database is not None:
            database.close()


def version(database: sqlite3.Connection) -> int:
    return database.execute("PRAGMA user_version").fetchone()[0]


def _tables(database: sqlite3.Connection) -> int:
    return database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Holds the folder; the operating system gives it back when this process dies."""
    file = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(file, 64, 0).decode(errors="replace").strip() or "another process"
            raise ValueError(f"{folder}: found {holder} at work there, expected one process a folder") from None
        os.ftruncate(file, 0)
        os.pwrite(file, f"process {os.getpid()}".encode(), 0)
        yield
    finally:
        os.close(file)
