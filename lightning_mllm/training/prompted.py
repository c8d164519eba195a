"""A net whose language model reads tokens with visual vectors in their slots: all that follows from what it is shown.

    images --see--> visual f[N,V,D] -.
    tokens i[B,T] --embedding--> f[B,T,D] --place: slots overwritten--> language -> loss, answers, likelihoods

Legend: B rows, T tokens, N images, V vectors an image, D width of the language model.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from lightning_mllm.contracts import Batch, Output, Term, TokenKind
from lightning_mllm.evaluation.generation import Decoding, generate
from lightning_mllm.language.hidden_states import head, lm_hidden_states
from lightning_mllm.language.lm_loss import lm_losses, target_logits
from lightning_mllm.language.slots import fill_slots
from lightning_mllm.training.module import MultimodalModule
from lightning_mllm.training.sharding import all_reduce


class PromptedModule(MultimodalModule):
    """An architecture adds its parts, one of them `language`, and `see`."""

    language: PreTrainedModel

    def encode_images(self, batch: Batch) -> dict[TokenKind, Float[Tensor, "_ D"]]:
        """What the language model is shown of the images: kind of slot -> f[n, D], in the order of the slots."""
        raise AssertionError(f"{type(self).__name__} sees nothing")

    def merge_visual_embeddings(
        self, batch: Batch, visual: dict[TokenKind, Float[Tensor, "_ D"]]
    ) -> Float[Tensor, "B T D"]:
        """Embeddings of the tokens, visual vectors in their slots."""
        return fill_slots(self.language.get_input_embeddings()(batch.tokens), batch, visual)

    def forward(self, batch: Batch) -> Output:
        """Loss of the next token, over supervised tokens."""
        losses, tokens = self.losses(batch)
        return Output(terms={"language": Term(losses=losses, tokens=tokens)})

    def logits(self, batch: Batch) -> Float[Tensor, "B S W"]:
        """At every token, S = T; of an encoder-decoder, at every token of `targets`, which must be of one length."""
        embeds = self.merge_visual_embeddings(batch, self.encode_images(batch))
        if self.language.config.is_encoder_decoder:
            return target_logits(self.language, embeds, batch).logits.unflatten(0, (len(embeds), -1))
        return head(self.language)(lm_hidden_states(self.language, embeds, batch))

    def losses(self, batch: Batch) -> tuple[Float[Tensor, " B"], Int[Tensor, " B"]]:
        return lm_losses(self.language, self.merge_visual_embeddings(batch, self.encode_images(batch)), batch)

    def generate(self, batch: Batch, decoding: Decoding) -> list[list[int]]:
        return generate(
            self.language,
            self.merge_visual_embeddings(batch, self.encode_images(batch)),
            batch.segments > 0,
            decoding,
            eos=self.processor.eos_token_ids,
            pad=self.processor.pad_id,
            synced=self.sharded,
            stop=self.processor.stop,
            positions=batch.positions,
            kinds=batch.kinds,
        )

    def likelihoods(self, batch: Batch) -> list[list[float]]:
        """Log-likelihood of each candidate of each row; the images are looked at once.

        The released BLIP-2 and InstructBLIP rank by the same sum, divided by a padded length that all candidates share.
        """
        visual = self.encode_images(batch)
        rows: list[list[float]] = [[] for _ in batch.ids]
        most = torch.tensor(max(map(len, batch.candidates)), device=batch.tokens.device)
        # Where parameters are spread, every rank must pass as often as any.
        for place in range(int(all_reduce(most, "max") if self.sharded else most)):
            # A row that has fewer candidates repeats its last one, and drops it.
            texts = [each[min(place, len(each) - 1)] for each in batch.candidates]
            judged = self.processor.with_answers(batch, texts)
            losses, _ = lm_losses(self.language, self.merge_visual_embeddings(judged, visual), judged)
            for row, candidates, loss in zip(rows, batch.candidates, losses.tolist(), strict=True):
                if place < len(candidates):
                    row.append(-loss)
        return rows
