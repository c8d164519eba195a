"""`mllm synthesize`: instruction data written by a model that reads captions and boxes, or sees the pictures."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

from data_modules.synthesis import journal
from data_modules.synthesis.backends import batch
from data_modules.synthesis.backends.openai_endpoint import OpenAIEndpoint
from data_modules.synthesis.backends.rule_based import RuleBased
from data_modules.synthesis.budget import Budget, parse_prices
from data_modules.synthesis.checks import checker
from data_modules.synthesis.display import bar
from data_modules.synthesis.journal import Journal
from data_modules.synthesis.output import RECORDS, About
from data_modules.synthesis.repair import repair
from data_modules.synthesis.report import write_output
from data_modules.synthesis.request import Backend
from data_modules.synthesis.runner import Content, Limits, ask_again, run
from data_modules.synthesis.settings import Planned, Settings, absolute, load
from data_modules.synthesis.verdicts import STATES, verdicts

MORE = """\
mllm synthesize batch write ...         the same plan as files of OpenAI's Batch API, in FOLDER/batches
mllm synthesize batch read FOLDER FILES result and error files of it, in any order
mllm synthesize report FOLDER           records, quarantine, data card and report of what is there so far

The same command again goes on where it was stopped or killed: nothing is asked twice that was answered.
"""
RULES = "rules, without a language model"
RULES_TOGETHER = 500
OPENAI_LIMIT = "max_completion_tokens"


def main(arguments: Sequence[str]) -> None:
    """The verb.

    Raises:
        ValueError: Something that was given is wrong, or not everything could be asked: what was answered is stored.
    """
    if list(arguments[:1]) == ["report"]:
        _report(arguments[1:])
    elif list(arguments[:2]) == ["batch", "write"]:
        _write(arguments[2:])
    elif list(arguments[:2]) == ["batch", "read"]:
        _read(arguments[2:])
    elif list(arguments[:1]) == ["batch"]:
        raise ValueError(f"synthesize: found '{' '.join(arguments[:2])}', expected batch write or batch read")
    else:
        _synthesize(arguments)


def _synthesize(arguments: Sequence[str]) -> None:
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.backend == "openai" and not given.model:
        parser.error("found no --model, which --backend openai asks")
    limits = _limits(given)
    settings, budget = _settings(given), _budget(given)
    if given.dry_run:
        _show(load(settings), budget)
        return
    # Before files are read: a key that is missing is found at once.
    backend, model, who = _backend(given)
    planned = load(settings)
    content = Content(planned.requests, checker(planned.kinds), repair)
    with journal.opened(given.to, {"model": model, **planned.plan}, planned.requests) as book:
        _note(book, settings, who, given.prices)
        if given.again and (count := book.again("refused")):
            print(f"asking again for {count} that were refused")
        if given.backend == "rules":
            print(f"{len(book.ids('pending'))} calls, answered by rules", flush=True)
        else:
            ask_again(book, content, limits.repairs)
            _announce(book, content, budget)
        if written := len(book.ids("written")):
            print(f"{written} calls are in batch files and are left to mllm synthesize batch read")
        with bar() as display:
            stop = run(book, content, backend, limits, budget, display)
        _output(given.to, book, planned)
    if stop:
        raise ValueError(f"synthesize: {stop}; the same command goes on from here")


def _write(arguments: Sequence[str]) -> None:
    parser = _parser("batch write")
    given = parser.parse_args(arguments)
    if not given.model:
        parser.error("found no --model")
    settings, budget = _settings(given), _budget(given)
    planned = load(settings)
    if given.dry_run:
        _show(planned, budget)
        return
    content = Content(planned.requests, checker(planned.kinds), repair)
    with journal.opened(given.to, {"model": given.model, **planned.plan}, planned.requests) as book:
        _note(book, settings, f"{given.model} through batch files", given.prices)
        if given.again and (count := book.again("written") + book.again("refused")):
            print(f"asking again for {count} that were refused, or are in batch files")
        ask_again(book, content, given.repairs)
        _announce(book, content, budget)
        paths, left = batch.write(book, content, budget, given.model, OPENAI_LIMIT, given.repairs)
        written, refused = len(book.ids("written")), len(book.ids("refused"))
    for path in paths:
        print(path)
    if refused:
        print(f"{refused} requests are refused; mllm synthesize report tells why")
    if not paths and written:
        print(f"{written} calls are in batch files already; --again writes them anew")
    if left:
        raise ValueError(f"batch write: the budget leaves out {left} calls; name a larger one once results are read")


def _read(arguments: Sequence[str]) -> None:
    parser = _Arguments("batch read", description="Read result and error files of OpenAI's Batch API.")
    parser.add_argument("folder", type=Path, help="what --to named")
    parser.add_argument("files", type=Path, nargs="+", help="in any order, of one batch or of several")
    _add_limits(parser)
    given = parser.parse_args(arguments)
    with journal.read(given.folder) as book:
        planned, plan = _planned(book), book.plan
    content = Content(planned.requests, checker(planned.kinds), repair)
    limits = Limits(retries=given.retries, repairs=given.repairs)
    with journal.opened(given.folder, plan, planned.requests) as book:
        told = batch.read(book, content, given.files, limits)
        print(", ".join(f"{count} {name}" for name, count in told.items() if count) or "no lines")
        _output(given.folder, book, planned)
        if pending := len(book.ids("pending")):
            print(f"{pending} calls are to be sent: mllm synthesize batch write puts them into files")


def _report(arguments: Sequence[str]) -> None:
    parser = _Arguments("report", description="Write what a folder's journal holds, also while it grows.")
    parser.add_argument("folder", type=Path, help="what --to named")
    given = parser.parse_args(arguments)
    with journal.read(given.folder) as book:
        _output(given.folder, book, _planned(book))


def _planned(book: Journal) -> Planned:
    """The requests of a journal, drawn anew from the files that it names.

    Raises:
        ValueError: They are others now.
    """
    known = book.about.get("settings")
    if known is None:
        raise ValueError(f"{book.path}: found no settings, expected the journal of mllm synthesize")
    planned = load(Settings.of(known))
    book.check({"model": book.plan["model"], **planned.plan}, planned.requests)
    return planned


def _output(folder: Path, book: Journal, planned: Planned) -> None:
    about, settings = book.about, Settings.of(book.about["settings"])
    found = list(verdicts(book.outcomes(planned.requests)))
    prices = parse_prices(about["prices"]) if about.get("prices") else None
    told = About(
        title=folder.resolve().name,
        files={role: Path(path).name for role, path in settings.files.items()},
        backend=about["backend"],
        seed=settings.seed,
        kinds=planned.kinds,
        counts=planned.counts,
        prices=None if prices is None else (prices.prompt, prices.completion),
        rules=about["backend"] == RULES,
        lost=(book.lost.prompt, book.lost.completion),
    )
    write_output(folder, found, told, planned.images)
    counts = {state: sum(verdict.state == state for verdict in found) for state in STATES}
    print(f"{', '.join(f'{count} {state}' for state, count in counts.items())}: {folder / RECORDS}")


def _note(book: Journal, settings: Settings, backend: str, prices: str | None) -> None:
    book.note({"settings": settings.text, "backend": backend, **({"prices": prices} if prices else {})})


def _announce(book: Journal, content: Content, budget: Budget) -> None:
    budget.spent = book.spent
    known = {request.id: request for request in content.requests}
    print(budget.announce(content.request(book, id, known) for id in book.ids("pending")), flush=True)


def _show(planned: Planned, budget: Budget) -> None:
    """The plan, what it may cost, and one whole request of each kind."""
    print(budget.announce(planned.requests))
    print(", ".join(f"{count} {name}" for name, count in planned.counts.items()))
    for kind in planned.kinds:
        of = [request for request in planned.requests if request.kind == kind.name]
        print(f"\n{kind.name}: {len(of)} requests{', the first:' if of else ''}")
        for message in of[0].messages if of else ():
            pictures = "".join(f"[{image.name}]\n" for image in message.images)
            print(f"--- {message.role}\n{pictures}{message.text}")


def _backend(given: argparse.Namespace) -> tuple[Backend, str, str]:
    """Who answers, its name in the plan, and how a data card calls it."""
    if given.backend == "rules":
        rules = RuleBased(given.questions, given.answers, given.seed)
        return rules, f"rules, {given.questions} questions, {given.answers}", RULES
    endpoint = OpenAIEndpoint(given.model, given.base_url, given.key_env, given.timeout)
    host = urlsplit(given.base_url).hostname if given.base_url else "api.openai.com"
    return endpoint, given.model, f"{given.model} at {host}"


def _limits(given: argparse.Namespace) -> Limits:
    asked = Limits(
        concurrency=given.concurrency, retries=given.retries, repairs=given.repairs, longest_wait=given.longest_wait
    )
    # Rules answer at once: what waits for a commit to the disk waits together.
    return replace(asked, concurrency=RULES_TOGETHER, threads=1) if given.backend == "rules" else asked


def _settings(given: argparse.Namespace) -> Settings:
    for name, value in (("--limit", given.limit), ("--image-tokens", given.image_tokens)):
        if value is not None and value < 1:
            raise ValueError(f"{name}: found {value}, expected at least 1")
    captions = None if given.captions is None else (given.captions[0], str(Path(given.captions[1]).resolve()))
    return Settings(
        captions=captions,
        instances=None if given.instances is None else str(Path(given.instances).resolve()),
        images=str(Path(given.images).resolve()),
        prefix=given.prefix,
        kinds=tuple(map(absolute, given.kinds.split(","))),
        limit=given.limit,
        seed=given.seed,
    )


def _budget(given: argparse.Namespace) -> Budget:
    return Budget(
        tokens=given.budget_tokens,
        money=given.budget_money,
        prices=None if given.prices is None else parse_prices(given.prices),
        image_tokens=given.image_tokens,
    )


def _parser(action: str = "") -> _Arguments:
    parser = _Arguments(
        action,
        description="Have a language model write instructions about pictures.",
        epilog=MORE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--captions",
        nargs=2,
        metavar=("FORMAT", "FILE"),
        help="coco, or a class of mllm data list; none: pictures alone",
    )
    add("--instances", metavar="FILE", help="COCO's file of boxes")
    add("--images", metavar="FOLDER", required=True, help="the pictures")
    add("--prefix", default="", help="what records put in front of a picture's name, as in coco/train2017/")
    add("--kinds", default="conversation,detail,reasoning", help="NAME=COUNT, ...; a .yaml file is one of your own")
    add("--limit", type=int, metavar="N", help="the first N pictures (all)")
    add("--seed", type=int, default=0, help="of what is drawn (0)")
    add("--to", type=Path, metavar="FOLDER", required=True, help="journal, records, quarantine, data card and report")
    add("--model", help="as the endpoint names it")
    add("--budget-tokens", type=int, metavar="N", help="most tokens of the folder, read and written")
    add("--budget-money", type=float, metavar="X", help="most money of the folder")
    add("--prices", metavar="READ,WRITTEN", help="money for a million tokens, as in 2.5,10")
    add("--image-tokens", type=int, default=1600, metavar="N", help="at most what a picture counts for (1600)")
    add("--again", action="store_true", help="ask again for what was refused")
    add("--dry-run", action="store_true", help="the plan, its cost and one request of each kind; nothing is sent")
    _add_limits(parser)
    if not action:
        add(
            "--backend",
            choices=("openai", "rules"),
            default="openai",
            help="an endpoint, or rules on captions and boxes",
        )
        add("--base-url", metavar="URL", help="of an OpenAI-compatible endpoint (OpenAI's own)")
        add("--key-env", metavar="NAME", help="the environment variable that holds the key")
        add("--concurrency", type=int, default=8, metavar="N", help="calls at once (8)")
        add("--timeout", type=float, default=120.0, metavar="S", help="seconds until a call is given up (120)")
        add("--longest-wait", type=float, default=60.0, metavar="S", help="seconds a call is ever put off (60)")
        add("--questions", type=int, default=8, metavar="N", help="of a conversation by rules, at most (8)")
        add("--answers", choices=("sentences", "words"), default="sentences", help="of a conversation by rules")
    return parser


def _add_limits(parser: _Arguments) -> None:
    parser.add_argument(
        "--retries", type=int, default=5, metavar="N", help="further calls after one without an answer (5)"
    )
    parser.add_argument("--repairs", type=int, default=1, metavar="N", help="further calls after a wrong answer (1)")


class _Arguments(argparse.ArgumentParser):
    """Complains in one sentence."""

    def __init__(
        self,
        action: str,
        *,
        description: str,
        epilog: str | None = None,
        formatter_class: type[argparse.HelpFormatter] = argparse.HelpFormatter,
    ) -> None:
        super().__init__(
            prog=f"mllm synthesize {action}".rstrip(),
            allow_abbrev=False,
            description=description,
            epilog=epilog,
            formatter_class=formatter_class,
        )

    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown != message:
            first = unknown.split()[0].partition("=")[0]
            known = [name for action in self._actions for name in action.option_strings]
            close = difflib.get_close_matches(first, known, n=1)
            message = f"found an unknown argument {first}{f'; the nearest is {close[0]}' if close else ''}"
        raise ValueError(f"{self.prog.removeprefix('mllm ')}: {message}; mllm synthesize --help tells more")
