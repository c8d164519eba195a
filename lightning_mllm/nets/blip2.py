"""BLIP-2's second stage (Li et al. 2023, arXiv 2301.12597, sec. 3.3), InstructBLIP (Dai et al. 2023, arXiv 2305.06500).

The idea: the Q-Former of the first stage (`blip2_representation.py`) has learned what of an image can be said; one
linear layer puts that in the words of a frozen language model, in front of its text. In InstructBLIP, and in BLIP-2's
fine-tuning for VQA, the Q-Former reads the instruction beside its queries, so that they fetch what it needs.

    images u8[N,3,H,W] --vision--> --ln_vision--> f[N,V,E]
                                                     |
    queries [, instruction] --qformer--> f[N,Q,D] ---'  --projection--> visual f[N,Q,T] -.
    tokens i[B,L] --embedding--> f[B,L,T] ---------------------- IMAGE slots overwritten by visual
                                                                           |
        decoder (OPT, Vicuna): next token          encoder-decoder (FlanT5): the encoder reads, the decoder answers

Several images of a row (frames of a video) are encoded one by one, each under the same instruction. An image that
several rows show is encoded once; their queries share its keys and values in cross-attention.

Legend: B rows, L tokens, N images, V vectors of width E an image, Q queries of width D, T width of the language model.
"""

from __future__ import annotations

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_mllm.connectors.qformer import QFormer
from lightning_mllm.contracts import IGNORE, Batch, Output, TokenKind
from lightning_mllm.language.lm_loss import lm_output
from lightning_mllm.language.slots import VisualVectors, fill_slots
from lightning_mllm.nets.base import VisionLanguageNet
from lightning_mllm.nets.distinct_images import distinct_images


class Blip2Net(VisionLanguageNet):
    """An image encoder, the norm behind it, a Q-Former, a linear layer and a language model.

    Args:
        vision: u8[N, 3, H, W] -> f[N, V, E].
        ln_vision: Its dtype is that of what the Q-Former attends to.
        qformer: With text, it reads `Batch.query_text`.
        projection: f[N, Q, D] -> f[N, Q, T].
        language: A decoder or an encoder-decoder of transformers.
    """

    def __init__(
        self,
        vision: nn.Module,
        ln_vision: nn.LayerNorm,
        qformer: QFormer,
        projection: nn.Module,
        language: PreTrainedModel,
    ) -> None:
        super().__init__()
        self.vision = vision
        self.ln_vision = ln_vision
        self.qformer = qformer
        self.projection = projection
        self.language = language

    def encode_images(self, batch: Batch) -> VisualVectors:
        distinct = distinct_images(batch)
        images = batch.images if distinct is None else batch.images[distinct.places]
        visual = self.ln_vision(self.vision(images).to(self.ln_vision.weight.dtype))
        if batch.query_text is None:
            queries = self.qformer.encode_images(visual)
            queries = queries if distinct is None else queries.index_select(0, distinct.of_images)
        else:
            shown = [(visual, 1 if distinct is None else distinct.of_images)]
            queries = self.qformer.encode_instructed(shown, *texts_of_images(batch))
        return {TokenKind.IMAGE: self.projection(queries).flatten(0, 1)}

    def merge_visual_embeddings(self, batch: Batch, visual: VisualVectors) -> Float[Tensor, "B L T"]:
        return fill_slots(self.language.get_input_embeddings()(batch.tokens), batch, visual)

    def forward(self, batch: Batch) -> Output:
        """The loss of the next token, over supervised tokens (of an encoder-decoder: over `targets`)."""
        visual = self.encode_images(batch)
        embeds = self.merge_visual_embeddings(batch, visual)
        return lm_output(self.language, embeds, batch)


def texts_of_images(batch: Batch) -> tuple[Int[Tensor, "N P"], Bool[Tensor, "N P"]]:
    """For each image the Q-Former's text of the row that shows it, and where that is no padding."""
    assert batch.query_text is not None and batch.image_rows is not None
    text = batch.query_text.index_select(0, batch.image_rows)
    return text, text != IGNORE
