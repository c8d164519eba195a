"""`mllm mix A=0.5 B=0.5 --to DIR`: one mix of runs, or with `--sweep` the score of many."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning_mllm.commands.arguments import Arguments
from lightning_mllm.commands.mix_curve import MixCurve, parse_betas
from lightning_mllm.commands.mixed_runs import find, write_mix


def parse_weights(given: Sequence[str]) -> dict[str, float]:
    """`A=0.5` and its like as source -> weight.

    Raises:
        ValueError: One is not of that form, or a source stands twice.
    """
    weights: dict[str, float] = {}
    for each in given:
        name, equals, text = each.rpartition("=")
        try:
            weight = float(text)
        except ValueError:
            weight = None
        if not equals or not name or weight is None:
            raise ValueError(f"mix: found {each!r}, expected a source with its weight such as runs/a=0.5")
        if name in weights:
            raise ValueError(f"mix: found {name!r} a second time, expected different sources")
        weights[name] = weight
    return weights


def main(arguments: Sequence[str]) -> None:
    """Write a mix, or score all mixes of two sources and write the best."""
    parser = Arguments(
        "mix",
        description="Write weights between those of runs (or of folders of transformers, or of files of tensors) as a "
        "run of its own, which mllm ask, test and export and init_from take as any other.",
        epilog="With --sweep, further options are set in every test, as in mllm test: --hardware.eval_batch=16.",
    )
    parser.add_argument("sources", nargs="+", metavar="RUN=WEIGHT", help="what is mixed; with --sweep two names alone")
    parser.add_argument("--to", required=True, type=Path, metavar="DIR", help="where to write; empty or absent")
    parser.add_argument(
        "--base", metavar="RUN", help="add WEIGHT x (RUN - BASE) of each to this one; weights may then be any numbers"
    )
    parser.add_argument(
        "--sweep", metavar="FROM:TO:STEP", help="score beta x first + (1 - beta) x second for these beta: 0:1:0.1"
    )
    parser.add_argument("--evaluate", type=Path, metavar="CONFIG", help="the stage file whose test sets score a sweep")
    parser.add_argument("--score", metavar="NAME", help="which score is the best one's (the first of the test)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where runs are kept (runs)")
    given, overrides = parser.with_settings(arguments, bare=False)
    if given.sweep is None:
        for name, value in (("--evaluate", given.evaluate), ("--score", given.score), *((o, o) for o in overrides)):
            if value is not None:
                raise ValueError(f"mix: found {name}, expected it with --sweep only")
        print(write_mix(parse_weights(given.sources), given.to, base=given.base, runs=given.runs))
        return
    if given.base is not None or given.evaluate is None or len(given.sources) != 2:
        raise ValueError("mix: --sweep takes two sources, --evaluate CONFIG and no --base")

    betas = parse_betas(given.sweep)
    first, second = (find(name, given.runs) for name in given.sources)
    curve = MixCurve(first, second, given.evaluate, given.to, runs=given.runs, overrides=overrides)
    curve.run(betas, given.score)
