"""`mllm mix A B --sweep 0:1:0.1 --evaluate CONFIG --to DIR`: the score of beta A + (1 - beta) B over beta.

DIR/sweep.csv           a row a beta: every score with its interval
DIR/sweep.png           the curve of one score
DIR/sweep.json          what was asked, and which beta is the best
DIR/betas/<beta>/       the test of each
DIR/mix/                the best one, as `mllm mix` writes it

Nothing but the best is written as weights: the others are mixed while the net is filled. The best beta is chosen on the
sets that score it, so these should be others than those whose scores are reported.
"""

from __future__ import annotations

import csv
import io
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml
from rich.console import Console
from rich.table import Table

from lightning_mllm.commands.command_line import read_files, value_at
from lightning_mllm.commands.config import ConfigError, nearest
from lightning_mllm.commands.launch import ParsedCLI, compose, run_and_release
from lightning_mllm.commands.mixed_runs import called, folder_of, mixed, write_mix
from lightning_mllm.evaluation.bootstrap import Interval
from lightning_mllm.evaluation.figures import draw_scores
from lightning_mllm.evaluation.results import write_json
from lightning_mllm.evaluation.run_folder import BLIND
from lightning_mllm.evaluation.tasks import find_score
from lightning_mllm.export.export import refuse_full
from lightning_mllm.weights.files import write_text
from lightning_mllm.weights.lineage import InitSource
from lightning_mllm.weights.run_records import read_record, read_test

ONE_DEVICE = {"devices": 1, "num_nodes": 1, "strategy": "auto", "logger": False}

Scores = dict[str, dict[str, float]]
"""Name -> value, low, high."""


def parse_betas(text: str) -> list[float]:
    """`0:1:0.1` as 0.0, 0.1, ..., 1.0.

    Raises:
        ValueError: It is none, or leaves the range from 0 to 1.
    """
    try:
        start, stop, step = map(float, text.split(":"))
        count = math.floor((stop - start) / step + 1e-9)
        if not (start >= 0 and stop <= 1 and count >= 1):
            raise ValueError
    except (ValueError, ZeroDivisionError, OverflowError):
        raise ValueError(f"--sweep: found {text!r}, expected FROM:TO:STEP from 0 to 1, such as 0:1:0.1") from None
    return [round(start + index * step, 9) for index in range(count + 1)]


class MixCurve:
    """The mixes of two sources, each tested once.

    Args:
        first: The run whose configuration says what the net is; its weight is beta.
        second: Anything that this net starts from; its weight is 1 - beta.
        evaluate: A stage file (or a run's config.yaml) with test sets.
        to: An empty or absent folder, or one of a sweep that asked the same, whose tests are kept.
        runs: What names of stages are relative to.
        overrides: Further options of `mllm test`.

    Raises:
        ValueError: The sources do not fit together, the file has no test sets, or `to` holds something else.
    """

    def __init__(
        self,
        first: InitSource,
        second: InitSource,
        evaluate: Path,
        to: Path,
        *,
        runs: Path = Path("runs"),
        overrides: Sequence[str] = (),
    ) -> None:
        self.first, self.second, self.to, self.runs = first, second, to, runs
        self.overrides = list(overrides)
        if first.record is None:
            raise ValueError(f"mix: {first.source!r} is no run, expected one as the first source of a sweep")
        mixed({"first": first, "second": second}, {"first": 0.5, "second": 0.5}, runs)
        self.config = folder_of(first) / "config.yaml"
        self.sets = self._test_sets(evaluate)
        names = [called(each, runs) for each in (first, second)]
        digests = dict(zip(names, (first.digest, second.digest), strict=True))
        self.asked = {"sources": digests, "test": self.sets, "overrides": self.overrides}
        if self._known().get("asked") != self.asked:
            refuse_full(to)

    def _known(self) -> dict[str, object]:
        return read_record(self.to / "sweep.json", "name another --to, or move the folder away to score it anew")

    def _test_sets(self, evaluate: Path) -> dict[str, object]:
        """The file's test sets, resolved as those of the first run's net; blind twins tell nothing of a mix."""
        if not value_at(read_files([evaluate]), ("data", "test")):
            raise ConfigError(f"{evaluate}: found no data.test, expected sets to score mixes with")
        parsed = compose(["test", f"--config={self.config}", f"--config={evaluate}", *self.overrides], ParsedCLI)
        sets = value_at(parsed.resolved, ("data", "test"))
        assert isinstance(sets, Mapping)
        return {name: {**each, "blind": False} for name, each in sets.items()}

    def run(self, betas: Sequence[float], score: str | None = None) -> float:
        """Tests what is not tested yet, writes table, picture and the best mix; gives its beta.

        Args:
            betas: The first source's weights, rising, at least two.
            score: The score that decides; None is the first of the test.

        Raises:
            ValueError: There is no such score.
        """
        found: dict[float, Scores] = {}
        for beta in betas:
            found[beta] = self._scores(beta)
            name = _chosen_score(found[beta], score)
            self._write_table(found)
        best = best_beta({beta: scores[name]["value"] for beta, scores in found.items()}, name)
        of = {beta: Interval(**scores[name]) for beta, scores in found.items()}
        draw_scores(self.to / "sweep.png", of, title=self._title(name), chosen=best)
        shutil.rmtree(self.to / "mix", ignore_errors=True)
        sources = [str(folder_of(each)) for each in (self.first, self.second)]
        weights = dict(zip(sources, (best, round(1 - best, 9)), strict=True))
        write_mix(weights, self.to / "mix", runs=self.runs)
        write_json(self.to / "sweep.json", {"asked": self.asked, "score": name, "best": best, **found[best][name]})
        self._say(of, name, best)
        return best

    def _scores(self, beta: float) -> Scores:
        folder = self.to / "betas" / f"{beta:g}"
        results = folder / "test.json"
        if not results.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            write_json(self.to / "sweep.json", {"asked": self.asked})
            weights = {str(folder_of(self.first)): beta, str(folder_of(self.second)): round(1 - beta, 9)}
            test = {
                "data": {"init_args": {"test": self.sets}},
                "stage": {"init_from": weights},
                "trainer": ONE_DEVICE,
                "run_dir": str(folder),
            }
            write_text(folder / "test.yaml", yaml.safe_dump(test, sort_keys=False))
            files = [f"--config={self.config}", f"--config={folder / 'test.yaml'}"]
            run_and_release(["test", *files, f"--runs={self.runs}", *self.overrides, "--verbose=false"])
        return read_test(results)["scores"]

    def _write_table(self, found: dict[float, Scores]) -> None:
        text = io.StringIO()
        names = list(next(iter(found.values())))
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["beta", *(column for name in names for column in (name, f"{name}_low", f"{name}_high"))])
        for beta, scores in found.items():
            values = (scores[name][key] for name in names for key in ("value", "low", "high"))
            writer.writerow([f"{beta:g}", *map(repr, values)])
        write_text(self.to / "sweep.csv", text.getvalue())

    def _title(self, name: str) -> str:
        first, second = (folder_of(each).name for each in (self.first, self.second))
        return f"{name} of beta * {first} + (1 - beta) * {second}"

    def _say(self, found: dict[float, Interval], name: str, best: float) -> None:
        table = Table("beta", name, "95 % interval", title=self._title(name))
        for beta, each in found.items():
            mark = "[bold]" if beta == best else ""
            table.add_row(f"{mark}{beta:g}", f"{mark}{each.value:.3f}", f"{mark}{each.low:.3f} to {each.high:.3f}")
        Console().print(table)
        print(f"best beta {best:g}: {name} {found[best].value:.3f}; {self.to / 'mix'}, {self.to / 'sweep.png'}")


def best_beta(values: dict[float, float], name: str) -> float:
    """The beta of the best value of a score; of a loss or a perplexity that is the lowest."""
    known = find_score(name)
    lower = known is not None and known[0].higher_is_better is False
    return (min if lower else max)(values, key=lambda beta: values[beta])


def _chosen_score(scores: Scores, score: str | None) -> str:
    names = [name for name in scores if not name.endswith(BLIND)]
    if score is None:
        return names[0]
    if score not in names:
        raise ValueError(f"--score: found {score!r}, expected one of {', '.join(names)}{nearest(score, names)}")
    return score
