"""CogVLM (Wang et al. 2023, arXiv 2311.03079): a language model that gets a second set of weights for images.

The idea: the vectors of an image are foreign words to a frozen language model that they are put before (BLIP-2, LLaVA's
first stage). Here every block has a visual expert beside its own QKV, output and feed-forward, started as their copy,
that only image tokens go through; all tokens attend together. A text meets no expert, so the language model keeps what
it knows.

    images u8[N,3,H,W] --vision--> f[N,V,Dv] --connector--> f[N,V,D] --image_boundary--> begin, V, end f[N,V+2,D] -.
    tokens i[B,T] --embedding--> f[B,T,D] ------------------ slots of begin, image and end overwritten
                                               |
                      .------------------------+------------------------.
                 text, end: QKV                     begin, image: QKV of the expert      |
                      '----- causal attention among all tokens ---------'                |  every block of language
                 text, end: output, feed-forward    begin, image: those of the expert    |
                      '------------------------+------------------------'
                                               |
                         head at supervised tokens -> cross-entropy

All vectors of an image have one position.

Legend: B rows, T tokens, N images, V vectors an image, Dv and D widths of tower and language model.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_mllm.connectors.image_boundary import ImageBoundary
from lightning_mllm.contracts import Batch, Output
from lightning_mllm.language.lm_loss import lm_output
from lightning_mllm.language.slots import VisualVectors, fill_slots
from lightning_mllm.language.visual_expert import unused_names
from lightning_mllm.nets.base import VisionLanguageNet


class CogVLMNet(VisionLanguageNet):
    """A vision encoder, an adapter, boundary vectors and a language model with visual experts.

    Args:
        vision: u8[N, 3, H, W] -> f[N, V, Dv].
        connector: f[N, V, Dv] -> f[N, V, D].
        image_boundary: f[N, V, D] -> kind of slot -> f[n, D].
        language: Of transformers, with visual experts (`language/visual_expert.py`).
    """

    def __init__(
        self, vision: nn.Module, connector: nn.Module, image_boundary: ImageBoundary, language: PreTrainedModel
    ) -> None:
        super().__init__()
        self.vision = vision
        self.connector = connector
        self.image_boundary = image_boundary
        self.language = language

    def encode_images(self, batch: Batch) -> VisualVectors:
        """The vectors of each image, its begin and its end."""
        # A frozen tower may speak 16 bits while the adapter learns in 32.
        visual = self.vision(batch.images).to(next(self.connector.parameters()).dtype)
        return self.image_boundary(self.connector(visual).flatten(0, 1), views=len(visual))

    def merge_visual_embeddings(self, batch: Batch, visual: VisualVectors) -> Float[Tensor, "B T D"]:
        return fill_slots(self.language.get_input_embeddings()(batch.tokens), batch, visual)

    def forward(self, batch: Batch) -> Output:
        """The loss of the next token, over supervised tokens."""
        visual = self.encode_images(batch)
        embeds = self.merge_visual_embeddings(batch, visual)
        return lm_output(self.language, embeds, batch)

    def unused_parameters(self) -> set[str]:
        return {f"language.{name}" for name in unused_names(self.language)}
