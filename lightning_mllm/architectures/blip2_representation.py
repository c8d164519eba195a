"""BLIP-2's first stage (Li et al. 2023, arXiv 2301.12597, sec. 3.2): what of an image can be said in words.

The idea: beside a frozen image encoder, a few learned queries fetch from an image what its text is about. Three losses
on pairs of an image and a text teach them, through three views of one Q-Former.

    images u8[B,3,H,W] --vision--> --ln_vision--> visual f[B,V,E]
                                                     |
      queries            --see-->  f[B,Q,D] ---------'---- the nearest query, to the [CLS] of each text  ITC --.
      queries and text   --join--> f[B,Q,D]                do they belong together?                      ITM --+--> loss
      [DEC] text         --decode--> f[B,L,D]              after the queries' keys and values: the next token    ITG --'

Legend: B pairs of this rank, A of all ranks, V vectors of width E an image, Q queries of width D, L tokens of a text.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lightning_mllm.connectors.alignment import (
    AlignmentConnector,
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
from lightning_mllm.connectors.norm import LayerNormConnector
from lightning_mllm.connectors.qformer import TINY_QFORMER, PastKeyValues, QFormer, QFormerConnector
from lightning_mllm.contracts import Batch, Output, ParamGroup, Sample, Stage, Term, Turn
from lightning_mllm.evaluation.generation import Decoding
from lightning_mllm.language.tokenizer import WRITE, reader_tokenizer
from lightning_mllm.processing.chat import load_template
from lightning_mllm.processing.images import ImagePolicy, fitting
from lightning_mllm.processing.processor import Processor
from lightning_mllm.training.module import MultimodalModule
from lightning_mllm.training.sharding import gather, rank_and_world
from lightning_mllm.training.stage import StageSettings
from lightning_mllm.vision.eva import EvaTower
from lightning_mllm.vision.tower import TINY_TOWER, OpenClipTower


class Blip2Representation(MultimodalModule):
    """A Q-Former beside a frozen image encoder, taught by contrast, matching and captions.

    The negatives of a pair are the others of its micro-batch on all ranks, so a micro-batch is here a published number
    and not one of the hardware.

    Args:
        vision: The image encoder; its class token is past_key_values.
        qformer: Sizes of the Q-Former and the BERT it starts from; its text stream is always built.
        tokenizer: Of the Q-Former: a folder or a name on the hub; "" takes bytes as tokens.
        ln_vision: The norm behind the encoder; its eps is 1e-5 in the released code, 1e-6 in transformers.
        heads: Width of the space in which images and texts are compared.
        max_length: Tokens of a text (released configurations: 32).
        retrieval_length: Tokens of a text that is searched for or found; None for `max_length` (released blip2.py,
            `compute_sim_matrix`: 35, also where 32 were learned).
        image: How images are fitted into the encoder's square; None squashes them, as BLIP-2 does.
        label_smoothing: Of contrast and captions (released code: 0.1).
        soft_targets: Whether all pairs of one image are right answers and none of them a negative, for data in which an
            image has several texts (released code: where the data name images, as COCO retrieval does).
        negatives: Where matching draws its hard negatives: among the pairs of all ranks (released code) or of its own
            (ALBEF, arXiv 2107.07651, whose mining the paper takes).
        loss_weights: What each of the three losses is multiplied by.
        rerank: How many of the nearest are ranked anew by matching in retrieval (released configuration: 128); 0: none.
        stage: What to train; None for use only.
        decoding: Task -> how its answers are generated.

    Raises:
        ValueError: The parts do not fit one another, or one of them is not there.
    """

    read_by_scoring: ClassVar[tuple[str, ...]] = ("decoding", "rerank", "retrieval_length")
    stages: ClassVar[dict[str, Stage]] = {
        "representation": Stage(
            train={"ln_vision.*": ParamGroup(), "qformer.*": ParamGroup(), "heads.*": ParamGroup()}
        ),
        "retrieval": Stage(
            train={
                "vision.*": ParamGroup(),
                "ln_vision.*": ParamGroup(),
                "qformer.*": ParamGroup(),
                "heads.*": ParamGroup(),
            }
        ),
    }

    vision: nn.Module
    ln_vision: nn.LayerNorm
    qformer: QFormer
    heads: AlignmentHeads

    def __init__(
        self,
        vision: EvaTower | OpenClipTower,
        qformer: QFormerConnector,
        tokenizer: str = "bert-base-uncased",
        ln_vision: LayerNormConnector = LayerNormConnector(),
        heads: AlignmentConnector = AlignmentConnector(),
        max_length: int = 32,
        retrieval_length: int | None = None,
        image: ImagePolicy | None = None,
        label_smoothing: float = 0.1,
        soft_targets: bool = False,
        negatives: Literal["all", "rank"] = "all",
        loss_weights: LossWeights = LossWeights(),
        rerank: int = 0,
        stage: StageSettings | None = None,
        decoding: dict[str, Decoding] | None = None,
    ) -> None:
        image = fitting(image, size=vision.image_size, mean=vision.mean, fit="squash")
        reader = reader_tokenizer(tokenizer, qformer.vocab)
        chat = load_template("reader", reader)
        processor = Processor(reader, chat, image, 0, max_length)
        parts = {
            "vision": vision,
            "ln_vision": replace(ln_vision, in_width=vision.width),
            "qformer": replace(qformer, text="full", in_width=vision.width),
            "heads": replace(heads, in_width=qformer.width, vocab=qformer.vocab),
        }
        super().__init__(parts=parts, processor=processor, stage=stage, decoding=decoding)
        self.label_smoothing, self.soft_targets, self.rerank = label_smoothing, soft_targets, rerank
        self.negatives, self.loss_weights = negatives, loss_weights
        self.search = Processor(reader, chat, image, 0, retrieval_length or max_length)
        """Of texts that are searched for or found."""
        self.write_id: int = reader.get_vocab()[WRITE]

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
                "matching": Term(losses=self.matching(images_to_texts, texts_to_images, pairs), weight=weight.matching),
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
        missing = self.processor.max_length - batch.tokens.shape[1] if world > 1 else 0
        count, learned = len(batch.ids), batch.layout.supervised
        if self.soft_targets:
            own = batch.image_ids.unsqueeze(1) == gather(batch.image_ids, gradient=False)
        else:
            own = torch.zeros(count, count * world, dtype=torch.bool, device=batch.tokens.device)
            own[:, rank * count : (rank + 1) * count].fill_diagonal_(True)
        return Pairs(
            visual=self.encode(batch),
            tokens=F.pad(batch.tokens, (0, missing), value=self.processor.pad_id),
            real=F.pad(batch.segments, (0, missing)) > 0,
            own=own,
            supervised=replace(learned, hidden=learned.hidden + learned.rows * missing),
            files=batch.num_files,
        )

    def encode(self, batch: Batch) -> Float[Tensor, "N V E"]:
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
        return F.normalize(self.heads.text_proj(self.qformer.encode_text(tokens, real)[:, 0]), dim=-1)

    def contrast(self, images_to_texts: Tensor, texts_to_images: Tensor, pairs: Pairs) -> Float[Tensor, " B"]:
        """ITC of each pair: the image's texts among all, the text's images among all."""
        targets = targets_of(pairs.own, self.label_smoothing)
        return (contrastive(images_to_texts, targets) + contrastive(texts_to_images, targets)) / 2

    def matching(self, images_to_texts: Tensor, texts_to_images: Tensor, pairs: Pairs) -> Float[Tensor, " B"]:
        """ITM of each pair: the mean over it, its text with a hard negative image, its image with a hard negative
        text."""
        own, visual, tokens, real = pairs.own, pairs.visual, pairs.tokens, pairs.real
        if self.negatives == "all":
            visual = gather(visual, gradient=True)
            tokens, real = (gather(each, gradient=False) for each in (tokens, real))
        else:
            first = rank_and_world()[0] * len(tokens)
            mine = slice(first, first + len(tokens))
            own, images_to_texts, texts_to_images = (each[:, mine] for each in (own, images_to_texts, texts_to_images))
        if pairs.files < 2:
            # With two of its own a rank need not ask the device whether there are others.
            check_negatives(own)
        other_image, other_text = hard_negatives(texts_to_images, own), hard_negatives(images_to_texts, own)
        logits = self.match_logits(
            torch.cat([pairs.visual, visual[other_image], pairs.visual]),
            torch.cat([pairs.tokens, pairs.tokens, tokens[other_text]]),
            torch.cat([pairs.real, pairs.real, real[other_text]]),
        )
        return apart_or_together(logits)

    def match_logits(
        self, visual: Float[Tensor, "B V E"], tokens: Int[Tensor, "B L"], real: Bool[Tensor, "B L"]
    ) -> Float[Tensor, "B 2"]:
        """Apart (0) or together (1), the mean of what each query says."""
        return self.heads.itm_head(self.qformer.encode_instructed(visual, tokens, real)).mean(1)

    def captioning(self, pairs: Pairs, past_key_values: PastKeyValues) -> tuple[Float[Tensor, " B"], Int[Tensor, " B"]]:
        """ITG of each pair, summed over its tokens, and their number.

        The next token, after what is past_key_values of the queries; [DEC] stands where [CLS] did.
        """
        tokens = pairs.tokens.clone()
        tokens[:, 0] = self.write_id
        hidden, learned = self.qformer.decode_text(tokens, pairs.real, past_key_values), pairs.supervised
        logits = self.word_logits(hidden.flatten(0, 1).index_select(0, learned.hidden))
        return summed_by_text(logits, learned, self.label_smoothing), learned.counts

    def word_logits(self, hidden: Float[Tensor, "... D"]) -> Float[Tensor, "... W"]:
        """Through the head that shares the Q-Former's table of words."""
        assert self.qformer.words is not None
        return self.heads.words(hidden, self.qformer.words.weight)

    def embed_images(self, batch: Batch) -> dict[str, Tensor]:
        """What retrieval keeps of images: a unit vector of each query, and what matching looks at."""
        visual = self.encode(batch)
        side = {"vectors": F.normalize(self.heads.vision_proj(self.qformer.encode_images(visual)), dim=-1)}
        return side | ({"visual": visual} if self.rerank else {})

    def embed_texts(self, texts: list[str]) -> dict[str, Tensor]:
        """What retrieval keeps of texts: their unit vectors, and the tokens that matching reads."""
        rows = [
            self.search.encode(Sample(id=f"text {i}", turns=(Turn(role="assistant", text=text),)))
            for i, text in enumerate(texts)
        ]
        batch = self.search.collate(rows).to(self.device)
        missing = (0, self.search.max_length - batch.tokens.shape[1])
        tokens, real = F.pad(batch.tokens, missing), F.pad(batch.segments, missing) > 0
        return {"vectors": self.text_vectors(tokens, real), "tokens": tokens, "real": real}

    def similarity(self, images: dict[str, Tensor], texts: dict[str, Tensor]) -> Float[Tensor, "N M"]:
        return nearest_query(images["vectors"], texts["vectors"])

    def match(self, images: dict[str, Tensor], texts: dict[str, Tensor]) -> Float[Tensor, " K"]:
        """The logit of belonging together (released code: added to the similarity)."""
        return self.match_logits(images["visual"], texts["tokens"], texts["real"])[:, 1]

    def pair_logits(self, batch: Batch) -> Float[Tensor, "B 3"]:
        """Of each image and its text: their similarity, and the logits of being apart and of belonging together."""
        pairs = self.pairs(batch)
        images = F.normalize(self.heads.vision_proj(self.qformer.encode_images(pairs.visual)), dim=-1)
        nearest = nearest_query(images, self.text_vectors(pairs.tokens, pairs.real)).diagonal()
        return torch.cat([nearest[:, None], self.match_logits(pairs.visual, pairs.tokens, pairs.real)], 1)

    def generate(self, batch: Batch, decoding: Decoding) -> list[list[int]]:
        """Captions, greedily: [DEC], then what follows.

        Raises:
            ValueError: Beams or sampling are asked for.
        """
        if decoding.num_beams > 1 or decoding.top_p is not None:
            raise ValueError(f"decoding: found {decoding.num_beams} beams, expected greedy captions of this stage")
        _, past_key_values = self.qformer.encode_images_with_cache(self.encode(batch))
        written = torch.full((len(batch.ids), 1), self.write_id, device=batch.tokens.device)
        for _ in range(decoding.max_new_tokens):
            hidden = self.qformer.decode_text(written, torch.ones_like(written, dtype=torch.bool), past_key_values)
            written = torch.cat([written, self.word_logits(hidden[:, -1]).argmax(-1, keepdim=True)], 1)
        ends = set(self.processor.eos_token_ids)
        rows = written[:, 1:].tolist()
        return [row[: next((i for i, token in enumerate(row) if token in ends), len(row))] for row in rows]

    @classmethod
    def tiny(cls, **settings: Any) -> Self:
        """A net of random values that needs no file: 16 px images, 4 queries, bytes as tokens."""
        return cls(**{**TINY, **settings})


TINY: dict[str, Any] = {
    "vision": TINY_TOWER,
    "qformer": TINY_QFORMER,
    "tokenizer": "",
    "heads": AlignmentConnector(width=16),
    "max_length": 64,
}
