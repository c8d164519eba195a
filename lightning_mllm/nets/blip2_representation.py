"""BLIP-2's first stage (Li et al. 2023, arXiv 2301.12597, sec. 3.2): what of an image can be said in words.

The idea: beside a frozen image encoder, a few learned queries fetch from an image what its text is about. Three losses
on pairs of an image and a text teach them, through three views of one Q-Former.

    images u8[B,3,H,W] --vision--> --ln_vision--> visual f[B,V,E]
                                                     |
      queries            --encode--> f[B,Q,D] -------'---- the nearest query, to the [CLS] of each text  ITC --.
      queries and text   --encode--> f[B,Q,D]              do they belong together?                      ITM --+--> loss
      [DEC] text         --decode--> f[B,L,D]              after the queries' keys and values: the next token    ITG --'

The image is encoded once; so are the keys and values that the queries look up in it, for ITC and for ITM's three rows a
pair.

Legend: B pairs of this rank, A of all ranks, V vectors of width E an image, Q queries of width D, L tokens of a text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lightning_mllm.collectives import gather, rank_and_world
from lightning_mllm.connectors.alignment import (
    AlignmentHeads,
    LossWeights,
    Pairs,
    apart_or_together,
    check_negatives,
    contrastive,
    hard_negatives,
    nearest_query,
    summed_by_text,
    targets_of,
)
from lightning_mllm.connectors.qformer import Images, PastKeyValues, QFormer
from lightning_mllm.contracts import Batch, Output, Term
from lightning_mllm.language.decoding import AnswerEnd, Decoding
from lightning_mllm.nets.base import Net


class Blip2RepresentationNet(Net):
    """An image encoder, the norm behind it, a Q-Former and the heads of three losses.

    Args:
        vision: u8[N, 3, H, W] -> f[N, V, E].
        ln_vision: Its dtype is that of what the Q-Former attends to.
        qformer: With its whole text stream.
        heads: Of contrast, matching and captions.
        max_length: Tokens of a text where ranks exchange texts, which must have one length then.
        retrieval_length: Tokens of a text that is searched for or found.
        pad: The token that fills a text up to there.
        decoder_start: [DEC], which stands in place of [CLS] where a text is to be written.
        label_smoothing, soft_targets, negatives, loss_weights, rerank: As in `Blip2Representation`.
    """

    entries = ("generate", "embed_images", "embed_texts", "match", "pair_logits")

    def __init__(
        self,
        vision: nn.Module,
        ln_vision: nn.LayerNorm,
        qformer: QFormer,
        heads: AlignmentHeads,
        *,
        max_length: int,
        retrieval_length: int,
        pad: int,
        decoder_start: int,
        label_smoothing: float = 0.1,
        soft_targets: bool = False,
        negatives: Literal["all", "rank"] = "all",
        loss_weights: LossWeights = LossWeights(),
        rerank: int = 0,
    ) -> None:
        super().__init__()
        self.vision = vision
        self.ln_vision = ln_vision
        self.qformer = qformer
        self.heads = heads
        self.max_length, self.retrieval_length = max_length, retrieval_length
        self.pad, self.decoder_start = pad, decoder_start
        self.label_smoothing, self.soft_targets = label_smoothing, soft_targets
        self.negatives, self.loss_weights, self.rerank = negatives, loss_weights, rerank

    def forward(self, batch: Batch) -> Output:
        """ITC + ITM + ITG, each times its weight; items of ITC and ITM are pairs, those of ITG tokens."""
        pairs = self.pairs(batch)
        seen, past_key_values = self.qformer.encode_images_with_cache(pairs.visual)
        images_to_texts, texts_to_images = self.similarities(pairs, seen)
        weight = self.loss_weights
        captioning, tokens = self.captioning(pairs, past_key_values)
        return Output(
            terms={
                "contrast": Term(losses=self.contrast(images_to_texts, texts_to_images, pairs), weight=weight.contrast),
                "matching": Term(
                    losses=self.matching(images_to_texts, texts_to_images, pairs, past_key_values),
                    weight=weight.matching,
                ),
                "captioning": Term(losses=captioning, tokens=tokens, weight=weight.captioning),
            }
        )

    def unused_parameters(self) -> set[str]:
        return {f"heads.{name}" for name in self.loss_weights.unused_parameters()}

    def pairs(self, batch: Batch) -> Pairs:
        """What the three losses are about.

        Raises:
            ValueError: A text without an image, or with several.
        """
        if batch.num_images != len(batch.ids):
            raise ValueError(f"found {batch.num_images} images for {len(batch.ids)} texts, expected one each")
        assert batch.image_ids is not None
        rank, world = rank_and_world()
        # Ranks exchange texts, which must have one length then.
        missing = self.max_length - batch.tokens.shape[1] if world > 1 else 0
        count, learned = len(batch.ids), batch.layout.supervised
        if self.soft_targets:
            own = batch.image_ids.unsqueeze(1) == gather(batch.image_ids, gradient=False)
        else:
            own = torch.zeros(count, count * world, dtype=torch.bool, device=batch.tokens.device)
            own[:, rank * count : (rank + 1) * count].fill_diagonal_(True)
        return Pairs(
            visual=self.encode_images(batch),
            tokens=F.pad(batch.tokens, (0, missing), value=self.pad),
            real=F.pad(batch.segments, (0, missing)) > 0,
            own=own,
            supervised=replace(learned, hidden=learned.hidden + learned.samples * missing),
            files=batch.num_files,
        )

    def encode_images(self, batch: Batch) -> Float[Tensor, "N V E"]:
        """What the Q-Former attends to."""
        return self.ln_vision(self.vision(batch.images).to(self.ln_vision.weight.dtype))

    def similarities(
        self, pairs: Pairs, seen: Float[Tensor, "B Q D"]
    ) -> tuple[Float[Tensor, "B A"], Float[Tensor, "B A"]]:
        """Of this rank's images to all texts, and of its texts to all images: by the nearest query, over temperature.

        The other side has no gradient, its own part included (released code).
        """
        images = F.normalize(self.heads.vision_proj(seen), dim=-1)
        texts = self.text_vectors(pairs.tokens, pairs.real)
        all_images, all_texts = (gather(each.detach(), gradient=False) for each in (images, texts))
        return (
            nearest_query(images, all_texts) / self.heads.temperature,
            nearest_query(all_images, texts).T / self.heads.temperature,
        )

    def text_vectors(self, tokens: Int[Tensor, "B L"], real: Bool[Tensor, "B L"]) -> Float[Tensor, "B C"]:
        """Unit vectors of texts, from their first token."""
        return F.normalize(self.heads.text_proj(self.qformer.encode_first_token(tokens, real)), dim=-1)

    def contrast(self, images_to_texts: Tensor, texts_to_images: Tensor, pairs: Pairs) -> Float[Tensor, " B"]:
        """ITC of each pair: the image's texts among all, the text's images among all."""
        targets = targets_of(pairs.own, self.label_smoothing)
        return (contrastive(images_to_texts, targets) + contrastive(texts_to_images, targets)) / 2

    def matching(
        self, images_to_texts: Tensor, texts_to_images: Tensor, pairs: Pairs, past_key_values: PastKeyValues
    ) -> Float[Tensor, " B"]:
        """ITM of each pair: the mean over it, its image with a hard negative text, its text with a hard negative
        image."""
        own, tokens, real = pairs.own, pairs.tokens, pairs.real
        everywhere = self.negatives == "all" and rank_and_world()[1] > 1
        if everywhere:
            tokens, real = (gather(each, gradient=False) for each in (tokens, real))
        else:
            first = rank_and_world()[0] * len(tokens)
            mine = slice(first, first + len(tokens))
            own, images_to_texts, texts_to_images = (each[:, mine] for each in (own, images_to_texts, texts_to_images))
        if pairs.files < 2:
            # With two of its own a rank need not ask the device whether there are others.
            check_negatives(own)
        other_image, other_text = hard_negatives(texts_to_images, own), hard_negatives(images_to_texts, own)
        known: Images = past_key_values.images
        # Other ranks have keys and values of their images; their vectors are what has been gathered, and is smaller.
        others = (gather(pairs.visual, gradient=True)[other_image], 1) if everywhere else (known, other_image)
        logits = self.match_logits(
            [(known, 2), others],
            torch.cat([pairs.tokens, tokens[other_text], pairs.tokens]),
            torch.cat([pairs.real, real[other_text], pairs.real]),
        )
        return apart_or_together(logits)

    def match_logits(
        self,
        visual: Float[Tensor, "B V E"] | Sequence[tuple[Images, Int[Tensor, " R"] | int]],
        tokens: Int[Tensor, "B L"],
        real: Bool[Tensor, "B L"],
    ) -> Float[Tensor, "B 2"]:
        """Apart (0) or together (1), the mean of what each query says; the images as `encode_instructed` takes them."""
        return self.heads.itm_head(self.qformer.encode_instructed(visual, tokens, real)).mean(1)

    def captioning(self, pairs: Pairs, past_key_values: PastKeyValues) -> tuple[Float[Tensor, " B"], Int[Tensor, " B"]]:
        """ITG of each pair, summed over its tokens, and their number.

        The next token, after the cached keys and values of the queries; [DEC] stands where [CLS] did.
        """
        tokens = pairs.tokens.clone()
        tokens[:, 0] = self.decoder_start
        hidden, learned = self.qformer.decode_text(tokens, pairs.real, past_key_values), pairs.supervised
        logits = self.word_logits(hidden.flatten(0, 1).index_select(0, learned.hidden))
        return summed_by_text(logits, learned, self.label_smoothing), learned.counts

    def word_logits(self, hidden: Float[Tensor, "... D"]) -> Float[Tensor, "... W"]:
        """Through the head that shares the Q-Former's table of words."""
        assert self.qformer.words is not None
        return self.heads.words(hidden, self.qformer.words.weight)

    def embed_images(self, batch: Batch) -> dict[str, Tensor]:
        """What retrieval keeps of images: a unit vector of each query, and what matching looks at."""
        visual = self.encode_images(batch)
        side = {"vectors": F.normalize(self.heads.vision_proj(self.qformer.encode_images(visual)), dim=-1)}
        return side | ({"visual": visual} if self.rerank else {})

    def embed_texts(self, tokens: Int[Tensor, "M L"], real: Bool[Tensor, "M L"]) -> dict[str, Tensor]:
        """What retrieval keeps of texts, all of one length: their unit vectors, and the tokens that matching reads."""
        missing = (0, self.retrieval_length - tokens.shape[1])
        tokens, real = F.pad(tokens, missing), F.pad(real, missing)
        return {"vectors": self.text_vectors(tokens, real), "tokens": tokens, "real": real}

    def similarity(self, images: dict[str, Tensor], texts: dict[str, Tensor]) -> Float[Tensor, "N M"]:
        return nearest_query(images["vectors"], texts["vectors"])

    def match(
        self, images: dict[str, Tensor], texts: dict[str, Tensor], image_of: Int[Tensor, " K"]
    ) -> Float[Tensor, " K"]:
        """The logit of text k and image `image_of[k]` belonging together (released code: added to the similarity)."""
        return self.match_logits([(images["visual"], image_of)], texts["tokens"], texts["real"])[:, 1]

    def pair_logits(self, batch: Batch) -> Float[Tensor, "B 3"]:
        """Of each image and its text: their similarity, and the logits of being apart and of belonging together."""
        pairs = self.pairs(batch)
        images = F.normalize(self.heads.vision_proj(self.qformer.encode_images(pairs.visual)), dim=-1)
        nearest = nearest_query(images, self.text_vectors(pairs.tokens, pairs.real)).diagonal()
        return torch.cat([nearest[:, None], self.match_logits(pairs.visual, pairs.tokens, pairs.real)], 1)

    def generate(self, batch: Batch, decoding: Decoding, end: AnswerEnd) -> list[list[int]]:
        """Captions, greedily: [DEC], then what follows.

        Raises:
            ValueError: Beams or sampling are asked for.
        """
        if decoding.num_beams > 1 or decoding.top_p is not None:
            raise ValueError(f"decoding: found {decoding.num_beams} beams, expected greedy captions of this stage")
        _, past_key_values = self.qformer.encode_images_with_cache(self.encode_images(batch))
        written = torch.full((len(batch.ids), 1), self.decoder_start, device=batch.tokens.device)
        for _ in range(decoding.max_new_tokens):
            hidden = self.qformer.decode_text(written, torch.ones_like(written, dtype=torch.bool), past_key_values)
            written = torch.cat([written, self.word_logits(hidden[:, -1]).argmax(-1, keepdim=True)], 1)
        ends = set(end.tokens)
        rows = written[:, 1:].tolist()
        return [row[: next((i for i, token in enumerate(row) if token in ends), len(row))] for row in rows]
