"""`mllm predict FOLDER --run RUN --prompt "..." --to answers.jsonl`: one question about every picture of a folder.

A line for each picture, in the order of the folder:

{"image": "day1/a.png", "prompt": "What is it?", "model": "llava@3f0c9ad1b2e4", "answer": "a red circle"}

with `error` in place of `answer` where it cannot be read. Lines are written to `answers.jsonl.partial`, from which a
stopped command goes on, and which is renamed at the end. In memory stand a batch of pictures and the names of a folder.

`--form llava` makes records of LLaVA of the lines, one request and one answer each, as ShareGPT4V's files have them,
each with its `provenance`: a list in a .json, else lines. Pictures that cannot be read and answers that no record can
hold (empty ones) go to `FILE.errors.jsonl`.

{"id": "day1/a", "image": "day1/a.png", "conversations": [{"from": "human", "value": "<image>\\nDescribe it."}, ...],
 "provenance": {"model": "llava@3f0c9ad1b2e4", "prompt": "Describe it.", "decoding": {"max_new_tokens": 128, ...}}}
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from lightning_mllm.commands.arguments import Arguments
from lightning_mllm.commands.config import ConfigError
from lightning_mllm.commands.llava_records import named_in, write_records
from lightning_mllm.commands.model import RUN, add_options, load_given
from lightning_mllm.weights.plain_files import parse

if TYPE_CHECKING:
    from lightning_mllm.inference.model import Model
    from lightning_mllm.language.generation import Decoding

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}


def is_asked(arguments: Sequence[str]) -> bool:
    """Whether the arguments of `mllm predict` are about a folder of pictures, and not about a stage's test sets."""
    named = any(each.partition("=")[0] == "--run" for each in arguments)
    return named or (bool(arguments) and not arguments[0].startswith(("-", "{")) and "=" not in arguments[0])


def main(arguments: Sequence[str]) -> None:
    """Answer one question about every picture of a folder."""
    parser = Arguments("predict FOLDER", description="Ask one question about every picture of a folder.")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="pictures, in folders of folders too")
    parser.add_argument("--run", required=True, help=RUN)
    parser.add_argument("--prompt", required=True, help="the question; <image> says where the picture stands")
    parser.add_argument("--to", required=True, type=Path, metavar="FILE", help="a file of JSON lines; absent")
    parser.add_argument("--batch", type=int, default=16, metavar="N", help="how many are answered at once (16)")
    parser.add_argument(
        "--bad-images", choices=["record", "refuse"], default="record", help="a line with the error (record), or stop"
    )
    parser.add_argument(
        "--form", choices=["lines", "llava"], default="lines", help="llava: records to train on (lines)"
    )
    parser.add_argument(
        "--except", dest="without", type=Path, metavar="FILE", help="LLaVA's records; not their pictures"
    )
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="most tokens of an answer (as the run says)")
    parser.add_argument("--num-beams", type=int, metavar="N", help="beams of the search (as the run says)")
    add_options(parser)
    given = parser.parse_args(arguments)
    if not given.folder.is_dir():
        raise ConfigError(f"predict: found no folder {given.folder}, expected one of pictures")
    if given.batch < 1:
        raise ConfigError(f"--batch: found {given.batch}, expected at least 1")
    if given.to.exists():
        raise ConfigError(f"--to: found {given.to}, which is complete, expected a file that is not there yet")
    known = frozenset[str]() if given.without is None else named_in(given.without)
    if not (total := sum(1 for _ in pictures(given.folder, known))):
        other = f" that {given.without} does not name" if known else ""
        raise ConfigError(
            f"{given.folder}: found no picture{other}, expected files such as {', '.join(sorted(SUFFIXES))}"
        )
    if known and total == sum(1 for _ in pictures(given.folder)):
        raise ConfigError(
            f"--except: {given.without}: found no picture of {given.folder}, but such as '{min(known)}', expected names"
            " as they stand below the folder"
        )
    model = load_given(given.run, given)
    chosen = [each for each in (given.dtype, given.template) if each]
    facts: dict[str, Any] = {"prompt": given.prompt, "model": " ".join([identity(given.run), *chosen])}
    limits = {"max_new_tokens": given.max_new_tokens, "num_beams": given.num_beams}
    decoding = replace(model.decoding, **{name: value for name, value in limits.items() if value is not None})
    if given.form == "llava" or decoding != model.decoding:
        facts["decoding"] = asdict(decoding)
    given.to.parent.mkdir(parents=True, exist_ok=True)
    partial = given.to.with_name(f"{given.to.name}.partial")
    with partial.open("a+b") as file:
        answered = _Answered(file, partial, facts, decoding)
        names = pictures(given.folder, known)
        failed = answered.write(model, given.folder, names, given.batch, total, refuse=given.bad_images == "refuse")
        os.fsync(file.fileno())
        if given.form == "llava":
            failed = write_records(partial, given.to)
            partial.unlink()
        else:
            os.replace(partial, given.to)
    if given.form == "llava":
        unread = f"; {failed:,} pictures without one in {given.to}.errors.jsonl" if failed else ""
        print(f"{given.to} ({total - failed:,} records{unread})")
        return
    unread = f", {failed:,} of them errors of pictures that cannot be read" if failed else ""
    print(f"{given.to} ({total:,} lines{unread})")


def pictures(folder: Path, known: Collection[str] = ()) -> Iterator[str]:
    """Paths of the pictures below `folder`, relative to it, in an order that does not change; hidden files are none.

    Args:
        known: those that are left out.
    """
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(each for each in folders if not each.startswith("."))
        inside = Path(root).relative_to(folder).as_posix()
        for name in sorted(files):
            path = name if inside == "." else f"{inside}/{name}"
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES and path not in known:
                yield path


def identity(run: str) -> str:
    """A name and a digest that other weights do not share."""
    from lightning_mllm.inference import stage_of
    from lightning_mllm.weights.files import sha256
    from lightning_mllm.weights.hub import model_at
    from lightning_mllm.weights.lineage import RECORD, WEIGHTS
    from lightning_mllm.weights.run_records import read_stage

    folder = model_at(run)
    if (folder / "config.json").is_file():
        return f"{Path(run).name}@{sha256(folder)[:12]}"
    record = read_stage(stage_of(folder) / WEIGHTS / RECORD)
    return f"{folder.resolve().name}@{record['sha256'][:12]}"


class _Answered:
    """The lines of a file, those of an earlier command and those that are added.

    Raises:
        ConfigError: Another process writes them.
    """

    def __init__(self, file: BinaryIO, path: Path, facts: dict[str, Any], decoding: Decoding) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"{path}: found another process that writes it, expected none") from None
        self.file, self.path, self.facts, self.decoding = file, path, facts, decoding

    def write(self, model: Model, folder: Path, names: Iterator[str], batch: int, total: int, *, refuse: bool) -> int:
        """Adds the missing lines; how many of all tell an error."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        done, failed = self._resume(names)
        columns = (TextColumn("pictures"), BarColumn(bar_width=30), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as progress:
            task = progress.add_task("", total=total, completed=done)
            while chunk := list(islice(names, batch)):
                rows = self._answers(model, folder, chunk, refuse)
                failed += sum("error" in row for row in rows)
                lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
                self.file.write(lines.encode("utf-8", errors="surrogateescape"))
                self.file.flush()
                progress.advance(task, len(chunk))
        return failed

    def _answers(self, model: Model, folder: Path, names: Sequence[str], refuse: bool) -> list[dict[str, Any]]:
        from lightning_mllm.processing.images import ImageError

        def row(name: str, **found: str) -> dict[str, Any]:
            return {"image": name, **self.facts, **found}

        prompt = self.facts["prompt"]
        try:
            asked = [(folder / name, prompt) for name in names]
            answers = model.answers(asked, decoding=self.decoding, batch=len(names))
            return [row(name, answer=answer) for name, answer in zip(names, answers, strict=True)]
        except ImageError as error:
            reason = str(error.__cause__ or error)
            if refuse:
                raise ConfigError(f"{reason}; --bad-images record writes that in its line and goes on") from None
            if len(names) == 1:
                return [row(names[0], error=reason)]
        return [each for name in names for each in self._answers(model, folder, [name], refuse)]

    def _resume(self, names: Iterator[str]) -> tuple[int, int]:
        """Takes the pictures whose lines are there from `names`; how many they are, and how many tell an error.

        Raises:
            ConfigError: A line is of another picture, prompt or model.
        """
        self.file.seek(0)
        end, done, failed = 0, 0, 0
        for line in self.file:
            if not line.endswith(b"\n"):
                break  # torn where the command was killed
            told = line.decode("utf-8", errors="surrogateescape")
            found = parse(told, f"{self.path}:{done + 1}", "an answer; move the file away to start anew")
            expected = {"image": next(names, None), **self.facts}
            if wrong := [key for key, value in expected.items() if found.get(key) != value]:
                raise ConfigError(
                    f"{self.path}:{done + 1}: found {wrong[0]} {found.get(wrong[0])!r}, expected"
                    f" {expected[wrong[0]]!r}; move it away to start anew"
                )
            end, done, failed = end + len(line), done + 1, failed + ("error" in found)
        self.file.truncate(end)
        return done, failed
