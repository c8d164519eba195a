"""A Q-Former as a component: its sizes and what it starts from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_mllm.connectors.qformer import STD, QFormer, QFormerSizes
from lightning_mllm.interop.keys.qformer import BERT_KEYS, QUERY_TWIN, TEXT, plain_bert
from lightning_mllm.weights.files import TensorFiles
from lightning_mllm.weights.hub import tensors_at


@dataclass(frozen=True, kw_only=True)
class QFormerConnector(QFormerSizes):
    """A Q-Former: fresh, or with what BERT knows.

    Raises:
        ValueError: Sizes that do not go together; on use, weights that cannot be had or are no BERT of this vocabulary.
    """

    bert: str = ""
    """What it starts from: a folder in the layout of transformers or a name on the hub (`bert-base-uncased`). The
    queries' feed-forwards start as copies of the text's; queries, cross-attention and new words are fresh."""

    @property
    def fresh(self) -> Sequence[str]:
        """What BERT has not."""
        return ("queries", "layers.*.cross_attention.*")

    def build(self) -> QFormer:
        assert self.in_width > 0, self
        return QFormer(self)

    def pretrained(self) -> Iterator[tuple[str, Tensor]] | None:
        return self._from_bert() if self.bert else None

    def _from_bert(self) -> Iterator[tuple[str, Tensor]]:
        files = TensorFiles(tensors_at(self.bert, "qformer.bert"))
        known = set(self._names())
        for name in files:
            found = BERT_KEYS.ours(plain_bert(name))
            if found is None:
                continue
            (ours,), tensor = found.ours, files[name]
            if ours == "words.weight" and not 0 <= self.vocab - len(tensor) <= 1:
                raise ValueError(
                    f"{self.bert}: has {len(tensor)} words, expected {self.vocab}, or one less where [DEC] is added"
                )
            twin = ours.replace(TEXT, QUERY_TWIN) if TEXT in ours else None
            if twin is not None:
                yield twin, tensor
            if ours in known or not self._is_of_text(ours):
                yield ours, tensor

    def _names(self) -> list[str]:
        with torch.device("meta"):
            return list(self.build().state_dict())

    @staticmethod
    def _is_of_text(name: str) -> bool:
        return TEXT in name or name.startswith(("words.", "positions."))

    def resized(self, name: str, tensor: Tensor, shape: Sequence[int]) -> Tensor | None:
        """BERT's words and one more."""
        if name != "words.weight" or tensor.ndim != 2 or tuple(shape) != (len(tensor) + 1, tensor.shape[1]):
            return None
        new = torch.randn(1, tensor.shape[1], generator=torch.Generator().manual_seed(len(tensor))) * STD
        return torch.cat([tensor, new.to(tensor.dtype)])

    def blocks(self, module: nn.Module) -> list[nn.Module]:
        assert isinstance(module, QFormer)
        return list(module.layers)


TINY_QFORMER = QFormerConnector(
    queries=4, width=32, layers=3, heads=2, feedforward=48, vocab=260, positions=128, dropout=0.0
)
"""For the `tiny()` of an architecture; bytes as tokens."""
