"""The Querying Transformer: a few learned queries fetch from an image what a language model is to be told.

    queries f[1,Q,D] --.                            .-- queries f[N,Q,D] -> language model, contrast, matching
    tokens  i[B,L] -> words + positions --> norm --> blocks
                                                    '-- text f[B,L,D]   -> contrast, next word
    visual  f[N,V,E] ------------------ cross-attention of the queries, in every `cross_every`-th block

    method               input              attention mask
    encode_images        queries            queries attend to queries and to the image
    encode_text          text               text attends to text; `encode_first_token`: as far as [CLS] needs it
    encode_multimodal    queries and text   all attend to all, queries also to the image
    decode_text          text               a token attends to the queries' keys and values and to text up to itself
    encode_instructed    queries and text   as `encode_multimodal`; only the queries are returned

BLIP-2 (arXiv 2301.12597, sec. 3.1-3.2, fig. 2) and InstructBLIP (arXiv 2305.06500, sec. 2.3).

Legend: N images, B rows of text, L tokens a row, Q queries, D width, V visual vectors, E their width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lightning_mllm.connectors.qformer_layers import KeysValues, QFormerLayer, Rows, Shown, Wanted

STD = 0.02
"""Of BERT's initial values (arXiv 1810.04805, `initializer_range`), and of the queries' and new rows'."""


@dataclass(frozen=True)
class PastKeyValues:
    """What each block looked at in `encode_images_with_cache`."""

    layers: tuple[KeysValues, ...]
    """The queries' keys and values in self-attention, for `decode_text`."""
    images: tuple[KeysValues | None, ...]
    """The images' in cross-attention, for `encode_instructed`; None of a block that has none."""


Images = Float[Tensor, "N V E"] | tuple[KeysValues | None, ...]
"""Visual vectors, or what each block has made of them: `PastKeyValues.images`."""


@dataclass(frozen=True, kw_only=True)
class QFormerSizes:
    """What a Q-Former is built from.

    Raises:
        ValueError: Sizes that do not go together.
    """

    queries: int = 32
    """Q."""
    width: int = 768
    """D."""
    layers: int = 12
    heads: int = 12
    feedforward: int = 3072
    cross_every: int = 2
    """Blocks 0, `cross_every`, ... attend to the image."""
    vocab: int = 30523
    """BERT's words and `[DEC]`, which opens a text that is to be written."""
    positions: int = 512
    text: Literal["none", "instruction", "full"] = "none"
    """Whether there is text: none at all, only as an instruction to the queries, or text that is itself read out."""
    dropout: float = 0.1
    eps: float = 1e-12
    std: float = STD
    """Of fresh values: BERT's, under which a much narrower Q-Former starts all but deaf (1 / sqrt(width) serves it)."""
    in_width: int = 0
    """E; filled in by the architecture."""

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"qformer.heads: found {self.heads}, expected a divisor of the width {self.width}")
        for name in ("queries", "layers", "cross_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"qformer.{name}: found {getattr(self, name)}, expected at least 1")


class QFormer(nn.Module):
    """Queries over an image, and text beside them; see the spec for the sizes.

    Rows of `real` need at least one true place each. The tokens of other places are not looked at.
    """

    def __init__(self, spec: QFormerSizes) -> None:
        super().__init__()
        self.text = spec.text
        self.queries = nn.Parameter(torch.empty(1, spec.queries, spec.width))
        self.words = nn.Embedding(spec.vocab, spec.width) if spec.text != "none" else None
        self.positions = nn.Embedding(spec.positions, spec.width) if spec.text != "none" else None
        self.norm = nn.LayerNorm(spec.width, eps=spec.eps)
        self.dropout = nn.Dropout(spec.dropout)
        last = spec.layers - 1
        self.layers = nn.ModuleList(
            QFormerLayer(
                width=spec.width,
                heads=spec.heads,
                inner=spec.feedforward,
                dropout=spec.dropout,
                eps=spec.eps,
                visual_width=spec.in_width if i % spec.cross_every == 0 else 0,
                # Of an instruction nothing comes out, so the last block has nothing to write it with.
                text=spec.text == "full" or (spec.text == "instruction" and i < last),
            )
            for i in range(spec.layers)
        )
        nn.init.normal_(self.queries, std=spec.std)
        self.apply(partial(_as_bert_starts, std=spec.std))

    def encode_images(self, visual: Float[Tensor, "N V E"]) -> Float[Tensor, "N Q D"]:
        """What the queries fetch from each image."""
        rows, x = Rows(len(visual), self.queries.shape[1]), self._embed_queries(len(visual))
        for i, layer in enumerate(self.layers):
            x, _, _ = layer(x, rows, self._shown([(visual, 1)], i))
        return rows.padded(x)

    def encode_images_with_cache(self, visual: Float[Tensor, "N V E"]) -> tuple[Float[Tensor, "N Q D"], PastKeyValues]:
        """As `encode_images`, and the keys and values for other passes over the same images."""
        rows = Rows(len(visual), self.queries.shape[1])
        x, kept, images = self._embed_queries(len(visual)), [], []
        for i, layer in enumerate(self.layers):
            x, keys_values, looked = layer(x, rows, self._shown([(visual, 1)], i))
            kept.append(keys_values)
            images.append(looked)
        return rows.padded(x), PastKeyValues(tuple(kept), tuple(images))

    def encode_text(self, tokens: Int[Tensor, "B L"], real: Bool[Tensor, "B L"]) -> Float[Tensor, "B L D"]:
        """What the text says by itself; neither queries nor cross-attention take part."""
        rows = Rows.of(real, 0)
        return rows.padded(self._read(tokens, real, rows, None))

    def encode_first_token(self, tokens: Int[Tensor, "B L"], real: Bool[Tensor, "B L"]) -> Float[Tensor, "B D"]:
        """The first token ([CLS]) of `encode_text`, without the work on what comes out of the others."""
        rows = Rows.of(real, 0)
        return self._read(tokens, real, rows, rows.first_tokens())

    def encode_multimodal(
        self, visual: Float[Tensor, "B V E"], tokens: Int[Tensor, "B L"], real: Bool[Tensor, "B L"]
    ) -> Float[Tensor, "B S D"]:
        """Queries and text that see one another: S = Q + L, the queries first."""
        return self.masked(
            visual, tokens, real, self._all_see(real).expand(-1, self.queries.shape[1] + real.shape[1], -1)
        )

    def encode_instructed(
        self,
        visual: Float[Tensor, "B V E"] | Sequence[tuple[Images, Int[Tensor, " R"] | int]],
        tokens: Int[Tensor, "B L"],
        real: Bool[Tensor, "B L"],
    ) -> Float[Tensor, "B Q D"]:
        """The queries of `encode_multimodal`, without the work on what comes out of the text.

        Args:
            visual: Of each row; or images that several rows look at, each once: they and their rows as in `Shown`, in
                the order of the rows.
        """
        self._needs("instruction", "full")
        rows, last = Rows.of(real, self.queries.shape[1]), len(self.layers) - 1
        x, visible = self._embed(tokens, real, rows), self._all_see(real)[:, None]
        shown = [(visual, 1)] if isinstance(visual, Tensor) else visual
        for i, layer in enumerate(self.layers):
            x, _, _ = layer(x, rows, self._shown(shown, i), visible, wanted=rows.only_queries() if i == last else None)
        return x.unflatten(0, (len(tokens), -1))

    def decode_text(
        self, tokens: Int[Tensor, "B L"], real: Bool[Tensor, "B L"], past_key_values: PastKeyValues
    ) -> Float[Tensor, "B L D"]:
        """What follows each token, given the queries that `past_key_values` comes from and the tokens up to itself."""
        self._needs("full")
        queries, length, rows = self.queries.shape[1], tokens.shape[1], Rows.of(real, 0)
        past = torch.ones(length, length, dtype=torch.bool, device=tokens.device).tril() & real[:, None]
        visible = torch.cat([past.new_ones(len(tokens), length, queries), past], dim=2)[:, None]
        x = self._embed(tokens, real, rows)
        for layer, before in zip(self.layers, past_key_values.layers, strict=True):
            x, _, _ = layer(x, rows, visible=visible, before=before)
        return rows.padded(x)

    def masked(
        self,
        visual: Float[Tensor, "B V E"],
        tokens: Int[Tensor, "B L"],
        real: Bool[Tensor, "B L"],
        visible: Bool[Tensor, "B S S"],
    ) -> Float[Tensor, "B S D"]:
        """Queries and text in one pass, row s seeing column t where `visible` says so (fig. 2, right)."""
        self._needs("full")
        rows = Rows.of(real, self.queries.shape[1])
        x = self._embed(tokens, real, rows)
        for i, layer in enumerate(self.layers):
            x, _, _ = layer(x, rows, self._shown([(visual, 1)], i), visible[:, None])
        return rows.padded(x)

    def _read(
        self, tokens: Int[Tensor, "B L"], real: Bool[Tensor, "B L"], rows: Rows, wanted: Wanted | None
    ) -> Float[Tensor, "t D"]:
        """Text by itself; `wanted` is what comes out of the last block."""
        self._needs("full")
        x, last = self._embed(tokens, real, rows), len(self.layers) - 1
        for i, layer in enumerate(self.layers):
            x, _, _ = layer(x, rows, visible=real[:, None, None], wanted=wanted if i == last else None)
        return x

    def _shown(self, shown: Sequence[tuple[Images, Int[Tensor, " R"] | int]], block: int) -> list[Shown]:
        """What a block is shown; nothing, if it does not look."""
        found = [(self._cast(each) if isinstance(each, Tensor) else each[block], rows) for each, rows in shown]
        return [Shown(each, rows) for each, rows in found if each is not None]

    def _embed(self, tokens: Int[Tensor, "B L"], real: Bool[Tensor, "B L"], rows: Rows) -> Float[Tensor, "T D"]:
        """The rows' text, and queries where they have any, before the first block."""
        assert self.words is not None and self.positions is not None
        length, most = tokens.shape[1], self.positions.num_embeddings
        assert length <= most, f"{length} tokens of text, expected at most {most}"
        places = torch.arange(length, device=tokens.device).repeat(len(tokens))
        read = tokens.masked_fill(~real, 0).flatten()
        if rows.tokens is not None:
            read, places = read[rows.tokens], places[rows.tokens]
        text = self.words(read) + self.positions(places)
        if rows.queries:
            text = torch.cat([self.queries.expand(rows.count, -1, -1).flatten(0, 1).to(text.dtype), text])
        return self.dropout(self.norm(text))

    def _embed_queries(self, count: int) -> Float[Tensor, "T D"]:
        return self.dropout(self.norm(self.queries).expand(count, -1, -1)).flatten(0, 1)

    def _all_see(self, real: Bool[Tensor, "B L"]) -> Bool[Tensor, "B 1 S"]:
        return torch.cat([real.new_ones(len(real), self.queries.shape[1]), real], dim=1)[:, None]

    def _cast(self, visual: Tensor) -> Tensor:
        """A frozen tower may speak 16 bits while the queries learn in 32."""
        return visual.to(self.queries.dtype)

    def _needs(self, *kinds: str) -> None:
        assert self.text in kinds, f"a Q-Former with text {self.text!r}, expected {' or '.join(kinds)}"


def _as_bert_starts(module: nn.Module, std: float) -> None:
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=std)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
