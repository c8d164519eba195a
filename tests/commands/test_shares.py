"""What each source counts for in the loss."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_mllm.cli import main
from lightning_mllm.commands.shares import ALONE, MIXED, loss_shares
from tests.test_cli import refused

INSTRUCT = Path(__file__).parents[2] / "experiments/instructblip_vicuna7b/instruct.yaml"


def test_long_answers_count_for_more_but_where_a_micro_batch_is_of_one_source() -> None:
    shares, tokens = torch.tensor([0.5, 0.5]).double(), torch.tensor([1.0, 9.0]).double()
    found = {size: loss_shares(shares, tokens, size) for size in (1, 2, 400)}
    for each in found.values():
        assert each["token_mean"].tolist() == pytest.approx([0.1, 0.9])
        assert each["sample_mean"].tolist() == each[ALONE].tolist() == [0.5, 0.5]
        assert float(each[MIXED].sum()) == pytest.approx(1)
    assert found[1][MIXED].tolist() == pytest.approx([0.5, 0.5], abs=0.02)
    # Two of one source in half of the micro-batches, one of each in the others.
    assert found[2][MIXED].tolist() == pytest.approx([0.25 + 0.05, 0.25 + 0.45], abs=0.02)
    assert found[400][MIXED].tolist() == pytest.approx([0.1, 0.9], abs=0.01)


def test_the_mixture_of_instructblip(capsys: pytest.CaptureFixture[str]) -> None:
    main(["data", "shares", str(INSTRUCT)])
    out = capsys.readouterr().out
    rows = {
        line.split("│")[1].strip(): [cell.strip() for cell in line.split("│")[2:-1]]
        for line in out.splitlines()
        if line.startswith("│")
    }
    assert len(rows) == 13 + 4
    # samples, share, tokens; token_mean, micro_batch_mean mixed and of one source, sample_mean
    assert rows["LLaVA-158K"] == ["158,000", "8.9%", "113.3", "54.6%", "36.7%", "8.9%", "8.9%"]
    assert rows["VQA"][1] == rows["VQA"][5] == "24.0%" and rows["VQA"][3] == "5.0%"
    assert "The stage: reduction micro_batch_mean, group source, micro-batches of 8." in out
    assert "  ocrvqa: assumed: titles, authors, yes and no\n" in out, "what is assumed is said"


def test_sources_without_stated_lengths_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lengths = tmp_path / "lengths.yaml"
    lengths.write_text("coco_caption: {samples: 10, tokens: 3}\nweb_capfilt: {samples: 10}\n")
    sentence = refused(capsys, "data", "shares", str(INSTRUCT), f"--lengths={lengths}")
    assert f"{lengths}: found no samples and tokens of 'web_capfilt', expected both" in sentence
