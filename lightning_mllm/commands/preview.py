"""`mllm preview EXPERIMENT`: what the net gets of some samples, as one page of pictures, tokens and prompts."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from lightning_mllm.commands.arguments import Arguments
from lightning_mllm.commands.config import ConfigError
from lightning_mllm.commands.preview_page import write_page
from lightning_mllm.commands.preview_samples import preview
from lightning_mllm.commands.stage_data import composed_stages


def main(arguments: Sequence[str]) -> None:
    """`mllm preview EXPERIMENT_OR_CONFIG [--stage S] [--samples N] [--ids ID ...] [--to FILE] [settings]`."""
    parser = Arguments(
        "preview",
        description="Write a page of what the net gets of some samples of each set of an experiment: the pictures after"
        " resizing, the tokens and which are learned, the prompt in training beside that where an answer is asked for,"
        " boxes drawn. Tokenizers and data are read, weights are not; nothing is trained.",
        epilog="Further options are settings, as in mllm run: --model.chat=plain, --STAGE.model.chat=plain",
    )
    parser.add_argument("experiment", type=Path, metavar="EXPERIMENT", help="as of mllm run, or the YAML of one stage")
    parser.add_argument("--stage", metavar="STAGE", help="this stage alone")
    parser.add_argument("--samples", type=int, default=3, metavar="N", help="of each set (3)")
    parser.add_argument("--ids", nargs="+", default=[], metavar="ID", help="the samples that are called so instead")
    parser.add_argument("--hardware", default="cpu", metavar="NAME", help="a file of _hardware (cpu)")
    parser.add_argument("--to", type=Path, default=Path("preview.html"), metavar="FILE", help="the page (preview.html)")
    given, overrides = parser.with_settings(arguments)
    if given.samples < 1:
        raise ConfigError(f"--samples: found {given.samples}, expected at least 1")
    stages = composed_stages(given.experiment, hardware=given.hardware, only=given.stage, overrides=overrides)
    shown, missing = preview(stages, samples=given.samples, ids=given.ids)
    if missing:
        raise ConfigError(f"--ids: found no sample {missing[0]!r} in the sets of {stages[0].experiment}, expected one")
    errors = list(dict.fromkeys(each.error for stage in shown for each in (stage, *stage.sets) if each.error))
    if not any(each.samples for stage in shown for each in stage.sets):
        raise ConfigError(errors[0] if errors else f"{given.experiment}: found no set, expected data to show")
    for each in errors:
        print(f"not shown: {each}", file=sys.stderr)
    differ = sum(sample.verdict == "differ" for stage in shown for each in stage.sets for sample in each.samples)
    if differ:
        print(f"{differ} samples: the prompt in training is not the one where an answer is asked for", file=sys.stderr)
    print(write_page(stages[0].experiment, shown, given.to))
