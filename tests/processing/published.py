"""LLaVA's own way from a conversation to labels, written after its description: lengths of re-tokenised rounds.

It stands here only to be compared with: a round's masked part is as long as its re-tokenised instruction, less two (the
begin token, which stands in for the end token before the round, and the space that the answer's first token takes).
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerFast

from lightning_mllm.contracts import IGNORE, IMAGE_MARK, Turn

IMAGE = -200


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


def vicuna_text(system: str, turns: Sequence[Turn]) -> str:
    text = system + " "
    for turn in turns:
        text += f"USER: {moved(turn.text)} " if turn.role == "user" else f"ASSISTANT: {turn.text}</s>"
    return text


def llama_2_text(system: str, turns: Sequence[Turn]) -> str:
    text = ""
    for i, turn in enumerate(turns):
        if turn.role == "user":
            question = moved(turn.text) if i else f"<<SYS>>\n{system}\n<</SYS>>\n\n{moved(turn.text)}"
            text += f"<s>[INST] {question} [/INST]"
        else:
            text += f" {turn.text} </s>"
    return text.removeprefix("<s>")


def round_labels(text: str, answer_mark: str, tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[int]]:
    """Tokens and labels of a conversation whose answers follow `answer_mark` and end with `</s>`."""
    tokens = tokens_with_image(text, tokenizer)
    labels = list(tokens)
    at = 1
    labels[:at] = [IGNORE]
    for part in text.split("</s>"):
        if not part:
            break
        instruction, _ = part.split(answer_mark)
        masked = len(tokens_with_image(instruction + answer_mark, tokenizer)) - 2
        labels[at : at + masked] = [IGNORE] * masked
        at += len(tokens_with_image(part, tokenizer))
    assert at == len(tokens), "the published mismatch: the whole sample would be masked"
    return tokens, labels


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
