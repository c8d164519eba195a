"""Writing answers from embeddings: greedily (greedy.py), or over transformers' `generate` in beams and by sampling.

    embeds f[B, T, D], mask [B, T] (left-padded) --> generate with KV cache --> B lists of new token ids

Models that greedy.py does not read, encoder-decoders among them, are transformers' in every way.

Legend: B rows, T tokens a row, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
)

from lightning_mllm.contracts import runs_of
from lightning_mllm.language.decoding import AnswerEnd as AnswerEnd
from lightning_mllm.language.decoding import Decoding as Decoding
from lightning_mllm.language.decoding import StopText as StopText
from lightning_mllm.language.greedy import greedy
from lightning_mllm.language.lm_loss import KEYWORDS
from lightning_mllm.language.prompts import is_sharded, reads_prompts
from lightning_mllm.language.shared_prefix import SharedPrefix


def generate(
    model: PreTrainedModel,
    embeds: Float[Tensor, "B T D"],
    mask: Bool[Tensor, "B T"] | Int[Tensor, "B T"],
    decoding: Decoding,
    end: AnswerEnd,
    *,
    positions: Int[Tensor, "B T"] | None = None,
    kinds: UInt8[Tensor, "B T"] | None = None,
    shared: SharedPrefix | None = None,
) -> list[list[int]]:
    """The new tokens of each row, cut before its end token, or behind the text that ends it.

    Args:
        model: a transformers causal or encoder-decoder language model in eval mode.
        embeds: of the prompt (causal) or of the encoder's input; causal rows must be padded on the left.
        mask: non-zero where a token is real.
        decoding: how to search.
        end: each row, and in a beam search each beam, is finished by itself.
        positions: of a causal model's prompt, as in `Batch`; new tokens go on from a row's last one. None counts.
        kinds: of the prompt's tokens, as in `Batch`, by which a model with visual experts routes them.
        shared: what rows have in common, which is read once where the answers are greedy.
    """
    assert not model.training, "generation in train mode would apply dropout"
    seq2seq = bool(model.config.is_encoder_decoder)
    if not seq2seq and not bool(mask[:, -1].all()):
        raise ValueError("generation needs rows padded on the left, found a row that ends in padding")
    plain = decoding.num_beams == 1 and decoding.top_p is None
    with torch.no_grad():
        if plain and reads_prompts(model):
            known = {"positions": positions, "kinds": kinds, "shared": shared}
            return greedy(model, embeds, mask, decoding, end, **known)
        with _prompt_routed(model, kinds):
            return _searched(model, embeds, mask, decoding, end, positions)


def _searched(
    model: PreTrainedModel,
    embeds: Float[Tensor, "B T D"],
    mask: Bool[Tensor, "B T"] | Int[Tensor, "B T"],
    decoding: Decoding,
    end: AnswerEnd,
    positions: Int[Tensor, "B T"] | None,
) -> list[list[int]]:
    """As `generate`, by transformers."""
    seq2seq = bool(model.config.is_encoder_decoder)
    # top_k: transformers' own default is 50, which would cut the nucleus silently.
    search = GenerationConfig(
        max_new_tokens=decoding.max_new_tokens,
        min_new_tokens=decoding.min_new_tokens or None,
        num_beams=decoding.num_beams,
        do_sample=decoding.top_p is not None,
        top_p=decoding.top_p,
        top_k=0 if decoding.top_p is not None else None,
        temperature=decoding.temperature if decoding.top_p is not None else None,
        length_penalty=decoding.length_penalty,
        eos_token_id=sorted(end.tokens),
        pad_token_id=end.pad,
        use_cache=True,
    )
    # Not as a setting: transformers 5.23 would spare as many of the new tokens as a row has padding on its left.
    penalty = LogitsProcessorList()
    if decoding.repetition_penalty != 1:
        penalty.append(RepetitionPenaltyLogitsProcessor(decoding.repetition_penalty))
    # Left out, transformers counts the tokens; stated, it adds one to a row's last position with each step.
    stated = {} if seq2seq or positions is None else {"position_ids": positions}
    texts = StoppingCriteriaList([] if end.text is None else [TextEnd(end.text, start=int(seq2seq))])
    seed = decoding.seed if search.do_sample else None
    with _only(model, search), _seeded(seed, embeds.device):
        written = model.generate(  # pyright: ignore[reportCallIssue]
            inputs_embeds=embeds,
            attention_mask=mask.long(),
            generation_config=search,
            logits_processor=penalty,
            stopping_criteria=texts,
            synced_gpus=is_sharded(model),
            **stated,
        )
    assert isinstance(written, Tensor)
    rows = written[:, 1:].tolist() if seq2seq else written.tolist()
    return [_cut(row, end) for row in rows]


class TextEnd(StoppingCriteria):
    """Ends each row by itself when its last tokens complete a text.

    Args:
        stop: The text.
        start: Tokens before the new ones: the start token of an encoder-decoder.
    """

    def __init__(self, stop: StopText, start: int) -> None:
        self.stop, self.start = stop, start

    def __call__(self, input_ids: Int[Tensor, "R S"], scores: object, **kwargs: object) -> Bool[Tensor, " R"]:
        last = input_ids[:, max(self.start, input_ids.shape[1] - self.stop.window) :].tolist()
        return torch.tensor([self.stop(row) for row in last], dtype=torch.bool, device=input_ids.device)


def _cut(row: list[int], end: AnswerEnd) -> list[int]:
    for i, token in enumerate(row):
        if token in end.tokens:
            return row[:i]
        if end.text is not None and end.text(row[: i + 1]):
            return row[: i + 1]
    return row


@contextmanager
def _only(model: PreTrainedModel, search: GenerationConfig):
    """Hides the model's published settings, from which transformers would fill every unset field of `search`."""
    own = model.generation_config
    assert own is not None
    search.decoder_start_token_id = own.decoder_start_token_id
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


@contextmanager
def _prompt_routed(model: PreTrainedModel, kinds: UInt8[Tensor, "B T"] | None) -> Iterator[None]:
    """While it lasts, what `model` reads as embeddings is routed by `kinds`, and what it reads as tokens is language.

    A search with beams repeats each row, and so are its kinds.
    """
    keywords_of = getattr(model, KEYWORDS, None)
    if keywords_of is None or kinds is None:
        yield
        return

    def hand(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        embeds = kwargs.get("inputs_embeds")
        if not isinstance(embeds, Tensor):
            return None
        return args, {**kwargs, **keywords_of(runs_of(kinds.repeat_interleave(len(embeds) // len(kinds), 0)))}

    handle = model.base_model.register_forward_pre_hook(hand, with_kwargs=True)  # pyright: ignore
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _seeded(seed: int | None, device: torch.device):
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
