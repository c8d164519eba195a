"""The server answers OpenAI's own client, refuses what is wrong by OpenAI's errors, and stops for who has left."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

pytest.importorskip("fastapi")

import openai
import uvicorn
from fastapi import FastAPI
from starlette.testclient import TestClient

from lightning_mllm.inference import Model
from lightning_mllm.inference.streaming import AnswerStream
from lightning_mllm.language.generation import AnswerEnd
from lightning_mllm.serving import app as server
from lightning_mllm.serving.app import AtMost, build_app
from tests.inference.nets import FEW, model_of
from tests.inference.test_model import RED
from tests.serving.test_requests import data_url, picture, request

END = AnswerEnd(tokens=(300,), pad=0)
"""Of answers that do not end by themselves."""


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Model:
    found = model_of("llava")
    monkeypatch.setitem(found.module.decoding, "answer", FEW)
    return found


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """The address of a real server in a thread."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        running = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        finally:
            running.should_exit = True
            thread.join()


def asked(text: str, *urls: str) -> Any:
    return [{"role": "user", "content": [*map(picture, urls), {"type": "text", "text": text}]}]


def test_openai_s_client_asks_about_a_picture(model: Model) -> None:
    messages = asked("What is it?", data_url())
    expected = model.answer(RED, "What is it?")
    stream = model.stream(RED, "What is it?")
    pieces = list(stream)
    with served(build_app(model, "tiny", "secret", ["127.0.0.1"])) as url:
        client = openai.OpenAI(base_url=url, api_key="secret", max_retries=0)
        assert [each.id for each in client.models.list()] == ["tiny"] and client.models.retrieve("tiny").id == "tiny"
        whole = client.chat.completions.create(model="tiny", messages=messages)
        (choice,), usage = whole.choices, whole.usage
        assert usage is not None
        assert choice.message.content == expected and choice.finish_reason == stream.finish_reason
        assert (usage.prompt_tokens, usage.completion_tokens) == (stream.prompt_tokens, stream.new_tokens)
        chunks: Any = list(
            client.chat.completions.create(
                model="tiny", messages=messages, stream=True, stream_options={"include_usage": True}
            )
        )
        told = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
        assert [each for each in told if each] == pieces and chunks[-1].usage == usage
        turns = [*messages, {"role": "assistant", "content": expected}, *asked("And this?", data_url((0, 0, 200)))]
        talk = model.conversation()
        talk.ask("What is it?", RED)
        again = client.chat.completions.create(model="tiny", messages=turns)
        assert len(again.choices[0].message.content or "") > 0 and again.usage is not None
        assert again.usage.prompt_tokens > usage.prompt_tokens
        sampled = [
            client.chat.completions.create(
                model="tiny", messages=messages, temperature=2, seed=seed, max_tokens=20, stop=["\x00"]
            )
            for seed in (1, 1, 2)
        ]
        first, second, third = (each.choices[0].message.content for each in sampled)
        assert first == second != third
        with pytest.raises(openai.AuthenticationError, match="found no valid key"):
            openai.OpenAI(base_url=url, api_key="wrong").models.list()
        with pytest.raises(openai.NotFoundError, match="model: found 'gpt-4', expected 'tiny'"):
            client.chat.completions.create(model="gpt-4", messages=messages)
        with pytest.raises(openai.BadRequestError, match="this server fetches nothing") as caught:
            client.chat.completions.create(model="tiny", messages=asked("What?", "https://example.com/a.png"))
        assert caught.value.code == "image_url_not_supported"


@pytest.mark.parametrize("silent", [False, True])
def test_a_reader_who_leaves_stops_the_answer(model: Model, monkeypatch: pytest.MonkeyPatch, silent: bool) -> None:
    """And the next request is answered: of 100,000 tokens few are generated, also where they make no piece of text."""
    most = 100_000
    monkeypatch.setattr(model.module.processor, "max_length", most)
    monkeypatch.setattr(type(model.module), "answer_end", property(lambda self: END))
    if silent:
        monkeypatch.setattr(AnswerStream, "_send", lambda self, text: None)
    messages = asked("What is it?", data_url())
    with served(build_app(model, "tiny")) as url:
        client = openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60)
        for _ in range(2):
            endless = client.chat.completions.create(model="tiny", messages=messages, stream=True, max_tokens=most)
            assert next(iter(endless)).choices
            endless.close()
        with pytest.raises(openai.APITimeoutError):
            client.with_options(timeout=0.5).chat.completions.create(model="tiny", messages=messages, max_tokens=most)
        assert client.chat.completions.create(model="tiny", messages=messages, max_tokens=3).usage


def test_wrong_requests_are_told_in_openai_s_layout(model: Model) -> None:
    client = TestClient(build_app(model, "m"), raise_server_exceptions=False)
    kind = {"content-type": "application/json"}

    def told(body: bytes, headers: dict[str, str] = kind) -> tuple[int, dict[str, Any]]:
        answer = client.post("/v1/chat/completions", content=body, headers=headers)
        return answer.status_code, answer.json()["error"]

    assert client.get("/health").json() == {"status": "ok"}
    status, error = told(request(n=2))
    assert status == 400 and set(error) == {"message", "type", "param", "code"} and error["param"] == "n"
    assert told(request(), {"content-type": "text/plain"})[0] == 415
    status, error = told(b" " * (server.MAX_BODY + 1))
    assert status == 413 and "expected no more" in error["message"]
    big = data_url(size=(20_001, 1))
    status, error = told(request([picture(big)]))
    assert status == 400 and "expected sides of at most 20000" in error["message"]
    status, error = told(request([picture("data:;base64,QUJD")]))
    assert status == 400 and "found bytes of no known image format" in error["message"]
    status, error = told(request("word " * 5000))
    assert status == 400 and "found a prompt of" in error["message"]
    answer = client.get("/v1/embeddings")
    assert answer.status_code == 404 and answer.json()["error"]["code"] == "not_found"


def test_a_net_that_fails_says_nothing_of_itself(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> None:
        raise RuntimeError("/secret/path")

    monkeypatch.setattr(model.module.net, "generate", broken)
    client = TestClient(build_app(model, "m"), raise_server_exceptions=False)
    for stream in (False, True):
        body = request(stream=stream)
        answer = client.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
        assert "the net failed" in answer.text and "secret" not in answer.text
        assert answer.status_code == (200 if stream else 500)


def test_pages_of_other_names_are_refused(model: Model) -> None:
    """A name of somebody else that leads to this machine (DNS rebinding)."""
    client = TestClient(build_app(model, "m", hosts=["127.0.0.1"]))
    assert client.get("/health", headers={"host": "evil.example"}).status_code == 400
    assert client.get("/health", headers={"host": "127.0.0.1:8000"}).status_code == 200


def test_no_more_wait_than_may() -> None:
    entered, leave = threading.Event(), threading.Event()

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        entered.set()
        while not leave.is_set():
            await server.asyncio.sleep(0.01)
        await server.JSONResponse({})(scope, receive, send)

    client = TestClient(AtMost(slow, "/asked", 1))
    first = threading.Thread(target=client.get, args=("/asked",))
    first.start()
    entered.wait()
    refused = client.get("/asked")
    leave.set()
    first.join()
    assert refused.status_code == 503 and json.loads(refused.text)["error"]["code"] == "overloaded"
    assert refused.headers["retry-after"] == "1" and client.get("/asked").status_code == 200
