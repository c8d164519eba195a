from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertOnlyMLMHead

from lightning_mllm.component import ComponentSpec
from lightning_mllm.connectors.alignment import (
    AlignmentConnector,
    check_negatives,
    contrastive,
    hard_negatives,
    targets_of,
)
from lightning_mllm.connectors.norm import LayerNormConnector
from lightning_mllm.connectors.qformer_connector import QFormerConnector

HEADS = AlignmentConnector(in_width=768, vocab=30523)


def count(module: torch.nn.Module, *prefixes: str) -> int:
    return sum(p.numel() for name, p in module.named_parameters() if not prefixes or name.startswith(prefixes))


def test_published_sizes() -> None:
    with torch.device("meta"):
        heads, norm = HEADS.build(), LayerNormConnector(in_width=1408).build()
        qformer = QFormerConnector(in_width=1408, text="full").build()
    assert count(heads, "transform", "norm", "bias") == 622_651
    assert count(norm) == 2_816
    assert count(heads) + count(norm) + count(qformer) == 186_705_470


def test_specs_are_fresh_parts() -> None:
    for spec in (HEADS, LayerNormConnector(in_width=4)):
        assert isinstance(spec, ComponentSpec)
        assert spec.pretrained() is None and spec.blocks(torch.nn.Identity()) == []
    heads = AlignmentConnector(in_width=4, vocab=5).build()
    assert heads.temperature.tolist() == pytest.approx([0.07])
    assert heads.bias.tolist() == [0.0] * 5
    assert (LayerNormConnector().eps, LayerNormConnector(in_width=4, eps=1e-6).build().eps) == (1e-5, 1e-6)


def test_words_as_in_bert() -> None:
    config = BertConfig(vocab_size=21, hidden_size=16)
    theirs: Any = BertOnlyMLMHead(config).predictions
    ours, table = AlignmentConnector(in_width=16, vocab=21).build(), torch.randn(21, 16)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.normal_()
        theirs.decoder.weight.copy_(table)
        theirs.decoder.bias.copy_(ours.bias)
        theirs.bias.copy_(ours.bias)
    theirs.transform.dense.load_state_dict(ours.transform.state_dict())
    theirs.transform.LayerNorm.load_state_dict(ours.norm.state_dict())
    hidden = torch.randn(2, 3, 16)
    assert_close(ours.words(hidden, table), theirs(hidden), atol=1e-5, rtol=0)


def test_targets_with_one_answer_are_label_smoothing() -> None:
    own = torch.zeros(2, 6, dtype=torch.bool)
    own[0, 2] = own[1, 3] = True
    similarity = torch.randn(2, 6)
    for smoothing in (0.1, 0.0):
        expected = F.cross_entropy(similarity, torch.tensor([2, 3]), label_smoothing=smoothing, reduction="none")
        assert_close(contrastive(similarity, targets_of(own, smoothing)), expected)


def test_targets_with_several_answers_share() -> None:
    own = torch.tensor([[True, False, True, False, False]])
    assert_close(targets_of(own, 0.1), torch.tensor([[0.47, 0.02, 0.47, 0.02, 0.02]]))


def test_the_loss_is_in_32_bits() -> None:
    similarity = torch.tensor([[100.0, 0.0], [0.0, 100.0]], dtype=torch.bfloat16)
    loss = contrastive(similarity, targets_of(torch.eye(2, dtype=torch.bool), 0.1))
    assert loss.dtype == torch.float32
    assert loss.tolist() == pytest.approx([5.0, 5.0], rel=1e-3)


def test_negatives_are_drawn_in_proportion_and_never_their_own() -> None:
    similarity = torch.tensor([[2.0, 1.0, 0.0, -1.0, 5.0], [0.5, 3.0, 0.5, -2.0, 0.0]])
    own = torch.tensor([[False, False, False, False, True], [False, True, False, True, False]])
    draws, generator = 4000, torch.Generator().manual_seed(0)
    seen = torch.zeros(2, 5)
    for _ in range(draws):
        seen[torch.arange(2), hard_negatives(similarity, own, generator)] += 1
    assert not seen[own].any()
    expected = draws * similarity.masked_fill(own, float("-inf")).softmax(1)
    for row in range(2):
        others = ~own[row]
        chi_square = ((seen[row] - expected[row])[others] ** 2 / expected[row][others]).sum()
        # The 0.999 quantile for 3 degrees of freedom.
        assert chi_square < 16.27, (seen, expected)


def test_negatives_are_drawn_as_torch_draws_them() -> None:
    similarity, own = torch.randn(16, 16), torch.eye(16, dtype=torch.bool)
    for seed in range(8):
        found = hard_negatives(similarity, own, torch.Generator().manual_seed(seed))
        chances = similarity.masked_fill(own, float("-inf")).softmax(1)
        expected = torch.multinomial(chances, 1, generator=torch.Generator().manual_seed(seed)).squeeze(1)
        assert torch.equal(found, expected)


def test_a_batch_of_one_has_no_negative() -> None:
    own = torch.tensor([[True, True], [False, True]])
    with pytest.raises(ValueError, match="matching: found no other image among 2 pairs, expected at least one"):
        check_negatives(own)
    own[0, 0] = False
    check_negatives(own)
    assert hard_negatives(torch.full((2, 2), -1e4), own).tolist() == [0, 0]
