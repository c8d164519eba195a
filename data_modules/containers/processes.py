"""Work shared out among forked processes, each of which stores what it finds."""

from __future__ import annotations

import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait

Work = Callable[[], None]


def in_processes(works: Sequence[Work]) -> None:
    """Does all of them, in as many processes as there are cores, which give their memory back at their end; in this
    process where forking is not safe.

    Those of a process that was killed stop after the piece that they are at.

    Raises:
        ValueError: what the first of them raised; the others are stopped.
    """
    forks = sys.platform == "linux" and not multiprocessing.current_process().daemon
    if not forks:
        for work in works:
            work()
        return
    count = min(len(works), len(os.sched_getaffinity(0)))
    fork, parent = multiprocessing.get_context("fork"), os.getpid()
    children = {}
    try:
        for k in range(count):
            ours, theirs = fork.Pipe(duplex=False)
            child = fork.Process(target=_child, args=(theirs, works[k::count], parent), daemon=True)
            child.start()
            theirs.close()
            children[ours] = child
        left = set(children)
        while left:
            for ours in wait(list(left)):
                left.discard(ours)  # pyright: ignore[reportArgumentType]
                _heard(ours)  # pyright: ignore[reportArgumentType]
    finally:
        for ours, child in children.items():
            child.terminate()
            child.join()
            ours.close()


def _heard(ours: Connection) -> None:
    """What a child says at its end."""
    try:
        kind, sentence = ours.recv()
    except EOFError:
        raise ValueError("a process that reads the data was killed, expected memory enough for it") from None
    if kind == "refused":
        raise ValueError(sentence)
    if kind == "full":
        raise OSError(0, sentence)
    if kind == "failed":
        raise RuntimeError(sentence)


def _child(theirs: Connection, works: Sequence[Work], parent: int) -> None:
    said = ("done", "")
    try:
        for work in works:
            if os.getppid() != parent:
                return
            work()
    except ValueError as error:
        said = ("refused", str(error))
    except OSError as error:
        said = ("full", error.strerror or str(error))
    except Exception:
        said = ("failed", traceback.format_exc())
    theirs.send(said)
