"""LLaVA's own way from a conversation to labels: lengths of re-tokenised rounds.

Written from what haotian-liu/LLaVA, llava/train/train.py and llava/conversation.py do, and only to be compared with: a
round's masked part is as long as its re-tokenised instruction, less two (the begin token, which stands in for the end
token before the round, and the space that the answer's first token takes).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerFast

from lightning_mllm.contracts import IGNORE, IMAGE_MARK, Turn

IMAGE = -200

Record = dict[str, Any]
"""{"image"?, "turns": [{"from", "value"}]}."""


def tokens_with_image(text: str, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    runs = [tokenizer(run)["input_ids"] for run in text.split(IMAGE_MARK)]
    tokens = list(runs[0])
    for run in runs[1:]:
        tokens += [IMAGE, *run[1:]]
    return tokens


def moved(text: str) -> str:
    if IMAGE_MARK not in text:
        return text
    return (IMAGE_MARK + "\n" + text.replace(IMAGE_MARK, "").strip()).strip()


def cleaned(record: Record) -> list[tuple[str, str]]:
    """Who says what, after `preprocess_multimodal`: only records with an image know what `<image>` means."""
    return [(each["from"], moved(each["value"]) if "image" in record else each["value"]) for each in record["turns"]]


def dropped(record: Record) -> list[str]:
    """The texts of a record, of human and gpt in turn; what gpt says before that is not read."""
    said = cleaned(record)
    said = said[1:] if said[0][0] == "gpt" else said
    assert [name for name, _ in said] == (["human", "gpt"] * len(said))[: len(said)]
    return [text for _, text in said]


def vicuna_text(system: str, texts: Sequence[str]) -> str:
    """`Conversation.get_prompt` in the style TWO: blank behind a question, end token behind an answer."""
    text = system + " "
    for i, said in enumerate(texts):
        role, end = ("ASSISTANT", "</s>") if i % 2 else ("USER", " ")
        text += f"{role}: {said}{end}" if said else f"{role}:"
    return text


def vicuna_v0_text(system: str, turns: Sequence[Turn]) -> str:
    """A header, then every turn behind "### " and before a line end, and "### " behind all."""
    roles = {"user": "Human", "assistant": "Assistant"}
    said = "".join(f"### {roles[turn.role]}: {moved(turn.text)}\n" for turn in turns)
    return f"{system}\n\n{said}### "


def llama_2_text(system: str, texts: Sequence[str]) -> str:
    """`Conversation.get_prompt` in the style LLAMA_2."""
    text = ""
    for i, said in enumerate(texts):
        if i == 0:
            assert said
            said = f"<<SYS>>\n{system}\n<</SYS>>\n\n{said}"
        if said:
            text += f" {said} </s>" if i % 2 else f"<s>[INST] {said} [/INST]"
    return text.removeprefix("<s>")


def round_labels(
    text: str, answer_mark: str, tokenizer: PreTrainedTokenizerFast, image: bool, most: int = 2048, less: int = 0
) -> tuple[list[int], list[int]]:
    """Tokens and labels of a conversation whose answers follow `answer_mark` and end with `</s>`.

    `preprocess_v1` and `preprocess_llama_2`, then the cut of the collator. Of a row with an image the cut counts the
    image as one token, and there is another one behind the image's vectors: with one vector they are the same.

    Args:
        less: By what rounds but the first one are shorter than alone: 1 for tokenizers that are not `legacy`, whose
            "USER" is one token behind an end token and two at the beginning of a text (LLaVA:
            IS_TOKENIZER_GREATER_THAN_0_14).
    """

    def coded(part: str) -> list[int]:
        return tokens_with_image(part, tokenizer) if image else tokenizer(part)["input_ids"]

    tokens = coded(text) if image else coded(text)[:most]
    labels, total, at = list(tokens), len(tokens), 1
    labels[:at] = [IGNORE]
    for i, part in enumerate(text.split("</s>")):
        if not part:
            break
        instruction, *answers = part.split(answer_mark)
        if len(answers) != 1:
            break
        shorter = less if i else 0
        masked = len(coded(instruction + answer_mark)) - 2 - shorter
        for place in range(at, min(at + masked, total)):
            labels[place] = IGNORE
        at += len(coded(part)) - shorter
    labels[at:] = [IGNORE] * len(labels[at:])
    if at < most and at != total:
        labels = [IGNORE] * total  # "tokenization mismatch (ignored)"
    return tokens[:most], labels[:most]


def plain_labels(caption: str, tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[int]]:
    tokens = tokens_with_image(IMAGE_MARK + caption + "\n", tokenizer)
    masked = len(tokens_with_image(IMAGE_MARK, tokenizer))
    return tokens, [IGNORE] * masked + tokens[masked:]


def sphinx_text(system: str, turns: Sequence[Turn]) -> tuple[str, list[str]]:
    """A conversation of LLaMA2-Accessory's conv_v1_2, and what of it is to be predicted."""
    text, predicted = system + "\n\n###", []
    for turn in turns:
        said = turn.text.replace(IMAGE_MARK, "").strip() if IMAGE_MARK in turn.text else turn.text
        text += f" {'Human' if turn.role == 'user' else 'Assistant'}: {said}\n###"
        if turn.role == "assistant":
            predicted.append(f"{said}\n###")
    return text, predicted


def span_labels(
    text: str, predicted: Sequence[str], images: int, tokenizer: PreTrainedTokenizerFast
) -> tuple[list[int], list[int]]:
    """Tokens and labels as LLaMA2-Accessory finds them: each answer's own tokens, searched for one after another.

    Images stand behind the begin token, the end token behind all.
    """
    begin, *rest = tokenizer(text)["input_ids"]
    tokens = [begin, *[IMAGE] * images, *rest, tokenizer.eos_token_id]
    labels, at = [IGNORE] * len(tokens), 0
    for value in predicted:
        own = tokenizer(value, add_special_tokens=False)["input_ids"]
        found = [i for i in range(at, len(tokens)) if tokens[i : i + len(own)] == own]
        assert found, "the published mismatch: the sample would be left out"
        at = found[0] + len(own)
        labels[found[0] : at] = own
    return tokens, labels


def cogvlm_labels(
    question: str, answer: str, asks: str, tokenizer: PreTrainedTokenizerFast
) -> tuple[list[int], list[int]]:
    """Tokens and labels of one round behind an image, as CogVLM's finetune demo: prompt and answer tokenised apart."""
    prompt, said = (
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in (f"Question: {question} {asks}", answer)
    )
    context, learned = [tokenizer.bos_token_id, IMAGE, *prompt], [*said, tokenizer.eos_token_id]
    return context + learned, [IGNORE] * len(context) + learned
