"""What a client writes becomes turns, pictures and settings, or one sentence that names the key."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import pytest
from PIL import Image

from lightning_mllm.contracts import Turn
from lightning_mllm.language.generation import Decoding
from lightning_mllm.processing.images import ImageLimits, decode_image
from lightning_mllm.serving.requests import MAX_IMAGES, ApiError, conversation, parse

LIMITS = ImageLimits()


def data_url(colour: tuple[int, int, int] = (200, 0, 0), size: tuple[int, int] = (20, 30)) -> str:
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, format="PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def picture(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def request(content: Any = "What?", **more: Any) -> bytes:
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": content}], **more}).encode()


def test_parts_stand_in_their_order() -> None:
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [picture(data_url()), {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": "Red."},
        {"role": "user", "content": [{"type": "text", "text": "And"}, picture(data_url((0, 0, 200)))]},
        {"role": "assistant", "content": "Blue."},
        {"role": "user", "content": "Is <image> a word?"},
    ]
    turns, images = conversation(parse(json.dumps({"model": "m", "messages": messages}).encode()).messages, LIMITS)
    assert [(turn.role, turn.text) for turn in turns] == [
        ("system", "Be brief."),
        ("user", "<image>\nWhat?"),
        ("assistant", "Red."),
        ("user", "And\n<image>"),
        ("assistant", "Blue."),
        ("user", "Is <image> a word?"),
    ]
    assert turns[-1] == Turn(role="user", text="Is <image> a word?", literal=True)
    assert [decode_image(image).getpixel((0, 0)) for image in images] == [(200, 0, 0), (0, 0, 200)]


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"{", "body: found no JSON"),
        (request(temperature="hot"), "temperature: found 'hot'; Input should be a valid number"),
        (request(temperature=3), "temperature: found 3; Input should be less than or equal to 2"),
        (request(n=2), "n: found 2; Input should be 1"),
        (request(tools=[]), "tools: found a key that this server does not know"),
        (request(max_tokens=0), "max_tokens: found 0; Input should be greater than or equal to 1"),
        (request(stop=[""]), r"stop\.0: found ''; String should have at least 1 character"),
        (request([{"type": "audio"}]), r"messages\.0\.content\.0: found .*'audio'"),
        (request([picture(5)]), r"messages\.0\.content\.0\.image_url\.url: found 5; "),  # pyright: ignore
        (b'{"model": "m", "messages": []}', r"messages: found \[\]; List should have at least 1 item"),
        (b'{"messages": [{"role": "user", "content": "What?"}]}', "model: found nothing, expected a value"),
    ],
)
def test_a_wrong_key_is_named(body: bytes, sentence: str) -> None:
    with pytest.raises(ApiError, match=f"^{sentence}") as caught:
        parse(body)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ([picture("http://127.0.0.1/a.png")], "found the address 'http://127.0.0.1/a.png', .*: this server fetches"),
        ([picture("file:///etc/passwd")], "found the address 'file:///etc/passwd'"),
        ([picture("data:image/png,abc")], "found 'data:image/png', expected data:image/png;base64"),
        ([picture("data:image/png;base64,a*b")], "the picture: found no base64"),
        ([picture("data:image/png;base64," + "A" * 200)], "found 150 bytes, expected at most 100"),
        ([picture("data:;base64,AA==")] * (MAX_IMAGES + 1), "found 17 pictures, expected at most 16"),
        ([picture("data:;base64,AA=="), {"type": "text", "text": "<image>?"}], "found <image> in a text, expected an"),
    ],
)
def test_a_picture_comes_with_its_request_or_not_at_all(content: list[Any], sentence: str) -> None:
    with pytest.raises(ApiError, match=sentence):
        conversation(parse(request(content)).messages, ImageLimits(max_bytes=100))


def test_turns_that_cannot_be_answered_are_refused() -> None:
    told = {"role": "assistant", "content": [picture(data_url())]}
    asked = {"role": "user", "content": "What?"}
    for messages, sentence in (
        ([told, asked], "found a picture in a turn of assistant, expected one of user"),
        ([asked, {"role": "assistant", "content": "Red."}], "found a last turn of assistant, expected one of user"),
    ):
        with pytest.raises(ApiError, match=sentence):
            conversation(parse(json.dumps({"model": "m", "messages": messages}).encode()).messages, LIMITS)


def test_settings_of_a_request_come_before_the_net_s_own() -> None:
    own = Decoding(max_new_tokens=30, min_new_tokens=8, num_beams=2, length_penalty=-1)

    def decoding(**more: Any) -> Decoding:
        return parse(request(**more)).decoding(own, 100)

    assert decoding() == own
    assert decoding(max_tokens=5) == Decoding(max_new_tokens=5, min_new_tokens=5, num_beams=2, length_penalty=-1)
    sampled = Decoding(max_new_tokens=9, min_new_tokens=8, top_p=1.0, temperature=0.5, seed=3)
    assert decoding(max_completion_tokens=9, temperature=0.5, seed=3) == sampled
    sampler = Decoding(top_p=0.9, temperature=0.7)
    assert parse(request(seed=3)).decoding(sampler, 100) == Decoding(top_p=0.9, temperature=0.7, seed=3)
    assert decoding(top_p=0.5).seed is None and decoding(top_p=0.5).temperature == 1
    assert parse(request(temperature=0)).decoding(Decoding(top_p=0.9, temperature=0.7), 100) == Decoding()
    assert parse(request(stop="a")).stops == ["a"] and parse(request(stop=["a", "b"])).stops == ["a", "b"]
    with pytest.raises(ApiError, match="max_tokens: found 101, expected at most 100"):
        decoding(max_tokens=101)
