"""`mllm export RUN --to DIR`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning_mllm.commands.arguments import Arguments


def main(arguments: Sequence[str]) -> None:
    """Write a run as a folder that others load, and put it on the Hub."""
    parser = Arguments(
        "export",
        description="Write a run as a folder that transformers or peft loads (or, where they have no class for it,"
        " `load` and `mllm ask`), with a model card; compare the two in a fresh process; push it to the Hub.",
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="a run or its last stage, such as runs/quickstart/llava")
    parser.add_argument("--to", required=True, type=Path, metavar="DIR", help="where to write; empty or absent")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="of every weight (as in the run)")
    parser.add_argument(
        "--adapter-only", action="store_true", help="the LoRA adapters of the last stage alone, as peft loads them"
    )
    parser.add_argument(
        "--push", metavar="OWNER/NAME", help="upload the folder; if DIR is already this export, only upload"
    )
    parser.add_argument("--private", action="store_true", help="make the repository private")
    given = parser.parse_args(arguments)
    if given.private and not given.push:
        raise ValueError("--private: found no --push, expected the repository that is to be private")
    if given.dtype and given.adapter_only:
        raise ValueError(
            f"--dtype: found {given.dtype} beside --adapter-only, which writes adapters as they were trained"
        )

    import torch

    from lightning_mllm.commands.tracked_export import track_export
    from lightning_mllm.export.export import export_run
    from lightning_mllm.export.push import check_push, command, push
    from lightning_mllm.export.record import Origin, is_export_of

    how = {"dtype": given.dtype and getattr(torch, given.dtype), "adapter_only": given.adapter_only}
    if given.push:
        check_push(given.push)
    if not (given.push and is_export_of(given.to, Origin.of(given.run), **how)):
        export_run(given.run, given.to, name=given.push or "", **how)
        track_export(Origin.of(given.run), given.to)
    print(given.to)
    if given.push:
        chosen = {"--adapter-only": given.adapter_only, "--private": given.private}
        options = [*(["--dtype", given.dtype] if given.dtype else []), *(name for name, on in chosen.items() if on)]
        again = command(given.run, given.to, given.push, options)
        print(push(given.to, given.push, private=given.private, again=again))
