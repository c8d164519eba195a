"""`mllm data check EXPERIMENT ...`: every record that an experiment reads, and some of its pictures, before a run.

    each stage -> each set -> records that break a rule     read without them, and listed
                           -> every sample, without pixels   tokens, labels, lengths, by the stage's own processor
                           -> some samples with pictures     decoded as training decodes them

No net is built, and nothing is downloaded but pictures that a source names by their address.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from lightning_mllm.commands.arguments import Arguments
from lightning_mllm.commands.checked_sets import CheckedSet, Finding, Watch, check_sets
from lightning_mllm.commands.config import ConfigError
from lightning_mllm.commands.stage_data import composed_stages
from lightning_mllm.weights.files import write_text

HEADINGS = ("set", "records", "bad", "over-long", "nothing learned", "with picture", "decoded", "bad pictures")


def main(arguments: Sequence[str]) -> None:
    """`mllm data check EXPERIMENT_OR_CONFIG ... [--images N|all] [--to FILE] [settings]`; exit code 2 for a finding."""
    parser = Arguments(
        "data check",
        description="Check every record of every set of every stage, and a fixed random choice of their pictures, as"
        " training would read them. Exit code 2 where a run would stop.",
        epilog="Further options are settings, as in mllm run: --model.max_length=512, --STAGE.data.overlong=drop",
    )
    parser.add_argument("experiments", type=Path, nargs="+", metavar="EXPERIMENT", help="or the YAML of one stage")
    parser.add_argument("--stage", metavar="STAGE", help="this stage alone")
    parser.add_argument("--images", default="200", metavar="N", help="samples of each set to decode, or all (200)")
    parser.add_argument("--first", type=int, default=10, metavar="N", help="findings of each set to print (10)")
    parser.add_argument("--to", type=Path, metavar="FILE", help="all findings, a line of JSON each")
    parser.add_argument("--hardware", default="cpu", metavar="NAME", help="a file of _hardware (cpu)")
    given, overrides = parser.with_settings(arguments)
    if given.images != "all" and not given.images.isdecimal():
        raise ConfigError(f"--images: found '{given.images}', expected a number or all")
    if given.first < 0:
        raise ConfigError(f"--first: found {given.first}, expected 0 or more")
    stages = [
        stage
        for each in given.experiments
        for stage in composed_stages(each, hardware=given.hardware, only=given.stage, overrides=overrides)
    ]
    console = Console(width=120, soft_wrap=False)
    with _progress() as progress:
        images = None if given.images == "all" else int(given.images)
        checked = list(check_sets(stages, images, _watching(progress)))
    if given.to is not None:
        write_text(given.to, "".join(f"{json.dumps(line)}\n" for line in _lines(checked)))
    for stage in dict.fromkeys(each.stage for each in checked):
        _print_stage(console, stage, [each for each in checked if each.stage == stage], given.first)
    stopping = [each for each in checked if each.stops]
    told = "" if given.to is None else f", all of it in {given.to}"
    if stopping:
        print(f"{len(stopping)} of {len(checked)} sets would stop a run{told}")
        raise SystemExit(2)
    print(f"{len(checked)} sets: nothing would stop a run{told}")


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)


def _watching(progress: Progress) -> Watch:
    """Shows what is iterated over, one thing after another."""
    task = progress.add_task("", total=None)

    def watch(title: str, indices: Sequence[int]) -> Iterator[int]:
        progress.reset(task, description=title, total=len(indices))
        for index in indices:
            yield index
            progress.advance(task)

    return watch


def _print_stage(console: Console, stage: str, sets: Sequence[CheckedSet], first: int) -> None:
    table = Table(*HEADINGS[:1], title=stage)
    for heading in HEADINGS[1:]:
        table.add_column(heading, justify="right")
    for each in sets:
        if each.name:
            numbers = (each.records, each.bad, each.overlong, each.nothing, each.pictured, each.decoded, each.broken)
            table.add_row(each.name, *("-" if number is None else f"{number:,}" for number in numbers))
    if table.row_count:
        console.print(table)
    for note in dict.fromkeys(note for each in sets for note in each.notes):
        _say(console, f"{stage}: {note}")
    for each in sets:
        kinds = Counter(finding.kind for finding in each.findings) if len(each.findings) > first else Counter()
        for rule, count in kinds.most_common():
            _say(console, f"  {each.name or stage}: {count:,} x {rule}")
        for finding in each.findings[:first]:
            _say(console, f"  {each.name}: {finding.sentence}" if each.name else f"  {finding.sentence}")
        if (more := len(each.findings) - first) > 0 and first:
            _say(console, f"  {each.name}: and {more:,} more")


def _say(console: Console, sentence: str) -> None:
    console.print(sentence, markup=False, highlight=False, soft_wrap=True)


def _lines(checked: Sequence[CheckedSet]) -> Iterator[dict[str, object]]:
    for each in checked:
        for finding in each.findings:
            yield {"stage": each.stage, "set": each.name, **_line(finding)}


def _line(finding: Finding) -> dict[str, object]:
    return {"where": finding.where, "id": finding.id, "kind": finding.kind, "rule": finding.rule}
