"""What training, evaluation and inference call of a net, and what nets with a prompted language model share.

    images --encode_images--> visual f[N,V,D] -.
    tokens i[B,T] --embedding--> f[B,T,D] --merge_visual_embeddings--> language -> loss, answers, likelihoods

Legend: B rows, T tokens, N images, V vectors an image, D width of the language model, W words of its vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_mllm.contracts import Batch, Output
from lightning_mllm.language.decoding import AnswerEnd, Decoding
from lightning_mllm.language.lm_loss import head, lm_hidden_states, lm_losses, target_logits
from lightning_mllm.language.slots import VisualVectors
from lightning_mllm.nets.encoded_images import EncodedImages


class Net(nn.Module):
    """A multimodal net. Parameter names are those of freezing patterns, checkpoints and stage weights."""

    entries: ClassVar[tuple[str, ...]] = ("losses", "log_likelihoods", "generate")
    """Methods beside `forward` that use parameters and are called from outside: they gather sharded parameters."""

    def forward(self, batch: Batch) -> Output:
        """The terms of a batch's loss, which are the same for every batch."""
        raise AssertionError(f"{type(self).__name__} has no forward")

    def losses(self, batch: Batch) -> tuple[Float[Tensor, " B"], Int[Tensor, " B"]]:
        """Cross-entropy of each row in nats, float32, summed over its supervised tokens, and their number."""
        raise AssertionError(f"{type(self).__name__} has no losses")

    def log_likelihoods(self, batch: Batch, answered: Sequence[Batch]) -> Float[Tensor, "C B"]:
        """Of answers: minus the loss of each row of each batch in `answered`, which shows the images of `batch`."""
        raise AssertionError(f"{type(self).__name__} has no log_likelihoods")

    def generate(self, batch: Batch, decoding: Decoding, end: AnswerEnd) -> list[list[int]]:
        """The new tokens of each row of a batch of prompts (left-padded), without the end token."""
        raise AssertionError(f"{type(self).__name__} has no generate")

    def unused_parameters(self) -> set[str]:
        """Names of parameters that no loss can reach; a stage that trains them does not wait for their gradients."""
        return set()


class VisionLanguageNet(Net):
    """A net adds its components, one of them `language`, and `encode_images`, `merge_visual_embeddings`, `forward`."""

    entries = (*Net.entries, "logits")

    language: PreTrainedModel

    def encode_images(self, batch: Batch) -> VisualVectors:
        """What the language model is shown of the images."""
        raise AssertionError(f"{type(self).__name__} has no encode_images")

    def merge_visual_embeddings(self, batch: Batch, visual: VisualVectors) -> Float[Tensor, "B T D"]:
        """Embeddings of the tokens, visual vectors in their slots."""
        raise AssertionError(f"{type(self).__name__} has no merge_visual_embeddings")

    def embeddings(self, batch: Batch) -> Float[Tensor, "B T D"]:
        """What the language model reads."""
        return self.merge_visual_embeddings(batch, self.encode_images(batch))

    def losses(self, batch: Batch) -> tuple[Float[Tensor, " B"], Int[Tensor, " B"]]:
        return lm_losses(self.language, self.embeddings(batch), batch)

    def logits(self, batch: Batch) -> Float[Tensor, "B S W"]:
        """At every token, S = T; of an encoder-decoder, at every token of `targets`, which must be of one length."""
        embeds = self.embeddings(batch)
        if self.language.config.is_encoder_decoder:
            return target_logits(self.language, embeds, batch).unflatten(0, (len(embeds), -1))
        hidden = lm_hidden_states(self.language, embeds, batch)
        return head(self.language)(hidden)

    def _encoded(self, batch: Batch, images: EncodedImages | None) -> VisualVectors:
        return self.encode_images(batch) if images is None else images(self.encode_images, batch)

    def log_likelihoods(
        self, batch: Batch, answered: Sequence[Batch], images: EncodedImages | None = None
    ) -> Float[Tensor, "C B"]:
        """Images are encoded once. The released BLIP-2 and InstructBLIP rank by the same sum, divided by a padded
        length that all candidates share."""
        # Here alone, as below: training reads nothing of it.
        from lightning_mllm.language.prompts import reads_prompts
        from lightning_mllm.language.ranking import answer_losses
        from lightning_mllm.language.shared_prefix import shared_prefix

        visual, found = self._encoded(batch, images), []
        if reads_prompts(self.language):
            embeds = self.merge_visual_embeddings(batch, visual)
            return -torch.stack(answer_losses(self.language, embeds, batch, answered, shared_prefix(batch)))
        for each in answered:
            losses, _ = lm_losses(self.language, self.merge_visual_embeddings(each, visual), each)
            found.append(-losses)
        return torch.stack(found)

    def generate(
        self, batch: Batch, decoding: Decoding, end: AnswerEnd, images: EncodedImages | None = None
    ) -> list[list[int]]:
        """As `Net.generate`; `images` knows those that were encoded before."""
        from lightning_mllm.language.generation import generate
        from lightning_mllm.language.shared_prefix import shared_prefix

        embeds = self.merge_visual_embeddings(batch, self._encoded(batch, images))
        known = {"positions": batch.positions, "kinds": batch.kinds, "shared": shared_prefix(batch)}
        return generate(self.language, embeds, batch.segments > 0, decoding, end, **known)
