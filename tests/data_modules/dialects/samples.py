"""One conversation, written by hand in each dialect; and records that break a rule of each."""

from __future__ import annotations

import base64
import io
from copy import deepcopy
from typing import Any

from PIL import Image

from data_modules.dialects.conversation import Conversation, Picture, Utterance
from lightning_mllm.contracts import LITERAL_MARK

Records = dict[str, dict[str, Any]]


def encoded(colour: str, kind: str = "PNG") -> bytes:
    """A small picture."""
    file = io.BytesIO()
    Image.new("RGB", (20, 16), colour).save(file, kind)
    return file.getvalue()


PICTURES = {"red.png": encoded("red"), "sub/blue.jpg": encoded("blue", "JPEG")}
URLS = {name: f"data:image/png;base64,{base64.b64encode(data).decode()}" for name, data in PICTURES.items()}
FIRST, SECOND, THIRD = "Is <image> like <image>?", "No, it is red.\nThe other is blue.", "Where is {} written?"

NEUTRAL = Conversation(
    id="7",
    images=tuple(map(Picture, PICTURES)),
    turns=(
        Utterance("system", "Be kind."),
        Utterance("user", FIRST),
        Utterance("assistant", SECOND),
        Utterance("user", THIRD.format(LITERAL_MARK)),
        Utterance("assistant", "There."),
    ),
)
ESCAPED = THIRD.format("\\<image>")


def said(human: str, gpt: str) -> list[dict[str, str]]:
    told = [(human, FIRST), (gpt, SECOND), (human, ESCAPED), (gpt, "There.")]
    return [{"from": name, "value": text} for name, text in told]


def parts(*images: dict[str, Any]) -> list[dict[str, Any]]:
    def text(words: str) -> dict[str, str]:
        return {"type": "text", "text": words}

    # An empty text keeps the question mark beside its image.
    first = [text("Is "), images[0], text(" like "), images[1], text(""), text("?")]
    return [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": first},
        {"role": "assistant", "content": SECOND},
        {"role": "user", "content": [text(THIRD.format("<image>"))]},
        {"role": "assistant", "content": [text("There.")]},
    ]


NAMES = list(PICTURES)
SYSTEM = {"from": "system", "value": "Be kind."}
BY_HAND: Records = {
    "llava": {"id": "7", "image": NAMES, "conversations": [SYSTEM, *said("human", "gpt")]},
    "user_assistant": {"id": "7", "images": NAMES, "conversations": [SYSTEM, *said("user", "assistant")]},
    "sharegpt": {"id": "7", "system": "Be kind.", "images": NAMES, "conversations": said("human", "chatgpt")},
    "openai": {
        "id": "7",
        "images": NAMES,
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": FIRST},
            {"role": "assistant", "content": SECOND},
            {"role": "user", "content": ESCAPED},
            {"role": "assistant", "content": "There."},
        ],
    },
    "openai_parts": {
        "id": "7",
        "messages": parts(
            {"type": "image_url", "image_url": {"url": URLS["red.png"], "detail": "low"}},
            {"type": "image_url", "image_url": {"url": "sub/blue.jpg"}},
        ),
    },
    "chat": {"id": "7", "images": NAMES, "messages": parts({"type": "image"}, {"type": "image"})},
    "alpaca": {
        "id": "7",
        "system": "Be kind.",
        "images": NAMES,
        "history": [[FIRST, SECOND]],
        "instruction": "Where is",
        "input": "\\<image> written?",
        "output": "There.",
    },
    "query_response": {
        "id": "7",
        "system": "Be kind.",
        "images": NAMES,
        "history": [[FIRST, SECOND]],
        "query": ESCAPED,
        "response": "There.",
    },
    "pairs": {
        "id": "7",
        "system": "Be kind.",
        "images": NAMES,
        "conversation": [{"human": FIRST, "assistant": SECOND}, {"human": ESCAPED, "assistant": "There."}],
    },
}
BY_HAND["alpaca"]["instruction"], BY_HAND["alpaca"]["input"] = ESCAPED, ""


def changed(dialect: str, *path: Any, to: Any = None, drop: bool = False) -> dict[str, Any]:
    """The record of a dialect with another value somewhere, or without it."""
    record = deepcopy(BY_HAND[dialect])
    place: Any = record
    for step in path[:-1]:
        place = place[step]
    if drop:
        del place[path[-1]]
    else:
        place[path[-1]] = to
    return record


def _common(name: str, turns: str) -> list[tuple[dict[str, Any], str]]:
    """What is wrong alike in every dialect; the images under `image` or `images`."""
    key = "image" if name == "llava" else "images"
    return [
        (changed(name, turns, drop=True), f"has no '{turns}'"),
        (changed(name, turns, to=None), f"'{turns}' is null"),
        (changed(name, turns, to=3), f"'{turns}' is a number"),
        (changed(name, "id", to=[7]), "'id' is a list, expected a text or a number"),
        (changed(name, "tools", to=[{"name": "search"}]), "has 'tools'"),
        (changed(name, "objects", to=[1]), "'objects' is a list, expected an object"),
        *([] if name == "openai_parts" else _images(name, key)),
    ]


def _images(name: str, key: str) -> list[tuple[dict[str, Any], str]]:
    missing = f"found {BY_HAND[name][key]} images"
    assert missing
    return [
        (changed(name, key, to=3), f"'{key}' is a number, expected a text or a list"),
        (changed(name, key, to=[3, 4]), f"'{key}' holds a number, expected names of files"),
        (changed(name, key, to=["red.png", "gone.png"]), "gone.png not found"),
        (changed(name, key, to=["red.png", "../red.png"]), "expected a path inside"),
        (changed(name, key, to=["red.png", "/red.png"]), "expected a path inside"),
        (changed(name, key, to=["red.png", "http://a.b/c.png"]), "is an address"),
        (changed(name, key, to=["red.png", "data:image/png;base64,!"]), "is a data URL that is not base64"),
        ({**changed(name, key, drop=True), key[:-1] + key[-1].upper(): NAMES}, f"expected '{key}'")
        if name != "chat"
        else (changed(name, key, to=[*NAMES, "red.png"]), "found 1 'images' more than parts"),
    ]


def _turns(name: str, turns: str, role: str, text: str) -> list[tuple[dict[str, Any], str]]:
    """What is wrong with lists of turns; the system turn stands apart in ShareGPT."""
    user = 0 if name == "sharegpt" else 1
    robot = {"from": "is from 'robot'", "role": "is of 'robot'"}[role]
    asker, answerer = (BY_HAND[name][turns][user + k][role] for k in (0, 1))
    long = "a" * 1_100_000
    return [
        (changed(name, turns, user, role, to="robot"), robot),
        (changed(name, turns, user + 1, role, to=asker), f"turn {2} is of user, expected assistant"),
        (changed(name, turns, user, role, to=answerer), "of assistant"),
        (changed(name, turns, user + 3, drop=True), "turns of user and assistant, expected pairs"),
        (changed(name, turns, to=[]), "turns of user and assistant, expected pairs"),
        (changed(name, turns, user + 1, text, to=" \n"), f"'{text}' is empty"),
        (changed(name, turns, user + 1, text, to=None), f"'{text}' is null"),
        (changed(name, turns, user + 1, text, to=long), f"'{text}' has 1100000 characters"),
        (changed(name, turns, user + 1, to="said"), "found a text, expected an object"),
        (changed(name, turns, user + 1, "loss", to="no"), "'loss' is a text, expected true or false"),
        (changed(name, turns, user + 1, "weight", to=0.5), "'weight' is 0.5, expected 0 or 1"),
        (changed(name, turns, user, "loss", to=True), "in a turn that is not the assistant's"),
    ]


def _marks(name: str, *first: Any) -> list[tuple[dict[str, Any], str]]:
    """Marks that are no images, in the texts of dialects that have them there."""
    answer = {"history": (*first[:-1], 1)}.get(first[0], ())
    extra = (
        [(changed(name, *answer, to="<image>"), "has an <image> mark, expected them in turns of user")]
        if answer
        else []
    )
    return [
        (changed(name, *first, to="Is <image> like?"), "found 1 <image> marks and 2 images"),
        (changed(name, *first, to="<image> <image> <image>"), "found 3 <image> marks and 2 images"),
        *extra,
    ]


def _rounds(name: str, question: str, answer: str) -> list[tuple[dict[str, Any], str]]:
    return [
        (changed(name, answer, drop=True), f"has no '{answer}'"),
        (changed(name, answer, to=""), f"'{answer}' is empty"),
        (changed(name, answer, to=["There."]), f"'{answer}' is a list, expected a text"),
        (changed(name, "history", to="before"), "'history' is a text, expected a list"),
        (changed(name, "history", to=[[FIRST]]), "round 0 of 'history' is 1 texts, expected a question and an answer"),
        (changed(name, "history", to=[[FIRST, None]]), "round 0 of 'history': 'answer' is null"),
        (changed(name, "system", to=["Be kind."]), "'system' is a list, expected a text"),
        (changed(name, question, to=" "), "is empty"),
    ]


def _parts(name: str) -> list[tuple[dict[str, Any], str]]:
    content = ("messages", 1, "content")
    return [
        (changed(name, *content, 0, "type", to="video"), "part 0: 'type' is 'video', expected text or"),
        (changed(name, *content, 0, "text", drop=True), "part 0: has no 'text'"),
        (changed(name, *content, 0, to="Is"), "part 0: found a text, expected an object with 'type'"),
        (changed(name, *content, to=[]), "'content' is empty"),
        (changed(name, "messages", 2, "content", to=[{"type": "image_url", "image_url": "red.png"}]), "has an image"),
    ]


def _urls(name: str) -> list[tuple[dict[str, Any], str]]:
    image = ("messages", 1, "content", 3)
    return [
        (changed(name, *image, to={"type": "image_url"}), "has no 'image_url'"),
        (changed(name, *image, "image_url", to={}), "part 3: has no 'url'"),
        (changed(name, *image, "image_url", "url", to="https://a.b/c.png"), "'url' is an address"),
        (changed(name, *image, "image_url", "url", to="data:image/png,AA"), "expected data:image/"),
        (changed(name, *image, "image_url", "url", to="data:image/png;base64,A"), "not base64"),
        (changed(name, *image, "image_url", "url", to="gone.png"), "gone.png not found"),
        (changed(name, *image, "image_url", "url", to="file:///etc/passwd"), "expected a path inside"),
        (changed(name, *image, "image_url", "url", to="../red.png"), "expected a path inside"),
    ]


BAD: dict[str, list[tuple[dict[str, Any], str]]] = {
    **{
        name: [
            *_common(name, "conversations"),
            *_turns(name, "conversations", "from", "value"),
            *_marks(name, "conversations", 0 if name == "sharegpt" else 1, "value"),
        ]
        for name in ("llava", "user_assistant", "sharegpt")
    },
    "openai": [
        *_common("openai", "messages"),
        *_turns("openai", "messages", "role", "content"),
        *_marks("openai", "messages", 1, "content"),
    ],
    **{
        name: [*_common(name, "messages"), *_turns(name, "messages", "role", "content"), *_parts(name)]
        for name in ("openai_parts", "chat")
    },
    "alpaca": [
        *_common("alpaca", "instruction"),
        *_rounds("alpaca", "instruction", "output"),
        *_marks("alpaca", "history", 0, 0),
    ],
    "query_response": [
        *_common("query_response", "query"),
        *_rounds("query_response", "query", "response"),
        *_marks("query_response", "history", 0, 0),
    ],
    "pairs": [
        *_common("pairs", "conversation"),
        (changed("pairs", "conversation", 0, "assistant", drop=True), "pair 0: has no 'assistant'"),
        (changed("pairs", "conversation", 1, "human", to=""), "pair 1: 'human' is empty"),
        (changed("pairs", "conversation", 1, to="Hi"), "found a text, expected an object"),
        (changed("pairs", "conversation", to=[]), "found 0 turns of user and assistant"),
        *_marks("pairs", "conversation", 0, "human"),
    ],
}
BAD["openai_parts"] += _urls("openai_parts")
