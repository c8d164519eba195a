"""`mllm judge RUN --set mm_vet|llava_bench --to FOLDER`: open answers graded by a language model.

FOLDER/prompts.jsonl   what a judge is asked: {id, messages}; all there is without --backend
FOLDER/journal.sqlite  every call; a stopped command goes on from it
FOLDER/verdicts.jsonl  {id, run, question_type, grades, text, model} of each verdict, or `reason` where there is none
FOLDER/judged.json     scores with intervals over pictures, of all questions and by kind
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lightning_mllm.commands.arguments import Arguments
from lightning_mllm.commands.config import ConfigError
from lightning_mllm.commands.submit import answers_of
from lightning_mllm.evaluation.judge import (
    JUDGES,
    Grades,
    Prompt,
    Rules,
    prompts_of,
    read_contexts,
    read_rules,
    scores_of,
    scores_of_runs,
)
from lightning_mllm.evaluation.results import write_json, write_lines
from lightning_mllm.evaluation.submission import rows_of

VERDICTS, JUDGED, PROMPTS = "verdicts.jsonl", "judged.json", "prompts.jsonl"


def main(arguments: Sequence[str]) -> None:
    """`mllm judge RUN --set NAME --to FOLDER`."""
    given = _parser().parse_args(arguments)
    if given.set not in JUDGES:
        raise ConfigError(f"--set: found '{given.set}', expected {' or '.join(JUDGES)}")
    rules = read_rules(given.set, given.rules)
    if JUDGES[given.set].context and given.context is None:
        raise ConfigError("--context: found none, expected the file that says what the pictures show (context.jsonl)")
    rows = rows_of(answers_of(given.run, given.runs), given.set, given.part)
    contexts = read_contexts(given.context) if given.context else {}
    prompts = prompts_of(given.set, rows, rules, contexts)
    given.to.mkdir(parents=True, exist_ok=True)
    write_lines(given.to / PROMPTS, (_messages(each, rules) for each in prompts))
    if given.backend is None:
        print(f"{given.to / PROMPTS} ({len(prompts):,} prompts; not judged: --backend openai asks a language model)")
        return
    if given.model is None:
        raise ConfigError("--model: found none, expected the judge, as its endpoint names it")
    _judge(given, rules, rows, prompts)


def _parser() -> Arguments:
    parser = Arguments(
        "judge",
        description="Have a language model grade the open answers of a run to MM-Vet or LLaVA-Bench.",
        epilog="Rules are the published ones in words of our own: see docs/evaluation_sets.md.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run, RUN/STAGE, or its test_answers.jsonl")
    parser.add_argument("--set", required=True, metavar="NAME", help=" or ".join(JUDGES))
    parser.add_argument("--to", required=True, type=Path, metavar="FOLDER", help="for verdicts, scores and the journal")
    parser.add_argument("--part", metavar="PART", help="the part of the test data, where it is not the set's name")
    parser.add_argument("--context", type=Path, metavar="FILE", help="what pictures show; for llava_bench")
    parser.add_argument("--rules", type=Path, metavar="FILE", help="a YAML that says how a judge is asked")
    parser.add_argument(
        "--backend", choices=["openai"], help="an OpenAI-compatible endpoint; without it, prompts alone"
    )
    parser.add_argument("--model", metavar="M", help="the judge, as its endpoint names it")
    parser.add_argument("--base-url", metavar="URL", help="of the endpoint; OpenAI's own if not given")
    parser.add_argument("--key-env", metavar="NAME", help="the environment variable that holds the key")
    parser.add_argument("--timeout", type=float, default=120.0, metavar="S", help="seconds of a call (120)")
    parser.add_argument("--concurrency", type=int, default=8, metavar="N", help="calls in flight (8)")
    parser.add_argument("--retries", type=int, default=5, metavar="N", help="of a call that brought no answer (5)")
    parser.add_argument("--again", action="store_true", help="ask anew what was refused")
    parser.add_argument("--budget-tokens", type=int, metavar="N", help="the most tokens, read and written (no limit)")
    parser.add_argument("--budget-money", type=float, metavar="X", help="the most money, by --prices (no limit)")
    parser.add_argument("--prices", metavar="P,C", help="money for a million tokens read, and written: 2.5,10")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where runs are kept (runs)")
    return parser


def _messages(prompt: Prompt, rules: Rules) -> dict[str, Any]:
    system = [{"role": "system", "content": rules.system}] if rules.system else []
    return {"id": prompt.id, "messages": [*system, {"role": "user", "content": prompt.text}]}


def _judge(given: argparse.Namespace, rules: Rules, rows: Sequence[Any], prompts: Sequence[Prompt]) -> None:
    from data_modules.judging import Asked, ask, endpoint, limits_of

    judge, plan = JUDGES[given.set], {"set": given.set, "judge": given.model, "rules": _digest(rules)}
    asked = Asked(
        prompts=prompts,
        system=rules.system,
        check=judge.read,
        max_tokens=rules.max_tokens,
        temperature=rules.temperature,
    )
    backend = endpoint(given.model, given.base_url, given.key_env, given.timeout)
    limits = limits_of(given.concurrency, given.retries, given.budget_tokens, given.budget_money, given.prices)
    verdicts, stopped = ask(asked, backend, given.to, plan, again=given.again, **limits)
    kinds = {row["id"]: row.get("question_type", "") for row in rows}
    grades: dict[str, Grades] = {each.id: judge.read(each.text) for each in verdicts if not each.reason}
    lines = []
    for each in verdicts:
        id, _, run = each.id.rpartition("#run")
        told = {"reason": each.reason} if each.reason else {"grades": grades[each.id], "text": each.text}
        lines.append({"id": id, "run": int(run), "question_type": kinds[id], **told, "model": each.model})
    write_lines(given.to / VERDICTS, lines)
    if not grades:
        raise ConfigError(f"{given.to}: found no verdict, the first because {lines[0]['reason']}; {_next(stopped)}")
    missing = [each for each in verdicts if each.reason]
    scores = scores_of(given.set, rows, grades)
    content = {
        **plan,
        "models": sorted({each.model for each in verdicts if each.model}),
        "scores": scores,
        "runs": scores_of_runs(given.set, rows, grades),
        "verdicts": len(grades),
        "not_judged": [{"id": each.id, "reason": each.reason} for each in missing],
    }
    write_json(given.to / JUDGED, content)
    _print(judge.title, scores)
    print(f"{given.to / JUDGED} ({len(grades):,} of {len(prompts):,} verdicts)")
    if stopped or missing:
        why = stopped or f"{missing[0].id}: {missing[0].reason}"
        raise ConfigError(f"{len(missing):,} of {len(prompts):,} verdicts are missing: {why}; {_next(stopped)}")


def _next(stopped: str) -> str:
    """What asks for the verdicts that are missing."""
    return "the same command goes on" if stopped else "--again asks anew for those that were refused"


def _digest(rules: Rules) -> str:
    return hashlib.sha256(repr(asdict(rules)).encode()).hexdigest()[:16]


def _print(title: str, scores: dict[str, dict[str, dict[str, float]]]) -> None:
    table = Table("kind", "score", "value", "95 % interval", "questions", title=title)
    for kind, found in scores.items():
        for score, each in found.items():
            interval = f"{each['low']:.1f} to {each['high']:.1f}"
            table.add_row(kind, score, f"{each['value']:.1f}", interval, f"{each['samples']:,}")
    Console().print(table)
