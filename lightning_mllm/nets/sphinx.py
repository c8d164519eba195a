"""SPHINX (Lin et al. 2023, arXiv 2311.07575): mixed weights, mixed tasks, mixed embeddings, sub-images.

The idea: towers that learned differently see different things, so a language model is shown all of them at once; it is
trained with the projections from the first stage on, beside text alone so that it stays able to talk.

    images u8[N,3,H,W] --vision--> groups (f[N,V1,E1], f[N,V2,E2]) --connector--> f[N,V,D]
                                                             --image_boundary--> begin, V, end -.
    tokens i[B,T] ---------------embedding--> f[B,T,D] ---------- slots of every view overwritten
                                                                  |
                                             language, causal in each segment -> hidden f[B,T,D]
                                                                  |
                                       head before supervised tokens, the first of which `end` predicts -> cross-entropy

Legend: B rows, T tokens, I images, N views (of each image a global one, then its tiles), V vectors, E and D widths.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_mllm.connectors.image_boundary import ImageBoundary
from lightning_mllm.connectors.mixed import MixedProjection
from lightning_mllm.contracts import Batch, Output
from lightning_mllm.language.lm_loss import lm_output
from lightning_mllm.language.slots import VisualVectors, fill_slots
from lightning_mllm.nets.base import VisionLanguageNet


class SphinxNet(VisionLanguageNet):
    """Mixed towers, a projection for each group of them, boundary vectors and a causal language model.

    Args:
        vision: u8[N, 3, H, W] -> f[N, V_g, E_g] of each group.
        connector: Groups -> f[N, V, D], and of the views of each image f[I, V, D].
        image_boundary: Adds the vectors before and after those of a view.
        language: Of transformers.
        views: Of an image: 1, or the global one and its tiles.
    """

    def __init__(
        self,
        vision: nn.Module,
        connector: MixedProjection,
        image_boundary: ImageBoundary,
        language: PreTrainedModel,
        views: int,
    ) -> None:
        super().__init__()
        self.vision = vision
        self.connector = connector
        self.image_boundary = image_boundary
        self.language = language
        self.views = views

    def encode_images(self, batch: Batch) -> VisualVectors:
        """The vectors, begin and end of all views of each image (of a blank image: of its only view)."""
        visual = self.connector.by_image(self.vision(batch.images), self.views)
        return self.image_boundary(visual.flatten(0, 1), views=len(batch.images))

    def merge_visual_embeddings(self, batch: Batch, visual: VisualVectors) -> Float[Tensor, "B T D"]:
        return fill_slots(self.language.get_input_embeddings()(batch.tokens), batch, visual)

    def forward(self, batch: Batch) -> Output:
        """The loss of the next token, over supervised tokens."""
        visual = self.encode_images(batch)
        embeds = self.merge_visual_embeddings(batch, visual)
        return lm_output(self.language, embeds, batch)
