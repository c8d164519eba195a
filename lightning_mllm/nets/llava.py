"""LLaVA (Liu et al. 2023, arXiv 2304.08485) and LLaVA-1.5 (Liu et al. 2024, arXiv 2310.03744).

The idea: a frozen CLIP already sees and a language model already talks, so a linear layer (1.5: two) between them is
enough; it is aligned on captions first, then trained with the language model on conversations about images.

    images u8[N,3,H,W] --vision--> f[N,V,Dv] --connector--> visual f[N,V,D] -.
    tokens i[B,T] -----------------embedding--> f[B,T,D] --- IMAGE slots overwritten by visual
                                                                  |
                                             language, causal in each segment -> hidden f[B,T,D]
                                                                  |
                                              head at supervised tokens -> cross-entropy

Legend: B rows, T tokens, N images, V vectors an image, Dv and D widths of tower and language model.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_mllm.contracts import Batch, Output, TokenKind
from lightning_mllm.language.lm_loss import lm_output
from lightning_mllm.language.slots import VisualVectors, fill_slots
from lightning_mllm.nets.base import VisionLanguageNet


class LlavaNet(VisionLanguageNet):
    """A vision encoder, a connector and a causal language model.

    Args:
        vision: u8[N, 3, H, W] -> f[N, V, Dv].
        connector: f[N, V, Dv] -> f[N, V, D].
        language: Of transformers.
    """

    def __init__(self, vision: nn.Module, connector: nn.Module, language: PreTrainedModel) -> None:
        super().__init__()
        self.vision = vision
        self.connector = connector
        self.language = language

    def encode_images(self, batch: Batch) -> VisualVectors:
        return {TokenKind.IMAGE: self.connector(self.vision(batch.images)).flatten(0, 1)}

    def merge_visual_embeddings(self, batch: Batch, visual: VisualVectors) -> Float[Tensor, "B T D"]:
        return fill_slots(self.language.get_input_embeddings()(batch.tokens), batch, visual)

    def forward(self, batch: Batch) -> Output:
        """The loss of the next token, over supervised tokens."""
        visual = self.encode_images(batch)
        embeds = self.merge_visual_embeddings(batch, visual)
        return lm_output(self.language, embeds, batch)
