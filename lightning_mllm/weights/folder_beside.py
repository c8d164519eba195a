"""A folder beside the one that is made in it, so that what is published is complete."""

from __future__ import annotations

import os
import re
import shutil
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

UNFINISHED = ".unfinished"


@contextmanager
def folder_beside(to: Path) -> Iterator[Path]:
    """A new hidden folder beside `to`, removed behind; and those that killed processes of this machine left."""
    to.parent.mkdir(parents=True, exist_ok=True)
    remove_unfinished(to)
    folder = to.with_name(f".{to.name}.{_host()}.{os.getpid()}.{uuid.uuid4().hex[:8]}{UNFINISHED}")
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_unfinished(to: Path) -> None:
    """Removes what processes of this machine that are gone had begun to make beside `to`."""
    for each in to.parent.iterdir() if to.parent.is_dir() else ():
        found = re.fullmatch(
            rf"\.{re.escape(to.name)}\.{re.escape(_host())}\.(\d+)\.[0-9a-f]{{8}}\.unfinished", each.name
        )
        if found and not _lives(int(found[1])):
            shutil.rmtree(each, ignore_errors=True)


def _host() -> str:
    return re.sub(r"[^\w-]", "_", socket.gethostname())


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
