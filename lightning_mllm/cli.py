"""The `mllm` command: one table of verbs, each loaded only when it is called."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

from lightning_mllm import signals
from lightning_mllm.commands.trust import trusted_by

HELP = """\
mllm: train, test, ask and export multimodal language models.

  mllm experiments                  the experiments that ship with the package; copy NAME makes one yours
  mllm run EXPERIMENT               train every stage of a folder of YAML, test them, write a report
  mllm sweep FILE                   check a sweep of W&B; with --local run it here, without a server
  mllm memory EXPERIMENT            what one rank needs in each stage, told without a GPU
  mllm ask RUN --image F QUESTION   one answer of a trained model
  mllm serve RUN                    an OpenAI-compatible endpoint with images, and a page to talk with the model
  mllm compare RUN RUN              scores side by side, what the difference is worth, where answers differ
  mllm export RUN --to DIR          a folder that transformers loads, checked in a fresh process
  mllm mix A=0.5 B=0.5 --to DIR     weights between those of runs; --sweep scores all of them
  mllm world DIR                    draw the small world: pictures, captions, questions, conversations
  mllm doctor EXPERIMENT            what can be known before a run: files, masks, gradients, memory, disk
  mllm preview EXPERIMENT           a page of what the net gets: pictures, tokens, what is learned
  mllm synthesize --to DIR          instructions about pictures, by a model that reads captions and boxes, or by rules
  mllm judge RUN --set S --to DIR   open answers graded by a language model
  mllm submit RUN --set S --to F    answers in the form that a benchmark's server takes
  mllm data check EXPERIMENT        every record of every set, and some of the pictures
  mllm data convert FILE --to F     conversations of any dialect and file as those of another
  mllm data list                    the published data sets that the sources read
  mllm data shares STAGE.yaml       what each training source counts for in the loss
  mllm cache EXPERIMENT             what frozen towers make of images, written once for training to read
  mllm bench NAME                   a benchmark, such as training_speed beside other trainers; alone, their list

  mllm fit --config F [--config F]  train one stage
  mllm validate | test | predict    the same files, another verb
  mllm predict FOLDER --run RUN     one question about every picture of a folder

EXPERIMENT is a name such as quickstart/llava or a folder of YAML; RUN is what it wrote, such as runs/quickstart/llava.
Every value of a YAML file can be set on the command line, for all stages or for the one that is named first:

  mllm run quickstart/llava --hardware.micro_batch=8 --model.connector.depth=3 --instruct.stage.lr=1e-3

Later files win over earlier ones, and the command line wins over all of them. Classes of other packages than those
that docs/yaml.md names need --trust PACKAGE.

mllm VERB --help tells more; mllm fit --model.help CLASS, --data.help CLASS and --stage.help what a key takes.
"""


def _fit(arguments: Sequence[str]) -> None:
    from lightning_mllm.commands.launch import main

    main(arguments)


def _predict(arguments: Sequence[str]) -> None:
    from lightning_mllm.commands.predict_folder import is_asked

    if not is_asked(arguments[1:]):
        _fit(arguments)
        return
    from lightning_mllm.commands.predict_folder import main

    main(arguments[1:])


def _run(arguments: Sequence[str]) -> None:
    from lightning_mllm.commands.run import main

    main(arguments[1:])


def _sweep(arguments: Sequence[str]) -> None:
    from lightning_mllm.commands.sweep import main

    main(arguments[1:])


def _memory(arguments: Sequence[str]) -> None:
    from lightning_mllm.commands.memory import main

    main(arguments[1:])


def _cache(arguments: Sequence[str]) -> None:
    from lightning_mllm.commands.cache import main

    main(arguments[1:])


def _preview(arguments: Sequence[str]) -> None:
    from lightning_mllm.commands.preview import main

    main(arguments[1:])


def _doctor(arguments: Sequence[str]) -> None:
    from lightning_mllm.commands.doctor import main

    main(arguments[1:])


def _ask(arguments: Sequence[str]) -> None:
    from lightning_mllm.commands.ask import main

    main(arguments[1:])


def _serve(arguments: Sequence[str]) -> None:
    from lightning_mllm.commands.serve import main

    main(arguments[1:])


def _export(arguments: Sequence[str]) -> None:
    from lightning_mllm.commands.export import main

    main(arguments[1:])


def _experiments(arguments: Sequence[str]) -> None:
    from lightning_mllm.commands.experiments import main

    main(arguments[1:])


def _mix(arguments: Sequence[str]) -> None:
    from lightning_mllm.commands.mix import main

    main(arguments[1:])


def _compare(arguments: Sequence[str]) -> None:
    from lightning_mllm.commands.compare import main

    main(arguments[1:])


def _submit(arguments: Sequence[str]) -> None:
    from lightning_mllm.commands.submit import main

    main(arguments[1:])


def _judge(arguments: Sequence[str]) -> None:
    from lightning_mllm.commands.judge import main

    main(arguments[1:])


def _world(arguments: Sequence[str]) -> None:
    from data_modules.world.write import main

    main(list(arguments[1:]))


def _data(arguments: Sequence[str]) -> None:
    from data_modules.listing import LENGTHS, main

    if list(arguments[1:2]) == ["check"]:
        from lightning_mllm.commands.data_check import main as check

        check(arguments[2:])
        return
    if list(arguments[1:2]) == ["shares"]:
        from lightning_mllm.commands.shares import main as shares

        shares(arguments[2:], LENGTHS)
        return
    main(arguments[1:])


def _bench(arguments: Sequence[str]) -> None:
    from lightning_mllm.commands.bench import main

    main(arguments[1:])


def _synthesize(arguments: Sequence[str]) -> None:
    from data_modules.synthesis.command import main

    main(arguments[1:])


VERBS: dict[str, Callable[[Sequence[str]], None]] = {
    "experiments": _experiments,
    "run": _run,
    "sweep": _sweep,
    "memory": _memory,
    "cache": _cache,
    "preview": _preview,
    "doctor": _doctor,
    "ask": _ask,
    "serve": _serve,
    "export": _export,
    "compare": _compare,
    "submit": _submit,
    "judge": _judge,
    "mix": _mix,
    "world": _world,
    "data": _data,
    "synthesize": _synthesize,
    "bench": _bench,
    "fit": _fit,
    "validate": _fit,
    "test": _fit,
    "predict": _predict,
}

SAVING = ("fit", "run", "validate", "test", "predict", "mix")
"""The verbs whose end by a signal is an orderly one."""


FULL = (errno.ENOSPC, errno.EDQUOT)
"""A disk, or what one user may have of it."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one verb; what a user got wrong is told in one sentence, with exit code 2."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return
    if given[0] == "--version":
        print(f"mllm {_version()}")
        return
    if given[0] not in VERBS:
        import difflib

        close = difflib.get_close_matches(given[0], VERBS, n=1)
        hint = f"; the nearest is '{close[0]}'" if close else ""
        _refuse(f"found verb '{given[0]}', expected one of {', '.join(VERBS)}{hint}")
    if (here := os.getcwd()) not in sys.path:
        # Own classes that a YAML or the record of a run names; last, so that none stands in for an installed package.
        sys.path.append(here)
    try:
        with signals.installed() if given[0] in SAVING else nullcontext():
            VERBS[given[0]](trusted_by(given))
    except KeyboardInterrupt:
        print("mllm: stopped", file=sys.stderr)
        raise SystemExit(130) from None
    except signals.Stopped as stopped:
        # What a stage that trains keeps is told by its StageSignals.
        if not stopped.told:
            print(f"mllm: stopped by {stopped.name}", file=sys.stderr)
        raise
    except BrokenPipeError:
        # Who reads what is printed has seen enough, as `head` has.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except Exception as error:
        sentence = _meant_for_the_user(error)
        if not sentence or os.environ.get("MLLM_TRACEBACK"):
            raise
        # What a traceback would show below the error.
        _refuse("; ".join([sentence, *getattr(error, "__notes__", ())]))


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("lightning-mllm")
    except PackageNotFoundError:
        return "(not installed)"


def _meant_for_the_user(error: BaseException | None) -> str:
    """The sentence of what is behind `error`: a ValueError that our own code raised, a file, or memory that ran out."""
    package = Path(__file__).resolve().parent
    # Lightning tears down after an error, and an error of the teardown would hide the first one.
    while error is not None:
        frames = traceback.extract_tb(error.__traceback__)
        sentence = " ".join(str(error).split())
        if isinstance(error, ValueError) and frames:
            origin = Path(frames[-1].filename).resolve()
            if origin.is_relative_to(package) or origin.is_relative_to(package.with_name("data_modules")):
                return sentence or f"{origin.name}:{frames[-1].lineno}: {frames[-1].line}"
        if isinstance(error, OSError) and error.filename is not None and error.strerror:
            return f"{error.filename}: {error.strerror}"
        if isinstance(error, OSError) and error.errno in FULL:
            return f"a file cannot be written ({error.strerror}); free some of the disk"
        if type(error).__name__ == "OutOfMemoryError":
            return f"{sentence}; hardware.micro_batch and hardware.eval_batch say how much is computed at once"
        error = error.__cause__ or error.__context__
    return ""


def _refuse(sentence: str) -> None:
    from lightning_mllm.commands.secrets import hidden

    print(f"mllm: {hidden(sentence)}", file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    main()
