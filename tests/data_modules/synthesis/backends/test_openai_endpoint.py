"""Every fault of an endpoint is an error of its own kind and never an answer; the key is in none of them."""

from __future__ import annotations

import base64
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("openai")
pytest.importorskip("fastapi")

from data_modules.synthesis import journal
from data_modules.synthesis.backends import openai_endpoint
from data_modules.synthesis.backends.openai_endpoint import OpenAIEndpoint
from data_modules.synthesis.budget import Budget
from data_modules.synthesis.display import bar
from data_modules.synthesis.request import Message, Refused, Request, Retry, Stop
from data_modules.synthesis.runner import Content, Limits, run
from lightning_mllm.contracts import ImageFile, Turn
from lightning_mllm.language.generation import AnswerEnd, Decoding
from lightning_mllm.serving.app import build_app
from tests.data_modules.synthesis.faulty_server import FAULTS, KEY, LONG, content, requests, served, text_of
from tests.inference.nets import model_of
from tests.inference.test_model import RED
from tests.serving.test_app import served as serving

REQUEST = requests(1)[0]
EXPECTED: dict[str, tuple[type[Exception], str, bool]] = {
    "401": (Stop, "status 401: the endpoint refuses the key; --key-env names the variable that must hold one", False),
    "400": (Stop, "status 400: fault, for key ***", False),
    "quota 429": (Stop, "status 429: fault, for key ***", False),
    "429 short": (Retry, "status 429: fault, for key ***", False),
    "429 long": (Retry, "status 429: fault, for key ***", False),
    "500": (Retry, "status 500: fault, for key ***", False),
    "reset": (Retry, "found no response: ", True),
    "timeout": (Retry, "found no complete answer within 0.2 s", True),
    "truncated JSON": (Retry, "found a body that is no JSON: {", True),
    "HTML": (Retry, "found a body that is no JSON: <html>", True),
    "{}": (Retry, "found None as choices, expected one", True),
    "error in 200": (Retry, "found an error in a response of status 200: fault, for key ***", False),
    "null content": (Retry, "found None as content, expected a text", True),
    "no choices": (Retry, "found [] as choices, expected one", True),
    "length": (Retry, "found finish_reason length, expected 'stop': the answer is cut", True),
    "cut stream": (Retry, "found no response: ", True),
    "cut events": (Retry, "found a body that is no JSON: data: {", True),
}


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_KEY", KEY)


def test_every_fault_is_an_error_without_the_key() -> None:
    assert set(EXPECTED) == set(FAULTS)
    for fault, (kind, told, paid) in EXPECTED.items():
        with served(lambda id, number, fault=fault: fault, hang=0.4) as server:
            with pytest.raises(kind) as caught:
                OpenAIEndpoint("toy", server.url, "TOY_KEY", 0.2 if fault == "timeout" else 10).ask(REQUEST)
            error: Any = caught.value
            assert error.reason.startswith(told) and getattr(error, "paid", False) is paid, fault
            assert KEY not in error.reason and "0123" not in error.reason
            assert getattr(error, "after", None) == {"429 short": 0.01, "429 long": LONG}.get(fault)
            assert server.asked[REQUEST.id] == 1, "the client retries nothing by itself"


def test_a_whole_answer_is_given_with_what_it_cost() -> None:
    with served(lambda id, number: None) as server:
        answer = OpenAIEndpoint("toy", server.url, None, 5).ask(REQUEST)
    assert answer.text == text_of(REQUEST.id) and answer.model == "toy-1"
    assert (answer.prompt_tokens, answer.completion_tokens) == (12, 40)
    (body,) = server.bodies
    assert body == {
        "model": "toy",
        "messages": [
            {"role": "system", "content": "Describe the picture."},
            {"role": "user", "content": "request 0000/detail"},
        ],
        "temperature": 0.7,
        "max_tokens": 200,
    }


def test_pictures_are_data_urls(tmp_path: Path) -> None:
    paths = [tmp_path / "a.png", tmp_path / "b.jpg", tmp_path / "c.bmp"]
    for path in paths:
        Image.new("RGB", (4, 3), "red").save(path)
    message = replace(REQUEST.messages[1], images=tuple(map(ImageFile, paths[:2])))
    endpoint_request = replace(REQUEST, messages=(REQUEST.messages[0], message))
    with served(lambda id, number: None) as server:
        endpoint = OpenAIEndpoint("toy", server.url, None, 5)
        endpoint.ask(endpoint_request)
        *images, text = server.bodies[0]["messages"][1]["content"]
        assert text == {"type": "text", "text": message.text}
        assert [each["image_url"]["url"][:22] for each in images] == [
            "data:image/png;base64,",
            "data:image/jpeg;base64",
        ]
        assert base64.b64decode(images[0]["image_url"]["url"].partition(",")[2]) == paths[0].read_bytes()
        for path, told in ((paths[2], "expected PNG, JPEG"), (tmp_path / "none.png", "cannot read the image")):
            wrong = replace(REQUEST, messages=(message, replace(message, images=(ImageFile(path),))))
            with pytest.raises(Refused, match=f"{path}: .*{told}"):
                endpoint.ask(wrong)
        assert len(server.bodies) == 1


def test_an_endpoint_that_drips_or_never_ends_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def drip(self: Any, status: int, body: object, headers: object = None) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "100000")
        self.end_headers()
        for _ in range(200):
            self.wfile.write(b" " * 100)
            self.wfile.flush()
            time.sleep(0.01)

    monkeypatch.setattr("tests.data_modules.synthesis.faulty_server.Handler.answer", drip)
    with served(lambda id, number: None) as server:
        begun = time.monotonic()
        with pytest.raises(Retry, match=r"found no complete answer within 0\.1 s"):
            OpenAIEndpoint("toy", server.url, None, 0.1).ask(REQUEST)
        assert time.monotonic() - begun < 2
        monkeypatch.setattr(openai_endpoint, "MAX_ANSWER_BYTES", 500)
        with pytest.raises(Retry, match="found more than 500 bytes of an answer"):
            OpenAIEndpoint("toy", server.url, None, 10).ask(REQUEST)


def test_nobody_there_costs_nothing() -> None:
    with served() as server:
        url = server.url
    with pytest.raises(Retry, match="found no response: ") as caught:
        OpenAIEndpoint("toy", url, "TOY_KEY", 1).ask(REQUEST)
    assert not caught.value.paid


def test_an_answer_with_the_key_is_not_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_KEY", text_of(REQUEST.id)[5:30])
    told = "the answer holds characters of the key, and is not stored"
    with served(lambda id, number: None) as server, pytest.raises(Refused, match=told):
        OpenAIEndpoint("toy", server.url, "TOY_KEY", 5).ask(REQUEST)


def test_a_short_word_for_servers_that_want_any_key_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_KEY", text_of(REQUEST.id)[5:8])
    with served(lambda id, number: None) as server:
        assert OpenAIEndpoint("toy", server.url, "TOY_KEY", 5).ask(REQUEST).text == text_of(REQUEST.id)


@pytest.mark.parametrize(
    ("url", "key_env", "told"),
    [
        (None, None, "--key-env: found none, expected the environment variable that holds the key"),
        (None, "sk-secret", "--key-env: found no such environment variable, expected the name of one"),
        ("http://me:secret@host/v1", "TOY_KEY", "--base-url: found a user, a password or a query in it"),
        ("http://host/v1?key=secret", "TOY_KEY", "--base-url: found a user, a password or a query in it"),
        ("http://host:99999/v1", "TOY_KEY", "--base-url: found 'http://host:99999/v1', expected an address such as"),
        ("localhost:8000", "TOY_KEY", "--base-url: found 'localhost:8000', expected an address such as"),
    ],
)
def test_wrong_settings_are_refused_without_the_secret(url: str | None, key_env: str | None, told: str) -> None:
    with pytest.raises(ValueError, match=told) as caught:
        OpenAIEndpoint("toy", url, key_env, 5)
    assert "secret" not in str(caught.value)


def test_our_own_server_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`mllm serve` on loopback with a net of random values; its answers end at the second kind of token they have."""
    model = model_of("llava")
    tokens: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(type(model.module), "answer_end", property(lambda self: AnswerEnd(tokens=(), pad=0)))
        patch.setattr(model.module.processor, "decode", lambda written: str(tokens.extend(map(int, written))))
        model.answer(RED, "What is it?", Decoding(max_new_tokens=60))
    second = next(token for token in tokens if token != tokens[0])
    monkeypatch.setattr(type(model.module), "answer_end", property(lambda self: AnswerEnd(tokens=(second,), pad=0)))
    RED.save(tmp_path / "red.png")
    picture = (ImageFile(tmp_path / "red.png"),)
    asked = [
        replace(each, messages=(Message("user", "What is it?", picture),), max_tokens=60, temperature=0.0)
        for each in requests(3)
    ]

    def check(request: Request, text: str) -> list[Turn]:
        return [Turn(role="user", text="What is it?"), Turn(role="assistant", text=text)]

    whole = Content(asked, check, content(0).repair)
    served_here, book_here = serving(build_app(model, "tiny", KEY, ["127.0.0.1"])), tmp_path / "out"
    with served_here as url, bar() as display, journal.opened(book_here, {}, asked) as book:
        endpoint = OpenAIEndpoint("tiny", url, "TOY_KEY", 60)
        assert run(book, whole, endpoint, Limits(concurrency=2, retries=0), Budget(), display) is None
        outcomes = list(book.outcomes(asked))
        with pytest.raises(Stop, match="status 404: model: found 'gpt-4', expected 'tiny'"):
            OpenAIEndpoint("gpt-4", url, "TOY_KEY", 60).ask(asked[0])
    expected = model.answer(RED, "What is it?")
    assert expected and [each.last.turns[1:] for each in outcomes] == [(Turn(role="assistant", text=expected),)] * 3
