"""Labels beside LLaVA's own, on seeded conversations."""

from __future__ import annotations

import random

import pytest

from lightning_mllm.contracts import IMAGE_MARK, Encoded, Sample, Turn
from lightning_mllm.processing.chat import ChatTemplate
from lightning_mllm.processing.processor import Processor
from tests.processing import published
from tests.processing.test_chat import turns
from tests.processing.test_processor import IMAGE, RED, TEXT, processor, sample, supervised
from tests.processing.tokenizer import WORDS, byte_level_tokenizer, llama_tokenizer


def words(rng: random.Random, most: int) -> str:
    """A sentence with digits, line ends, doubled spaces, letters outside the vocabulary."""
    pieces = [*WORDS, "\n", "\n- ", "", "caf\u00e9", "\u4e2d\u6587", "x9z", "3,5"]
    said = " ".join(rng.choice(pieces) for _ in range(rng.randint(1, most))).strip("\n")
    return said if said.strip() else "yes"


def conversations(seed: int, count: int) -> list[tuple[Turn, ...]]:
    """Of one to four rounds; two in three with an image, at the front, at the end or in the middle of its turn."""
    rng, made = random.Random(seed), []
    for _ in range(count):
        texts = [words(rng, 12) for _ in range(2 * rng.randint(1, 4))]
        if rng.random() < 2 / 3:
            question, place = texts[0], rng.choice(["front", "end", "middle"])
            at = {"front": 0, "end": len(question), "middle": len(question) // 2}[place]
            texts[0] = question[:at] + rng.choice(["", "\n", " "]) + IMAGE_MARK + "\n" + question[at:]
        made.append(turns(*texts))
    return made


def same_labels(encoded: Encoded, tokens: list[int], labels: list[int]) -> None:
    assert (encoded.kinds == IMAGE).tolist() == [token == published.IMAGE for token in tokens]
    text = encoded.kinds == TEXT
    assert encoded.tokens[text].tolist() == [token for token in tokens if token != published.IMAGE]
    assert encoded.labels.tolist() == labels
    assert supervised(encoded)


def encode_turns(used: Processor, conversation: tuple[Turn, ...]) -> Encoded:
    images = (RED,) * sum(turn.text.count(IMAGE_MARK) for turn in conversation)
    return used.encode(Sample(id="s", turns=conversation, images=images))


@pytest.mark.parametrize("normalised", [False, True])
def test_vicuna_labels_are_the_published_ones(normalised: bool) -> None:
    used = processor("vicuna_v1", llama_tokenizer(normalised=normalised), vectors=1)
    assert isinstance(used.chat, ChatTemplate)
    seen = {"image": 0, "text": 0}
    for conversation in conversations(seed=0, count=200):
        text = published.vicuna_text(used.chat.system, conversation)
        encoded = encode_turns(used, conversation)
        same_labels(encoded, *published.round_labels(text, " ASSISTANT: ", used.tokenizer))
        seen["image" if len(encoded.images) else "text"] += 1
    assert min(seen.values()) > 40


def test_llama_2_labels_are_the_published_ones() -> None:
    used = processor("llama_2", vectors=1)
    assert isinstance(used.chat, ChatTemplate)
    for conversation in conversations(seed=1, count=60):
        text = published.llama_2_text(used.chat.system, conversation)
        same_labels(encode_turns(used, conversation), *published.round_labels(text, "[/INST] ", used.tokenizer))


def test_plain_labels_are_the_published_ones() -> None:
    used, rng = processor("plain", vectors=1), random.Random(2)
    for _ in range(60):
        caption = words(rng, 12)
        encoded = used.encode(sample("Describe <image> briefly.", caption, images=(RED,)))
        same_labels(encoded, *published.plain_labels(caption, used.tokenizer))


def test_sphinx_labels_are_the_published_ones() -> None:
    used = processor("sphinx", vectors=1)
    assert isinstance(used.chat, ChatTemplate)
    seen = {"image": 0, "text": 0}
    for i, conversation in enumerate(conversations(seed=4, count=120)):
        # Numbered: the published search takes a question that ends as the answer does for that answer.
        conversation = turns(*(f"{turn.text.strip()} {2 * i + j % 2}" for j, turn in enumerate(conversation)))
        text, predicted = published.sphinx_text(used.chat.system, conversation)
        encoded = encode_turns(used, conversation)
        same_labels(encoded, *published.span_labels(text, predicted, len(encoded.images), used.tokenizer))
        seen["image" if len(encoded.images) else "text"] += 1
    assert min(seen.values()) > 25


@pytest.mark.parametrize(("chat", "asks"), [("cogvlm_vqa", "Short answer:"), ("cogvlm_chat", "Answer:")])
@pytest.mark.parametrize("normalised", [False, True])
def test_cogvlm_labels_are_the_published_ones(chat: str, asks: str, normalised: bool) -> None:
    used, rng = processor(chat, llama_tokenizer(normalised=normalised), vectors=1), random.Random(5)
    for _ in range(60):
        question, answer = (words(rng, 12).strip() for _ in range(2))
        encoded = used.encode(sample(f"<image>{question}", answer, images=(RED,)))
        same_labels(encoded, *published.cogvlm_labels(question, answer, asks, used.tokenizer))


def test_byte_level_labels_are_the_answers_letters() -> None:
    """As GPT's tokens: the space belongs to the word after it, and nothing is put before a text."""
    used = processor("vicuna_v1", byte_level_tokenizer(), vectors=1)
    for conversation in conversations(seed=3, count=60):
        encoded = encode_turns(used, conversation)
        answers = [turn.text for turn in conversation if turn.role == "assistant"]
        told = used.tokenizer.decode(supervised(encoded), clean_up_tokenization_spaces=False)
        assert told == "".join(f" {answer}</s>" for answer in answers)
