"""`mllm compare RUN RUN ... [--to DIR]`: what the difference between runs is worth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lightning_mllm.commands.arguments import Arguments
from lightning_mllm.evaluation.bootstrap import Interval
from lightning_mllm.evaluation.compare_page import write_page
from lightning_mllm.evaluation.compared_runs import Side, read_sides
from lightning_mllm.evaluation.comparison import Comparison, Difference, compare

MARKS = {"win": "[green]win[/]", "loss": "[red]loss[/]", "tie": "tie", "": ""}


def write_comparison(sides: Sequence[Side], to: Path) -> Comparison:
    """Compares runs, writes `compare.html` and `compare.json` into `to`, and prints the tables.

    Raises:
        ValueError: as `compare` of lightning_mllm/evaluation.
    """
    comparison = compare(sides)
    page = write_page(comparison, to)
    console = Console()
    for each in _tables(comparison):
        console.print(each)
    for each in comparison.headlines:
        subject = each.score if len(comparison.sides) == 2 else f"{each.score}, {each.first} against {each.other}"
        print(f"{subject}: {each.sentence}")
    for note in comparison.notes:
        print(note)
    print(page)
    return comparison


def _tables(comparison: Comparison) -> list[Table]:
    families = {"scores": comparison.headlines + comparison.further, "kinds of questions": comparison.kinds}
    tables = [_differences(comparison, rows, title) for title, rows in families.items() if rows]
    if comparison.seeds:
        table = Table("run", "score", "mean", "sd", "between seeds", "between pictures", "seeds", title="seeds")
        for each in comparison.seeds:
            d = each.info.digits
            seeds = " ".join(f"{value:.{d}f}" for value in each.values)
            numbers = (f"{each.between.value:.{d}f}", f"{each.deviation:.{d}f}")
            table.add_row(
                escape(each.side), each.score, *numbers, _range(each.between, d), _range(each.within, d), seeds
            )
        tables.append(table)
    return tables


def _differences(comparison: Comparison, rows: Sequence[Difference], title: str) -> Table:
    several = len(comparison.sides) > 2
    first = comparison.sides[0].name
    kinds = any(each.kind for each in rows)
    columns = [*(["against"] if several else []), "score", *(["kind"] if kinds else [])]
    other = "other" if several else comparison.sides[1].name
    table = Table(*columns, escape(first), escape(other), "difference", "95 % interval", "p (Holm)", "", title=title)
    for each in rows:
        d = each.info.digits
        # Names of runs and kinds of questions may hold what rich takes for markup.
        named = [*([escape(each.other)] if several else []), each.score, *([escape(each.kind)] if kinds else [])]
        p = "" if each.p_holm is None else "< 0.001" if each.p_holm < 0.001 else f"{each.p_holm:.3f}"
        values = (*(f"{value:.{d}f}" for value in each.values), f"{each.difference.value:+.{d}f}")
        table.add_row(*named, *values, _range(each.difference, d), p, MARKS[each.verdict])
    return table


def _range(found: Interval, digits: int) -> str:
    return f"{found.low:.{digits}f} to {found.high:.{digits}f}"


def main(arguments: Sequence[str]) -> None:
    """`mllm compare RUN RUN ... [--to DIR]`."""
    parser = Arguments(
        "compare",
        description="Compare tested runs: every other one with the first, on the samples that both answered. Verdicts "
        "are the first one's.",
        epilog="RUN is a run (its last tested stage is meant), RUN/STAGE, or a folder of seeds, as mllm run --seeds "
        "writes it: one side of several runs. One such folder alone tells how far its seeds spread.",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="such as runs/quickstart/llava")
    parser.add_argument(
        "--to", type=Path, default=Path("comparison"), metavar="DIR", help="for compare.html, .json (comparison)"
    )
    parser.add_argument("--runs", dest="root", type=Path, default=Path("runs"), help="where runs are kept (runs)")
    given = parser.parse_args(arguments)
    write_comparison(read_sides(given.runs, given.root), given.to)
