"""What the net reads of a sample in training and where it is asked: they must agree up to where the answer begins.

    training     <s> USER : <image> What is it ? ASSISTANT :  a cat </s>
    generation   <s> USER : <image> What is it ? ASSISTANT :
                 |------------- the same tokens -----------| answer

Of an encoder-decoder both are what its encoder reads, and the answer is its decoder's targets. A Q-Former's text is the
same in both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from transformers import PreTrainedTokenizerFast

from lightning_mllm.contracts import IGNORE, IMAGE_MARK, Encoded, Sample, Turn
from lightning_mllm.processing.chat import Chat

Verdict = Literal["agree", "differ", "cut", "one"]
"""cut: the training row is cut, so that there is nothing to compare; one: the sample has no prompt, as a text has not.
"""


class Encodes(Protocol):
    """What is asked of a processor (`lightning_mllm.processing.processor.Processor`)."""

    chat: Chat
    tokenizer: PreTrainedTokenizerFast

    def encode(self, sample: Sample, *, generate: bool = False, random: torch.Generator | None = None) -> Encoded: ...


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """One sample as both see it."""

    training: Encoded
    generation: Encoded | None
    """None for a text, and for a prompt that alone is too long."""
    begins: int
    """Where the answer begins in the tokens of training; their number where none is learned there."""
    verdict: Verdict
    difference: str = ""
    """In one sentence, where they differ."""


def prompts(processor: Encodes, sample: Sample, random: torch.Generator | None = None) -> Prompts:
    """Encodes a sample in both ways.

    Args:
        processor: Of the net.
        sample: One without an answer is given its first reference, as training would have it.
        random: What training's picture draws from.

    Raises:
        ValueError: The sample cannot be encoded.
    """
    answered = bool(sample.turns) and sample.turns[-1].role == "assistant"
    if not answered and sample.turns and (known := (*sample.references, *sample.candidates)):
        sample = replace(sample, turns=(*sample.turns, Turn(role="assistant", text=known[0])))
    training = processor.encode(sample, random=random)
    begins = answer_begins(training)
    asked = any(turn.role == "user" for turn in sample.turns)
    if sample.documents is not None or not asked:
        return Prompts(training=training, generation=None, begins=begins, verdict="one")
    cut = any(note.split(":")[0] in ("cut", "overlong") for note in training.notes)
    try:
        generation = processor.encode(sample, generate=True)
    except ValueError:
        if not cut:
            raise
        return Prompts(training=training, generation=None, begins=begins, verdict="cut")
    opens = bool(getattr(template_of(processor, sample), "generation_prompt", ""))
    difference = _difference(processor, training, generation, begins, opens)
    verdict: Verdict = "agree" if not difference else "cut" if cut else "differ"
    told = difference if verdict == "differ" else ""
    return Prompts(training=training, generation=generation, begins=begins, verdict=verdict, difference=told)


def answer_begins(row: Encoded) -> int:
    """Where the last run of learned tokens begins; the length of the row where nothing is learned in it."""
    learned = [position for position, label in enumerate(row.labels.tolist()) if label != IGNORE]
    if not learned:
        return len(row.tokens)
    position = learned[-1]
    known = set(learned)
    while position - 1 in known:
        position -= 1
    return position


def template_of(processor: Encodes, sample: Sample) -> Chat:
    """The chat template that writes a sample: that of its task, or of images without a word."""
    chat = processor.chat.of(sample.task)
    asked = [turn for turn in sample.turns if turn.role == "user"]
    worded = any(turn.literal or turn.text.replace(IMAGE_MARK, "").strip() for turn in asked)
    return chat if worded or not asked else getattr(chat, "wordless", None) or chat


def _difference(processor: Encodes, training: Encoded, generation: Encoded, begins: int, opens: bool) -> str:
    """What differs, in one sentence; empty where nothing does.

    Args:
        opens: Whether the template itself writes the beginning of an answer, which is learned, and given where asked.
    """
    read, given = training.tokens.tolist(), generation.tokens.tolist()
    for position, (one, other) in enumerate(zip(read, given, strict=False)):
        if one != other:
            return f"token {position} is {_word(processor, one)} in training and {_word(processor, other)} where asked"
    kinds = training.kinds[: len(given)].tolist(), generation.kinds[: len(read)].tolist()
    if kinds[0] != kinds[1]:
        return "the same tokens are of other kinds where asked"
    if not torch.equal(_text_of(training), _text_of(generation)):
        return "the Q-Former reads another text where asked"
    if training.targets is not None:
        same = len(read) == len(given)
        return "" if same else f"the encoder reads {len(read)} tokens in training and {len(given)} where asked"
    if begins == len(read):  # nothing is learned
        return ""
    if len(given) < begins or (len(given) > begins and not opens):
        return f"the answer begins at token {begins} in training, and the prompt ends at {len(given)} where asked"
    return ""


def _text_of(row: Encoded) -> torch.Tensor:
    return torch.empty(0, dtype=torch.long) if row.query_text is None else row.query_text


def _word(processor: Encodes, token: int) -> str:
    found: Sequence[str] = processor.tokenizer.convert_ids_to_tokens([token])
    return repr(found[0])
