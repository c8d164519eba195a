"""Labels beside LLaVA's own, on seeded conversations."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from data_modules.bad_samples import told
from data_modules.sources import LlavaConversations, LlavaPretrain
from lightning_mllm.contracts import IMAGE_MARK, Encoded, Sample, Turn
from lightning_mllm.processing.chat_template import ChatTemplate
from lightning_mllm.processing.processor import Processor
from tests.data_modules.files import SHARED
from tests.processing import published
from tests.processing.test_chat import turns
from tests.processing.test_processor import IMAGE, RED, TEXT, processor, sample, supervised
from tests.processing.tokenizer import WORDS, byte_level_tokenizer, first_space_tokenizer, llama_tokenizer


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


def blanks(rng: random.Random) -> str:
    return rng.choice(["", "", " ", "\n", "  ", " \n"])


def records(seed: int, count: int) -> list[dict[str, Any]]:
    """As in LLaVA's file: one to four rounds, two in three with an image; blanks around turns, gpt first, no end."""
    rng, made = random.Random(seed), []
    for number in range(count):
        texts = [blanks(rng) + words(rng, 12) + blanks(rng) for _ in range(2 * rng.randint(1, 4))]
        record: dict[str, Any] = {"id": number}
        if rng.random() < 2 / 3:
            question, place = texts[0], rng.choice(["front", "end", "middle"])
            at = {"front": 0, "end": len(question), "middle": len(question) // 2}[place]
            texts[0] = question[:at] + rng.choice(["", "\n", " "]) + IMAGE_MARK + "\n" + question[at:]
            record["image"] = "a.png"
        elif rng.random() < 0.2:
            texts[0] += f" what does {IMAGE_MARK} or <video> mean?"
        kind = rng.random()
        if kind < 0.08:
            texts.pop()
        elif kind < 0.16 and len(texts) > 2:
            texts[rng.choice([1, 2, -1])] = ""
        elif kind < 0.2:
            texts[-1] += rng.choice(["</s>", " ASSISTANT: "]) + "and"
        who = ["human" if k % 2 == 0 else "gpt" for k in range(len(texts))]
        said = [{"from": name, "value": text} for name, text in zip(who, texts, strict=True)]
        front = [{"from": "gpt", "value": words(rng, 5)}] if rng.random() < 0.15 else []
        made.append({**record, "turns": front + said})
    return made


def read(
    folder: Path, given: list[dict[str, Any]], kind: type[LlavaConversations] = LlavaConversations, **settings: Any
) -> list[Sample]:
    """The records' samples, by the source of such files."""
    (folder / "a.png").write_bytes(RED.read(2**20))
    file = folder / "records.json"
    file.write_text(
        json.dumps([{**{k: v for k, v in r.items() if k != "turns"}, "conversations": r["turns"]} for r in given])
    )
    source = kind(str(file), str(folder), **settings)
    source.load()
    return [source.sample(index, torch.Generator()) for index in range(len(source))]


def published_processor(chat: str, max_length: int = 2048, **settings: Any) -> Processor:
    """That code also takes an end token in a turn's text for one."""
    return processor(chat, vectors=1, max_length=max_length, masks="published", special_in_turns=True, **settings)


def same_labels(encoded: Encoded, tokens: list[int], labels: list[int], learned: bool = True) -> None:
    assert (encoded.kinds == IMAGE).tolist() == [token == published.IMAGE for token in tokens]
    text = encoded.kinds == TEXT
    assert encoded.tokens[text].tolist() == [token for token in tokens if token != published.IMAGE]
    assert encoded.labels.tolist() == labels
    assert not learned or supervised(encoded)


def encode_turns(used: Processor, conversation: tuple[Turn, ...]) -> Encoded:
    images = (RED,) * sum(turn.text.count(IMAGE_MARK) for turn in conversation)
    return used.encode(Sample(id="s", turns=conversation, images=images))


def vicuna_labels(used: Processor, record: dict[str, Any]) -> tuple[list[int], list[int]]:
    assert isinstance(used.chat, ChatTemplate)
    text = published.vicuna_text(used.chat.system, published.dropped(record))
    return published.round_labels(text, " ASSISTANT: ", used.tokenizer, "image" in record, used.max_length)


def test_vicuna_v0_texts_are_the_published_ones() -> None:
    """200 of 200 conversations, to the character; what is asked is the beginning of what was trained."""
    used = processor("llava_v0", vectors=1).chat
    assert isinstance(used, ChatTemplate)
    for conversation in conversations(seed=5, count=200):
        trained = "".join(piece.text for piece in used.render(conversation))
        assert trained == published.vicuna_v0_text(used.system, conversation)
        asked = "".join(piece.text for piece in used.render(conversation[:-1], generate=True))
        assert trained == f"{asked} {published.moved(conversation[-1].text)}\n### "


@pytest.mark.parametrize(("normalised", "max_length"), [(False, 2048), (True, 120)])
def test_vicuna_labels_are_the_published_ones(tmp_path: Path, normalised: bool, max_length: int) -> None:
    """Read from a file, by the policy `published`; 120 tokens are too few for about half of the records."""
    used = published_processor("vicuna_v1", max_length, tokenizer=llama_tokenizer(normalised=normalised))
    given, seen = records(seed=0, count=200), Counter[str]()
    for record, read_sample in zip(given, read(tmp_path, given, records="published"), strict=True):
        expected = vicuna_labels(used, record)
        encoded = used.encode(read_sample)
        same_labels(encoded, *expected, learned=False)
        seen.update([*(told(note)[0] for note in encoded.notes), "image" if len(encoded.images) else "text", "all"])
        seen["gpt first"] += record["turns"][0]["from"] == "gpt"
    assert min(seen["image"], seen["text"], seen["gpt first"], seen["nothing learned"]) > 20
    assert (seen["overlong"] > 60) is (max_length == 120)


def test_vicuna_labels_of_a_tokenizer_that_is_not_legacy(tmp_path: Path) -> None:
    """Where LLaVA's code takes one token off each round but the first."""
    used = published_processor("vicuna_v1", tokenizer=first_space_tokenizer())
    ids = used.tokenizer
    alone, behind = (ids(text, add_special_tokens=False)["input_ids"] for text in ("USER", "</s>USER"))
    assert len(alone) == 2 and len(behind) == 2, "an end token and USER"
    given, seen = records(seed=8, count=60), Counter[str]()
    for record, read_sample in zip(given, read(tmp_path, given, records="published"), strict=True):
        assert isinstance(used.chat, ChatTemplate)
        text = published.vicuna_text(used.chat.system, published.dropped(record))
        expected = published.round_labels(text, " ASSISTANT: ", ids, "image" in record, less=1)
        encoded = used.encode(read_sample)
        same_labels(encoded, *expected, learned=False)
        seen.update([*(told(note)[0] for note in encoded.notes), "all"])
    assert seen["all"] - seen["nothing learned"] > 40


@pytest.mark.skipif(not (SHARED / "format_samples").is_dir(), reason="excerpts of published files are not here")
def test_vicuna_labels_of_published_answers(tmp_path: Path) -> None:
    """200 conversations of LLaVA's own questions and answers, with what its instruction file also has around them."""
    rows = [json.loads(line) for line in (SHARED / "format_samples/llava_coco2014_val_gpt4_qa_30x3.jsonl").open()]
    rng, given, blank = random.Random(6), list[dict[str, Any]](), 0
    for number in range(200):
        texts: list[str] = []
        for row in rng.sample(rows, rng.randint(1, 3)):
            texts += [blanks(rng) + row["instruction"], row["output"] + blanks(rng)]
        turns = [{"from": "gpt" if k % 2 else "human", "value": text} for k, text in enumerate(texts)]
        turns[0]["value"] = rng.choice([f"{IMAGE_MARK}\n{texts[0]}", f"{texts[0]}\n{IMAGE_MARK}"])
        front = [{"from": "gpt", "value": "Hello."}] if number % 10 == 0 else []
        blank += any(text != text.strip() for text in texts)
        given.append({"id": number, "image": "a.png", "turns": front + turns})
    used = published_processor("vicuna_v1", 800)
    notes = Counter[str]()
    for record, read_sample in zip(given, read(tmp_path, given, records="published"), strict=True):
        encoded = used.encode(read_sample)
        same_labels(encoded, *vicuna_labels(used, record), learned=False)
        notes.update(told(note)[0] for note in encoded.notes)
    assert blank > 90 and notes["overlong"] > 10


def test_llama_2_labels_are_the_published_ones(tmp_path: Path) -> None:
    used = published_processor("llama_2")
    assert isinstance(used.chat, ChatTemplate)
    given = [record for record in records(seed=1, count=60) if all(each["value"] for each in record["turns"])]
    for record, read_sample in zip(given, read(tmp_path, given, records="published"), strict=True):
        text = published.llama_2_text(used.chat.system, published.dropped(record))
        expected = published.round_labels(text, "[/INST] ", used.tokenizer, "image" in record)
        same_labels(used.encode(read_sample), *expected, learned=False)


def test_plain_labels_are_the_published_ones() -> None:
    used, rng = processor("plain", vectors=1), random.Random(2)
    for _ in range(60):
        caption = words(rng, 12)
        encoded = used.encode(sample("Describe <image> briefly.", caption, images=(RED,)))
        same_labels(encoded, *published.plain_labels(caption, used.tokenizer))


def test_plain_labels_of_blank_captions(tmp_path: Path) -> None:
    """The alignment data is read as it is: blanks around a caption are learned, and so is the end of an empty one."""
    used, rng = published_processor("plain"), random.Random(7)
    captions = ["", " ", "\n", *(blanks(rng) + words(rng, 6) + blanks(rng) for _ in range(40))]
    given = [
        {"image": "a.png", "turns": [{"from": "human", "value": " x\n<image> "}, {"from": "gpt", "value": caption}]}
        for caption in captions
    ]
    for caption, each in zip(captions, read(tmp_path, given, LlavaPretrain, records="published"), strict=True):
        same_labels(used.encode(each), *published.plain_labels(caption, used.tokenizer))


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
