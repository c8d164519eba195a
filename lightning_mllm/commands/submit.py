"""`mllm submit RUN --set NAME --to FILE`: the answers to a test set in the form that its benchmark takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning_mllm.commands.arguments import Arguments
from lightning_mllm.commands.config import ConfigError
from lightning_mllm.evaluation.predictions import ANSWERS
from lightning_mllm.evaluation.results import TEST_ANSWERS
from lightning_mllm.evaluation.run_folder import experiment_of, read_report
from lightning_mllm.evaluation.submission import FORMS, About, rows_of
from lightning_mllm.weights.files import write_bytes


def answers_of(path: Path, runs: Path) -> Path:
    """The file of answers of a run, of one of its stages, or the file itself.

    Of a run, the last tested stage is meant; of a stage, what `mllm test` wrote, else what `mllm predict` wrote.

    Raises:
        ConfigError: There is none.
    """
    if path.is_file():
        return path
    folder = next((each for each in (path, runs / path) if each.is_dir()), None)
    if folder is None:
        raise ConfigError(
            f"found no folder {path}, nor one of that name in {runs}, expected a run or a file of answers"
        )
    if not any((folder / name).is_file() for name in (TEST_ANSWERS, ANSWERS)) and any(folder.glob("*/test.json")):
        folder /= read_report(folder).tests[-1].stage
    for name in (TEST_ANSWERS, ANSWERS):
        if (folder / name).is_file():
            return folder / name
    raise ConfigError(f"{folder}: found no {TEST_ANSWERS} and no {ANSWERS}, expected a stage that was tested")


def main(arguments: Sequence[str]) -> None:
    """`mllm submit RUN --set NAME --to FILE`."""
    parser = Arguments(
        "submit",
        description="Write the answers of a run to a test set in the form that its benchmark takes.",
        epilog="Sets: " + "; ".join(f"{name}: for {form.title}" for name, form in FORMS.items()) + ".",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run, RUN/STAGE, or a file of answers")
    parser.add_argument("--set", required=True, choices=list(FORMS), metavar="NAME", help="one of those below")
    parser.add_argument("--to", required=True, type=Path, metavar="FILE", help="the file to write; of mme a folder")
    parser.add_argument("--part", metavar="PART", help="the part of the test data, where several sets would do")
    parser.add_argument("--annotations", type=Path, metavar="FILE", help="the published .tsv file; for mmbench")
    parser.add_argument("--task", default="", metavar="TASK", help="what lmms-eval calls the set; for lmms_eval")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where runs are kept (runs)")
    given = parser.parse_args(arguments)
    path = answers_of(given.run, given.runs)
    rows = rows_of(path, given.set, given.part)
    stage = path.resolve().parent
    about = About(
        model=experiment_of(stage, given.runs),
        suffix=given.to.suffix,
        annotations=given.annotations,
        task=given.task,
    )
    form = FORMS[given.set]
    files = form.write(rows, about)
    folder = given.to if form.folder else given.to.parent
    if (given.to.exists() and form.folder and not given.to.is_dir()) or (not form.folder and given.to.is_dir()):
        raise ConfigError(f"--to: found {given.to}, expected {'a folder' if form.folder else 'a file'}")
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_bytes(folder / name if name else given.to, content)
    print(f"{given.to} ({len(rows):,} answers from {path}, for {form.title})")
