"""`mllm data convert`: conversations of any dialect, in any file of records, as those of another."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn, TextIO, get_args

from rich.console import Console
from rich.progress import track

from data_modules.containers import open_records
from data_modules.conversion import Conversion, Place
from data_modules.dialects import DIALECTS, named
from data_modules.dialects.rules import REFUSE, Repair, rules_of
from data_modules.record_writers import Columns, JsonWriter, ParquetWriter, TarWriter, Writer, written_beside
from data_modules.sources.any_conversations import dialect_of
from data_modules.sources.records import ImageFolder, RecordError, not_found, packed

PLACES: dict[str, Place] = {".json": "file", ".jsonl": "file", ".parquet": "cell", ".tar": "member"}
"""Ending of a file -> where its pictures go."""
MOST_LOST = 20
"""Kinds of what is lost that are printed."""


class _Arguments(argparse.ArgumentParser):
    """Complains in one sentence."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"data convert: {message}; mllm data convert --help tells more")


def main(arguments: Sequence[str]) -> None:
    """`mllm data convert IN --to OUT --dialect NAME`."""
    given = _parser().parse_args(arguments)
    conversion = _conversion(given)
    written = convert(conversion, given.to, given.quarantine)
    print(report(conversion, written, given.to, given.quarantine), end="")


def _parser() -> argparse.ArgumentParser:
    forms = "\n".join(f"  {name}\n      {each.form}" for name, each in DIALECTS.items())
    parser = _Arguments(
        prog="mllm data convert",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Write conversations in another dialect, another kind of file, or both.",
        epilog=f"dialects:\n{forms}\n\ndocs/formats.md tells more.",
    )
    add = parser.add_argument
    add("records", metavar="IN", nargs="+", help="files of one kind: .json .jsonl .parquet .tar, a folder of datasets")
    add("--to", type=Path, required=True, metavar="OUT", help="a new .json, .jsonl, .parquet or .tar file")
    add("--dialect", default="", help="how OUT is written (as IN is)")
    add("--from-dialect", default="", metavar="NAME", help="how IN is written (told by its records)")
    add("--images", default="", metavar="DIR", help="the folder that names of images are relative to")
    add("--turns", default=REFUSE, help=f"repairs of turns, with commas: {', '.join(get_args(Repair))} (refuse)")
    add(
        "--marks",
        default="given",
        help="front: missing <image> marks are put in front; words: odd ones are words (given)",
    )
    add("--quarantine", type=Path, metavar="FILE", help="a new .jsonl file for records that break a rule (stop at one)")
    add("--lossy", action="store_true", help="write records without what the dialect cannot say (stop at one)")
    return parser


def _conversion(given: argparse.Namespace) -> Conversion:
    """What the arguments ask for; ValueError before anything is written."""
    suffix = given.to.suffix.lower()
    if suffix not in PLACES:
        raise ValueError(f"data convert: found --to {given.to}, expected a name that ends with {', '.join(PLACES)}")
    for path in (given.to, given.quarantine, images_folder(given.to)):
        if path is not None and path.exists():
            raise ValueError(f"data convert: {path} exists, expected a name that is free")
    if given.quarantine and given.quarantine.resolve() == given.to.resolve():
        raise ValueError(f"data convert: found {given.to} as --to and --quarantine, expected two files")
    if given.images and not Path(given.images).is_dir():
        raise not_found(given.images)
    rules = rules_of(given.turns.split(","), given.marks)
    write_as = named(given.dialect) if given.dialect else None
    read_as = named(given.from_dialect) if given.from_dialect else None
    records, source = open_records(given.records), ", ".join(given.records)
    read_as = read_as or dialect_of(source, records)
    write_as = write_as or read_as
    place: Place = "url" if write_as.embeds else PLACES[suffix]
    return Conversion(records, source, read_as, write_as, ImageFolder(given.images), rules, place, given.lossy)


def convert(conversion: Conversion, to: Path, quarantine: Path | None = None) -> Counter[str]:
    """Writes the records into a new file.

    Args:
        quarantine: a new file of lines for records that break a rule, each with the error; without one the first stops.

    Returns:
        How many 'records' and 'images' were written, and records were 'left out'.

    Raises:
        ValueError: names a record and the rule that it breaks, or what of it would be lost.
    """
    written = Counter[str](records=0, images=0)
    with ExitStack() as stack:
        aside = _opened(quarantine, stack) if quarantine else None
        writer = _writer(conversion, to.suffix.lower(), stack.enter_context(written_beside(to)), aside is not None)
        pictures: Path | None = None
        for number in _each(conversion, f"writing {to.name}"):
            try:
                conversation = conversion.read(number)
            except ValueError as error:
                if aside is None:
                    raise
                _put_aside(aside, conversion, number, error)
                written["left out"] += 1
                continue
            record, files = conversion.written(number, conversation)
            if files and conversion.place == "file":
                pictures = pictures or stack.enter_context(written_beside(images_folder(to)))
                pictures.mkdir(exist_ok=True)
                for name, data in files.items():
                    (pictures / name).write_bytes(data)
                files = {}
            with conversion.naming(number, record):
                writer.add(record, files)
            written.update(records=1, images=len(conversation.images))
        if not written["records"]:
            raise ValueError(f"{conversion.source}: found no record to write, expected one at least")
        writer.close()
        if aside is not None:
            aside.close()
    return written


def images_folder(path: Path) -> Path:
    """Where the pictures go that records held, when a file of JSON is written."""
    return path.with_name(f"{path.stem}_images")


def _opened(path: Path, stack: ExitStack) -> TextIO:
    """A file of text that is written beside its place."""
    return stack.enter_context(open(stack.enter_context(written_beside(path)), "w", encoding="utf-8"))


def _each(conversion: Conversion, what: str) -> Iterator[int]:
    """The numbers of the records, with a bar of progress where somebody looks."""
    console, quiet = Console(stderr=True), not sys.stderr.isatty()
    yield from track(range(len(conversion.records)), what, console=console, transient=True, disable=quiet)


def _put_aside(aside: TextIO, conversion: Conversion, number: int, error: ValueError) -> None:
    """Writes down what is wrong with a bad record, and the record, if it is JSON."""
    told: dict[str, object] = {"error": str(error), "place": conversion.records.place(number)}
    try:
        line = packed({**told, "record": conversion.records[number]})
    except (RecordError, TypeError, UnicodeEncodeError):
        line = packed(told)
    aside.write(line.decode() + "\n")


def _writer(conversion: Conversion, suffix: str, path: Path, lenient: bool) -> Writer:
    """What writes the file; the columns of a table are found first, by reading all records once."""
    if suffix == ".tar":
        return TarWriter(path)
    if suffix != ".parquet":
        return JsonWriter(path, lines=suffix == ".jsonl")
    columns = Columns()
    for number in _each(conversion, "finding the columns"):
        try:
            columns.add(conversion.written(number, conversion.read(number), pixels=False)[0])
        except ValueError:
            if not lenient:
                raise
    conversion.changed.clear()
    schema = columns.schema
    conversion.fit(columns.mixed)
    if conversion.ids_as_text:
        columns.add_texts("id")
        schema = columns.schema
    return ParquetWriter(path, schema)


def report(conversion: Conversion, written: Counter[str], to: Path, quarantine: Path | None) -> str:
    """What was done, in lines."""
    lines = [
        f"read {len(conversion.records):,} records of {conversion.source} as {conversion.read_as.name}",
        f"wrote {written['records']:,} records with {written['images']:,} images to {to} as {conversion.write_as.name}",
    ]
    if images_folder(to).exists():
        lines.append(f"their images are in {images_folder(to)}")
    if written["left out"]:
        lines.append(f"left out {written['left out']:,} records that break a rule: {quarantine} names them")
    lines += [f"changed: {how} ({count:,})" for how, count in sorted(conversion.changed.items())]
    lost = [(what, count) for what, count in conversion.lost.most_common() if count]
    lines += [f"lost: {what} ({count:,})" for what, count in lost[:MOST_LOST]]
    if len(lost) > MOST_LOST:
        lines.append(f"lost: {len(lost) - MOST_LOST} other kinds")
    return "\n".join(lines) + "\n"
