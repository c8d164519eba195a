"""Open answers graded by a language model: what it is asked, how its verdicts are read, what they come to.

rows of test_answers.jsonl --> prompts (id, text) --> [a language model] --> grades --> scores with intervals, by kind

How a judge is asked is data: `judges/NAME.yaml`, or a file of the same keys.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from lightning_mllm.evaluation.bootstrap import metric_intervals
from lightning_mllm.evaluation.metrics import SampleMetric
from lightning_mllm.weights.plain_files import lines, parse, read_text

Row = Mapping[str, Any]
Grades = tuple[float, ...]
FOLDER = Path(__file__).with_name("judges")


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How a judge is asked."""

    system: str
    """Its system message; empty for none."""
    prompt: str
    """Its user message, with {question}, {reference}, {answer} and {context}."""
    max_tokens: int
    """Most tokens of a verdict."""
    temperature: float
    runs: int
    """How often each answer is graded; grades are averaged."""


VALUES: dict[str, tuple[type | tuple[type, ...], str]] = {
    **dict.fromkeys(("system", "prompt"), (str, "a text")),
    **dict.fromkeys(("max_tokens", "runs"), (int, "a whole number")),
    "temperature": ((int, float), "a number"),
}
"""Key of a file of rules -> type of its value, and how that is told."""


class Prompt(NamedTuple):
    """One verdict to ask for."""

    id: str
    """Of the sample; behind '#run' the number of the run, from 1 on."""
    text: str


class MeanGrade(SampleMetric[Grades]):
    """`grade`: 100 times the mean grade from 0 to 1, as MM-Vet is told."""

    names = ("grade",)

    def statistics(self) -> np.ndarray:
        return np.array([[100 * grade] for (grade,) in self.answers])


class RelativeGrade(SampleMetric[Grades]):
    """`relative`: the mean grade of the answers in percent of that of the references; `reference` and `answer`: ten
    times the mean grades, as LLaVA's summarize_gpt_review.py tells them."""

    names = ("relative", "reference", "answer")

    def statistics(self) -> np.ndarray:
        return np.array(self.answers)

    def values(self, sums: np.ndarray, samples: np.ndarray) -> np.ndarray:
        reference, answer = np.moveaxis(sums, -1, 0)
        return np.stack([100 * answer / reference, 10 * reference / samples, 10 * answer / samples], axis=-1)


def read_grade(text: str) -> Grades:
    """The grade that a verdict begins with.

    Raises:
        ValueError: it begins with no number from 0 to 1.
    """
    first = next(iter(text.split()), "")
    if not re.fullmatch(r"[01]?\.\d+|[01]", first) or float(first) > 1:
        raise ValueError(f"found {first[:20]!r} at the beginning of the verdict, expected a grade from 0.0 to 1.0")
    return (float(first),)


def read_pair(text: str) -> Grades:
    """The two grades in the first line of a verdict.

    Raises:
        ValueError: the line is not two numbers from 1 to 10.
    """
    line = next(iter(text.strip().splitlines()), "")
    words = line.replace(",", " ").split()
    if len(words) != 2 or not all(re.fullmatch(r"\d+(\.\d+)?", each) and 1 <= float(each) <= 10 for each in words):
        raise ValueError(f"found {line[:40]!r} as the first line of the verdict, expected two grades from 1 to 10")
    return float(words[0]), float(words[1])


def _capabilities(kind: str) -> list[str]:
    """Each capability that a question needs, and their integration: 'ocr+math', or 'ocr alone'."""
    return [*kind.split("+"), kind if "+" in kind else f"{kind} alone"] if kind else []


@dataclass(frozen=True, kw_only=True)
class Judge:
    """What is judged, and how verdicts are read."""

    title: str
    read: Callable[[str], Grades]
    metric: type[SampleMetric[Grades]]
    kinds: Callable[[str], list[str]]
    """The kinds that a sample counts for, from its `question_type`."""
    context: bool
    """Whether a judge is told what the picture shows."""


JUDGES: dict[str, Judge] = {
    "mm_vet": Judge(title="MM-Vet", read=read_grade, metric=MeanGrade, kinds=_capabilities, context=False),
    "llava_bench": Judge(
        title="LLaVA-Bench", read=read_pair, metric=RelativeGrade, kinds=lambda kind: [kind], context=True
    ),
}


def read_rules(name: str, file: Path | None = None) -> Rules:
    """The rules of a set, or those of a file.

    Raises:
        ValueError: the file is no YAML, lacks a key, has another one or a wrong value, or its prompt lacks {answer}.
    """
    path = file or FOLDER / f"{name}.yaml"
    try:
        content = yaml.safe_load(read_text(path))
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{path}: found no YAML ({' '.join(str(error).split())}), expected the rules") from None
    keys = list(Rules.__dataclass_fields__)
    if not isinstance(content, dict) or sorted(content) != sorted(keys):
        found = ", ".join(map(str, content)) if isinstance(content, dict) else "no such keys"
        raise ValueError(f"{path}: found {found}, expected the keys {', '.join(keys)}")
    for key, (kind, expected) in VALUES.items():
        if not isinstance(content[key], kind) or isinstance(content[key], bool):
            raise ValueError(f"{path}: found {key} {content[key]!r}, expected {expected}")
    rules = Rules(**content)
    needed = ["question", "reference", "answer", *(["context"] if JUDGES[name].context else [])]
    if missing := [each for each in needed if f"{{{each}}}" not in rules.prompt]:
        raise ValueError(f"{path}: found no {{{missing[0]}}} in the prompt, expected where it stands")
    if rules.runs < 1 or rules.max_tokens < 1:
        raise ValueError(f"{path}: found runs {rules.runs}, max_tokens {rules.max_tokens}, expected at least 1 of each")
    return rules


def read_contexts(path: Path) -> dict[str, str]:
    """Name of a picture -> what it shows: {image, caption} a line as in the wild, {image, captions, instances} of COCO.

    Raises:
        ValueError: a line is neither.
    """
    found: dict[str, str] = {}
    for number, line in lines(path):
        if not line.strip():
            continue
        try:
            record: Any = parse(line, f"{path}:{number}", "an image with its caption")
            captions = record["captions"] if "captions" in record else record["caption"]
            text = captions if isinstance(captions, str) else "\n".join(captions)
            boxes = [f"{each['category']}: {each['bbox']}" for each in record.get("instances", ())]
            found[record["image"]] = "\n\n".join([text, *(["\n".join(boxes)] if boxes else [])])
        except (KeyError, TypeError):
            raise ValueError(f"{path}:{number}: found {line[:40]!r}, expected an image with its caption") from None
    return found


def prompts_of(name: str, rows: Sequence[Row], rules: Rules, contexts: Mapping[str, str]) -> list[Prompt]:
    """What a judge is asked about each row, in each run.

    Raises:
        ValueError: a row has no reference, or its picture no context.
    """
    asked = []
    for row in rows:
        if not row.get("references"):
            raise ValueError(f"sample {row['id']}: found no reference, expected one to judge by; test the run")
        values = {
            "question": row["prompt"].replace("<image>", "").strip(),
            "reference": row["references"][0].replace("<AND>", " <AND> ").replace("<OR>", " <OR> "),
            "answer": row["answer"],
            "context": _context(row, contexts) if JUDGES[name].context else "",
        }
        text = _filled(rules.prompt, values)
        asked += [Prompt(f"{row['id']}#run{run}", text) for run in range(1, rules.runs + 1)]
    return asked


def _filled(prompt: str, values: Mapping[str, str]) -> str:
    """A prompt with its fields filled in; what the values hold is never taken for a field."""
    return re.sub(rf"\{{({'|'.join(values)})\}}", lambda found: values[found.group(1)], prompt).strip()


def _context(row: Row, contexts: Mapping[str, str]) -> str:
    """That of the picture of a row; COCO's names may have the name of a split in front."""
    for picture in row.get("pictures", ()):
        name = Path(picture).name
        for known, text in contexts.items():
            if name == known or name.endswith(f"_{known}"):
                return text
    raise ValueError(f"sample {row['id']}: found no context of {list(row.get('pictures', ()))}, expected one")


def scores_of(name: str, rows: Sequence[Row], grades: Mapping[str, Grades]) -> dict[str, dict[str, dict[str, float]]]:
    """'all' and each kind of question -> score -> value and interval over pictures, and `samples`.

    Args:
        rows: all of the set.
        grades: prompt id -> grades; samples without any are left out, of the others runs are averaged.
    """
    judge = JUDGES[name]
    runs: dict[str, list[Grades]] = {}
    for id, each in grades.items():
        runs.setdefault(id.rpartition("#run")[0], []).append(each)
    means = [(row, tuple(np.mean(runs[row["id"]], axis=0).tolist())) for row in rows if row["id"] in runs]
    groups: dict[str, list[int]] = {"all": list(range(len(means)))}
    for place, (row, _) in enumerate(means):
        for kind in judge.kinds(row.get("question_type", "")):
            groups.setdefault(kind, []).append(place)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for kind, places in groups.items():
        if places and kind:
            metric = judge.metric()
            metric.update([means[place][1] for place in places], [("judged",)] * len(places))
            clusters = np.array([means[place][0]["cluster"] for place in places])
            intervals = metric_intervals(metric, clusters)
            found[kind] = {score: {**asdict(each), "samples": len(places)} for score, each in intervals.items()}
    return found


def scores_of_runs(name: str, rows: Sequence[Row], grades: Mapping[str, Grades]) -> list[float]:
    """The headline score of each run alone, in their order."""
    numbers = sorted({int(id.rpartition("#run")[2]) for id in grades})
    found = []
    for number in numbers:
        own = {id: each for id, each in grades.items() if id.endswith(f"#run{number}")}
        metric = JUDGES[name].metric()
        metric.update(list(own.values()), [("judged",)] * len(own))
        found.append(float(metric.compute()[metric.names[0]]))
    return found
