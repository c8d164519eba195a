"""BLIP-2's stages and InstructBLIP's one after another, through real run folders."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch

from lightning_mllm.architectures.blip2 import Blip2
from lightning_mllm.architectures.blip2_representation import Blip2Representation
from lightning_mllm.training.initialise import summary
from tests.architectures.blip2s import INSTRUCTED
from tests.training.runs import fit, settings, weights


def test_each_stage_starts_from_what_the_one_before_it_left(tmp_path: Path) -> None:
    def stage(kind: Any, name: str, given: dict[str, Any], **init_from: float) -> Any:
        return fit(
            tmp_path / name,
            stage=settings(name, init_from=init_from),
            data={"steps": 2},
            build=lambda stage: kind.tiny(**given, stage=stage),
            runs=str(tmp_path),
        )

    first = stage(Blip2Representation, "representation", {})
    assert {part: set(counts) for part, counts in summary(first.provenance).items()} == {
        part: {"fresh"} for part in ("vision", "ln_vision", "qformer", "heads")
    }
    second = stage(Blip2, "generative", {}, representation=1.0)
    third = stage(Blip2, "instruct", INSTRUCTED, generative=1.0)

    # The generative stage has no place for heads, words, positions and the text's feed-forwards.
    counts = {kind: len(list(each.net.qformer.parameters())) for kind, each in (("full", first), ("none", second))}
    assert summary(second.provenance)["qformer"] == {"stage.init_from": counts["none"]}
    assert summary(second.provenance)["ln_vision"] == {"stage.init_from": 2}
    assert summary(second.provenance)["projection"] == {"fresh": 2}
    assert set(summary(second.provenance)["language"]) == set(summary(second.provenance)["vision"]) == {"fresh"}

    # The instruction is read with what the first stage knew of words; the last block's text comes to nothing.
    assert counts["full"] == counts["none"] + 2 + 3 * 6
    assert summary(third.provenance)["qformer"] == {"stage.init_from": counts["full"] - 6}
    assert summary(third.provenance)["projection"] == {"stage.init_from": 2}
    begun = Blip2.tiny(**INSTRUCTED, stage=settings("instruct", train={}, init_from={"generative": 1.0}))
    begun.runs = str(tmp_path)
    begun.configure_model()
    before, after, state = weights(first), weights(second), begun.state_dict()
    for name, tensor in state.items():
        if name.split(".")[0] in ("qformer", "ln_vision", "projection"):
            expected = before if ".text_" in name or name.startswith(("qformer.words", "qformer.positions")) else after
            assert torch.equal(tensor, expected[name]), name
    assert any(not torch.equal(before[name], after[name]) for name in after if name in before)


def test_what_later_stages_discard_is_in_the_first() -> None:
    """A pattern that matches nothing would leave a tensor without a place."""
    first = Blip2Representation.tiny()
    first.configure_model()
    names = list(first.state_dict())
    for pattern in Blip2.keys_to_ignore_on_load:
        assert any(fnmatchcase(name, pattern) for name in names), pattern
