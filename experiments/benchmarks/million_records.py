"""What a million conversations cost: the index, the memory of two ranks, the first batch of a streamed epoch.

    mllm bench million_records [--records 1000000 --formats jsonl json parquet --folder DIR]

Each format is written once, with texts of about a kilobyte. Two processes, the ranks, then open the same files at the
same time with an empty cache of indices; one of them builds the index, in processes of its own. A second pair finds the
index there. A rank then begins an epoch and reads its first batch of 32 with a worker. Memory is that of both ranks and
of all their processes together, looked at ten times a second: the resident set (RSS, where a page that several share
counts for each) and the proportional one (PSS, where it counts once); and that of two such processes before they open
anything, which is the libraries alone.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TextIO

WORDS = ("a", "the", "red", "small", "ball", "box", "sky", "left", "of", "is", "two", "people", "near", "water")
GROUP = 1000
"""Rows of a row group."""
MIB = 1 << 20


def records(count: int) -> Iterator[dict[str, Any]]:
    """LLaVA's records: two questions about a picture, the last of ten records without one."""
    from random import Random

    draw = Random(0).choices
    for number in range(count):
        said = [" ".join(draw(WORDS, k=size)) for size in (12, 80, 12, 110)]
        turns = [{"from": ("human", "gpt")[k % 2], "value": text} for k, text in enumerate(said)]
        record = {"id": f"{number:09}", "conversations": turns}
        if number % 10 != 9:
            record["image"] = f"{number % 64}.jpg"
            turns[0]["value"] = f"<image>\n{turns[0]['value']}"
        yield record


def write(folder: Path, count: int, formats: Sequence[str]) -> None:
    """The files, and 64 pictures."""
    from PIL import Image

    (folder / "images").mkdir(parents=True, exist_ok=True)
    for number in range(64):
        Image.effect_noise((320, 240), number + 1.0).convert("RGB").save(folder / f"images/{number}.jpg")
    with ExitStack() as files:
        names = [name for name in formats if name != "parquet"]
        outs = {name: files.enter_context(open(folder / f"data.{name}", "w", encoding="utf-8")) for name in names}
        _write(folder, count, outs, "parquet" in formats)


def _write(folder: Path, count: int, outs: Mapping[str, TextIO], tables: bool) -> None:
    import pyarrow
    import pyarrow.parquet

    table: pyarrow.parquet.ParquetWriter | None = None
    block: list[dict[str, Any]] = []
    for number, record in enumerate(records(count)):
        text = json.dumps(record)
        for name, out in outs.items():
            out.write((("[" if not number else ",\n") if name == "json" else "") + text)
            out.write("\n" if name == "jsonl" else "]" if number == count - 1 else "")
        if tables:
            block.append({"image": None, **record})
            if len(block) == GROUP or number == count - 1:
                batch = pyarrow.Table.from_pylist(block, table.schema if table else None)
                table = table or pyarrow.parquet.ParquetWriter(folder / "data.parquet", batch.schema)
                table.write_table(batch)
                block = []
    if table:
        table.close()


def rank(number: int, path: str, images: str) -> None:
    """One rank: says how long it took, and waits to be looked at."""
    import io

    import torch
    from PIL import Image
    from torch.utils.data import Dataset

    from data_modules.loader import ResumableLoader, Share
    from data_modules.mixture_sampler import MixtureSampler, SampleLocation, seeded
    from data_modules.sources import LlavaConversations

    class Decoded(Dataset[Any]):
        """Id, words and the sizes of the decoded pictures of a sample."""

        def __getitem__(self, location: SampleLocation) -> Any:
            sample = source.sample(location.index, seeded(1, *location))
            files = [Image.open(io.BytesIO(each.read(1 << 24))) for each in sample.images]
            return (
                sample.id,
                sum(len(turn.text.split()) for turn in sample.turns),
                [f.convert("RGB").size for f in files],
            )

    print(json.dumps({"state": "imported"}), flush=True)
    sys.stdin.readline()
    torch.set_num_threads(1)
    begin = time.perf_counter()
    source = LlavaConversations(path, images)
    source.load()
    opened = time.perf_counter()
    print(json.dumps({"state": "opened", "seconds": opened - begin, "records": len(source)}), flush=True)
    order = MixtureSampler({"a": len(source)}, seed=1)
    loader = ResumableLoader(
        Decoded(), [(Share("batch", 64, 32), order)], collate_fn=list, steps=1000, rank=number, world=2, workers=1
    )
    batches = iter(loader)
    ids = [row[0] for row in next(batches)]
    first = time.perf_counter() - opened
    for _ in range(20):
        next(batches)
    print(json.dumps({"state": "read", "first": first, "ids": ids}), flush=True)
    sys.stdin.readline()


class Watched:
    """The memory of some processes and of those they start."""

    def __init__(self, processes: Sequence[subprocess.Popen[str]]) -> None:
        self.processes, self.peak, self._done = processes, {"rss": 0.0, "pss": 0.0}, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def now(self) -> dict[str, float]:
        """MiB."""
        import psutil

        found = {"rss": 0.0, "pss": 0.0}
        for process in self.processes:
            try:
                own = psutil.Process(process.pid)
                for each in [own, *own.children(recursive=True)]:
                    memory = each.memory_full_info()
                    found = {name: found[name] + getattr(memory, name) / MIB for name in found}
            except psutil.Error:
                continue
        return found

    def _watch(self) -> None:
        while not self._done.wait(0.1):
            now = self.now()
            self.peak = {name: max(self.peak[name], now[name]) for name in now}

    def close(self) -> None:
        self._done.set()
        self._thread.join()


def pair(path: Path, cache: Path) -> dict[str, Any]:
    """What two ranks together need for a file."""
    command = [sys.executable, __file__, "--rank"]
    environment = {**os.environ, "MLLM_CACHE": str(cache), "PYTHONPATH": os.pathsep.join(sys.path[1:])}
    ranks = [
        subprocess.Popen(
            [*command, str(number), str(path), str(path.parent / "images")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for number in range(2)
    ]

    def say() -> None:
        for each in ranks:
            assert each.stdin
            each.stdin.write("go\n")
            each.stdin.flush()

    def hear(state: str) -> list[dict[str, Any]]:
        heard = [json.loads(each.stdout.readline()) for each in ranks if each.stdout]
        assert all(each["state"] == state for each in heard), heard
        return heard

    watched = Watched(ranks)
    try:
        hear("imported")
        libraries = watched.now()
        say()
        opened = hear("opened")
        read = hear("read")
        after = watched.now()
        watched.close()
        say()
    finally:
        for each in ranks:
            each.wait(60)
    assert not {*read[0]["ids"]} & {*read[1]["ids"]}
    return {
        "records": opened[0]["records"],
        "seconds": max(each["seconds"] for each in opened),
        "first": max(each["first"] for each in read),
        "libraries": libraries,
        "peak": watched.peak,
        "after": after,
    }


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--formats", nargs="+", default=["jsonl", "json", "parquet"])
    parser.add_argument("--folder", type=Path, help="where the files go; a new one that is removed if not given")
    parser.add_argument("--rank", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.rank:
        rank(int(given.rank[0]), *given.rank[1:])
        return {}
    folder = given.folder or Path(tempfile.mkdtemp())
    found: dict[str, Any] = {}
    try:
        if not all((folder / f"data.{name}").exists() for name in given.formats):
            write(folder, given.records, given.formats)
        for name in given.formats:
            path = folder / f"data.{name}"
            print(f"{name}: {path.stat().st_size / MIB:,.0f} MiB", flush=True)
            for state in ("built", "found"):
                shown = found[f"{name}, {state}"] = pair(path, folder / f"cache_{name}")
                memory = ", ".join(
                    f"{when} {shown[when]['rss']:,.0f} RSS {shown[when]['pss']:,.0f} PSS"
                    for when in ("libraries", "peak", "after")
                )
                print(
                    f"  index {state}: {shown['records']:,} records in {shown['seconds'] / 60:.2f} min, first batch"
                    f" {shown['first']:.2f} s, MiB of both ranks: {memory}",
                    flush=True,
                )
    finally:
        if not given.folder:
            shutil.rmtree(folder)
    return found


if __name__ == "__main__":
    main()
