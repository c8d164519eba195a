"""The page of a report: one HTML file without scripts or addresses, light and dark."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning_mllm.evaluation.figures import Curve, bar, curves, duration, nice_ticks, number, shares
from lightning_mllm.evaluation.run_folder import Report, Score, StageReport, Tested
from lightning_mllm.evaluation.scores import TASKS

LABELS = {
    "vqa_accuracy": "VQA accuracy",
    "vqa_accuracy_official": "VQA accuracy (official script)",
    "cider": "CIDEr-D",
    "bleu_1": "BLEU-1",
    "bleu_2": "BLEU-2",
    "bleu_3": "BLEU-3",
    "bleu_4": "BLEU-4",
    "rouge_l": "ROUGE-L",
    "exact_match": "Exact match",
    "exact_match_sphinx": "Exact match (as SPHINX)",
    "ivqa_accuracy": "iVQA accuracy",
    "choice_accuracy": "Accuracy of choice",
    "auc": "Area under ROC",
    "mrr": "Mean reciprocal rank",
    "recall_1": "Recall at 1",
    "recall_5": "Recall at 5",
    "recall_10": "Recall at 10",
    "mean_rank": "Mean rank",
    "text_retrieval_r1": "Text retrieval R@1",
    "text_retrieval_r5": "Text retrieval R@5",
    "text_retrieval_r10": "Text retrieval R@10",
    "image_retrieval_r1": "Image retrieval R@1",
    "image_retrieval_r5": "Image retrieval R@5",
    "image_retrieval_r10": "Image retrieval R@10",
    "perplexity": "Perplexity",
    "loss": "Loss, nats a token",
    "pope_f1": "POPE F1",
    "pope_accuracy": "POPE accuracy",
    "pope_precision": "POPE precision",
    "pope_recall": "POPE recall",
    "pope_yes_ratio": "POPE yes ratio",
}
HEADLINES = {kinds[0].names[0] for kinds in TASKS.values()} | {
    "text_retrieval_r1",
    "image_retrieval_r1",
    "perplexity",
    "loss",
}
TASK_TITLES = {
    "vqa": "Questions",
    "vqa_official": "Questions",
    "ivqa": "Questions about videos",
    "caption": "Captions",
    "exact": "Questions",
    "exact_sphinx": "Questions",
    "choice": "Choices",
    "auc": "Yes or no?",
    "mrr": "Dialogues",
    "pope": "Is it there?",
    "retrieval": "Captions found",
}
MOST_ANSWERS = 12
FEWER_ANSWERS = 6
"""Of each set where several stages were tested."""


def page(report: Report) -> str:
    """The whole page."""
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    body = "\n".join(
        [
            _header(report),
            _headlines(report),
            _scores(report),
            _answers(report),
            _stages(report),
            _time(report),
            "<footer>Intervals: percentile bootstrap, 95 %, 1,000 draws of pictures, each with all its questions (of "
            "samples without a picture: each by itself). Blind: the same questions about exchanged images, what a "
            "model that cannot see would score; of retrieval, chance.</footer>",
        ]
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(report.name)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n"
        "</body>\n</html>\n"
    )


def _header(report: Report) -> str:
    then = " &rarr; " if len(report.tests) == 1 else ", "  # several tested stages may start from the same one
    facts = [then.join(_text(stage.name) for stage in report.stages)]
    total = sum(row["parameters"] for row in report.stages[-1].freeze_table)
    if total:
        facts.append(f"{number(total)} parameters")
    facts.append(duration(report.seconds))
    return (
        f'<header><p class="eyebrow">lightning-mllm</p><h1>{_text(report.name)}</h1>'
        f"<p>{' &middot; '.join(facts)}</p></header>"
    )


def _headlines(report: Report) -> str:
    cards = []
    for score in (each for tested in report.tests for each in tested.rows):
        if _key(score.name) in HEADLINES:
            beside = f" &middot; blind {_number(score.blind['value'])}" if score.blind else ""
            cards.append(
                f'<div class="card"><div class="name">{_named(score.name)}{_of_stage(report, score.stage)}</div>'
                f'<div class="value">{_number(score.found["value"])}</div>'
                f'<div class="range">{_range(score.found)}{beside}</div></div>'
            )
    return f'<div class="headlines">{"".join(cards)}</div>' if cards else ""


def _scores(report: Report) -> str:
    groups = []
    for tested in report.tests:
        title = f"<h3>{_text(tested.stage)}</h3>" if len(report.tests) > 1 else ""
        lead = f'<p class="lead">{_sizes(tested)}</p>' if title else ""
        groups.append(f'{title}{lead}<div class="card scores">{"".join(map(_score, tested.rows))}</div>')
    of = f" ({_sizes(report.tests[0])})" if len(report.tests) == 1 else "s, by stage"
    retrieval = any(name.startswith("retrieval") for tested in report.tests for name in tested.samples)
    grey = "images were exchanged between samples" + (", or of retrieval, chance" if retrieval else "")
    lead = f"Test set{of}. Grey: the blind baseline, where {grey}."
    return f'<h2>Scores</h2><p class="lead">{lead}</p>{"".join(groups)}'


def _score(score: Score) -> str:
    found, blind = score.found, score.blind
    top = max(1.0, *(nice_ticks(0, each["high"])[-1] for each in (found, blind) if each))
    bars = bar(found["value"], top, low=found["low"], high=found["high"])
    numbers = f"<strong>{_number(found['value'])}</strong> {_range(found)}"
    if blind:
        bars += bar(blind["value"], top, low=blind["low"], high=blind["high"], kind="blind")
        numbers += f"<br>{_number(blind['value'])} {_range(blind)} blind"
    scale = "" if top == 1 else f'<span class="part">of {number(top)}</span>'
    return (
        f'<div class="score"><h3>{_named(score.name)}{scale}</h3><div class="bars">{bars}</div>'
        f'<div class="numbers">{numbers}</div></div>'
    )


def _sizes(tested: Tested) -> str:
    return ", ".join(map(_text, tested.sizes))


def _answers(report: Report) -> str:
    sets: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for tested in report.tests:
        for example in tested.examples:
            if not example["blind"]:
                sets.setdefault((tested.stage, example["task"], example["part"]), []).append(example)
    if not sets:
        return ""
    blocks = []
    for (stage, task, part), examples in sets.items():
        badge = _badge(part) + _of_stage(report, stage)
        cards = "".join(map(_answer, examples[: MOST_ANSWERS if len(report.tests) == 1 else FEWER_ANSWERS]))
        blocks.append(f'<h3>{TASK_TITLES.get(task, _text(task))}{badge}</h3><div class="answers">{cards}</div>')
    return (
        '<h2>What the model says</h2><p class="lead">Test samples picked by the hash of their id, not by how well they '
        f"went: what was asked, what the model said, what people say.</p>{''.join(blocks)}"
    )


def _answer(example: dict[str, Any]) -> str:
    picture = ""
    if example["picture"]:
        drawn = ' class="drawn"' if example["picture"].startswith("data:image/png") else ""
        picture = f'<img{drawn} alt="" loading="lazy" src="{_text(example["picture"])}">'
    prompt = " ".join(example["prompt"].replace("<image>", " ").split())
    verdict = ""
    if example["task"] != "caption" and example["score"] is not None:
        verdict = " good" if example["score"] >= 0.5 else " bad"
    (first, count), *others = Counter(example["references"]).most_common()
    truth = f"{_text(first)} ({count} of {len(example['references'])})" if count > 1 else _text(first)
    more = "".join(f"<li>{_text(text)}</li>" for text, _ in others)
    details = f"<details><summary>{len(others)} more</summary><ul>{more}</ul></details>" if others else ""
    question = f'<div class="prompt">{_text(prompt)}</div>' if prompt else ""
    return (
        f'<div class="card answer">{picture}<div class="text">{question}'
        f'<div class="said{verdict}">{_text(example["answer"]) or "(nothing)"}</div>'
        f'<div class="truth">{truth}</div>{details}</div></div>'
    )


def _stages(report: Report) -> str:
    return f'<h2>Stages</h2><div class="stages">{"".join(map(_stage, report.stages))}</div>'


def _stage(stage: StageReport) -> str:
    total = sum(row["parameters"] for row in stage.freeze_table)
    trained = sum(row["parameters"] for row in stage.freeze_table if row["trained"])
    facts = [f"{stage.steps:,} steps", duration(stage.seconds)]
    if total:
        facts.append(f"{number(trained)} of {number(total)} parameters trained ({100 * trained / total:.3g} %)")
    loss = (
        [Curve(name="train/loss", points=stage.metrics["train/loss"], noisy=True)]
        if "train/loss" in stage.metrics
        else []
    )
    watched = [Curve(name=name, points=stage.metrics[name]) for name in _validation(stage.metrics)]
    figures = curves(loss, "Training loss over steps") if loss else ""
    if watched:
        figures += curves(watched, "Validation scores over steps", from_zero=True)
    elif "train/lr" in stage.metrics:
        rate = Curve(name="train/lr", points=stage.metrics["train/lr"])
        figures += curves([rate], "Learning rate over steps", from_zero=True)
    return (
        f'<section class="card stage"><h3>{_text(stage.name)}</h3><div class="facts">{" &middot; ".join(facts)}</div>'
        + (f'<div class="figures">{figures}</div>' if figures else "")
        + (_freeze_table(stage.freeze_table, total) if total else "")
        + "</section>"
    )


def _freeze_table(rows: Iterable[dict[str, Any]], total: int) -> str:
    cells = "".join(
        f'<tr class="{"trained" if row["trained"] else "frozen"}"><td><code>{_text(row["part"])}</code></td>'
        f'<td class="wide">{bar(row["parameters"], total, kind="" if row["trained"] else "blind")}</td>'
        f'<td class="number">{number(row["parameters"])}</td><td>{"trained" if row["trained"] else "frozen"}</td>'
        f'<td class="number">{"" if row["lr"] is None else format(row["lr"], "g")}</td>'
        f"<td>{_text(row['dtype'].removeprefix('torch.'))}</td></tr>"
        for row in rows
    )
    return (
        '<table><thead><tr><th>part</th><th></th><th class="number">parameters</th><th></th>'
        f'<th class="number">learning rate</th><th>dtype</th></tr></thead><tbody>{cells}</tbody></table>'
    )


def _time(report: Report) -> str:
    parts = [(stage.name, stage.seconds, duration(stage.seconds)) for stage in report.stages]
    parts.append(("test", report.test_seconds, duration(report.test_seconds)))
    return f'<h2>Time</h2><p class="lead">{duration(report.seconds)} in all.</p>{shares(parts)}'


def _validation(metrics: dict[str, Any]) -> list[str]:
    """The headline scores on the validation set."""
    return [name for name in metrics if name.startswith("val/") and _key(name.removeprefix("val/")) in HEADLINES]


def _key(score: str) -> str:
    """The score without its part: `vqa_accuracy_novel` is of the part `novel`."""
    return max((key for key in LABELS if score == key or score.startswith(f"{key}_")), key=len, default=score)


def _named(score: str) -> str:
    """The label of a score and the badge of its part."""
    key = _key(score)
    return LABELS.get(key, _text(key)) + _badge(score.removeprefix(key).strip("_"))


def _of_stage(report: Report, stage: str) -> str:
    return _badge(stage) if len(report.tests) > 1 else ""


def _badge(text: str) -> str:
    return f'<span class="part">{_text(text)}</span>' if text else ""


def _number(value: float) -> str:
    return f"{value:.3f}"


def _range(found: dict[str, float]) -> str:
    return f"[{found['low']:.3f}, {found['high']:.3f}]"


def _text(text: str) -> str:
    return html.escape(text, quote=True)
