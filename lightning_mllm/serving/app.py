"""OpenAI's chat completions with images, for one model that answers one request at a time.

POST /v1/chat/completions   an answer, or with `stream: true` its pieces as server-sent events
GET  /v1/models             the one model
GET  /health                whether the server is there
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from lightning_mllm.inference.model import Model
from lightning_mllm.inference.streaming import AnswerStream
from lightning_mllm.processing.images import ImageLimits
from lightning_mllm.serving.requests import ApiError, ChatRequest, conversation, parse

MAX_BODY = 32 * 2**20
"""Bytes of a request: the largest image file that is read, in base64."""
MAX_AT_ONCE = 16
"""Requests that wait, the one that is answered among them."""
COMPLETIONS = "/v1/chat/completions"
POLL = 0.2
"""Seconds between two looks whether a client that waits for a piece is still connected."""

log = logging.getLogger(__name__)


def build_app(model: Model, name: str, key: str | None = None, hosts: Sequence[str] = ()) -> FastAPI:
    """The server as an ASGI application.

    Args:
        model: Answers.
        name: What requests call it.
        key: What `Authorization: Bearer` must bring; None lets everybody ask.
        hosts: What a request may call this machine; none for any name. Pages of others, whose names were led to this
            machine (DNS rebinding), are refused by it.
    """
    app = FastAPI(title="lightning-mllm", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(AtMost, path=COMPLETIONS, most=MAX_AT_ONCE)
    if hosts:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)
    app.add_exception_handler(ApiError, _refuse)
    app.add_exception_handler(HTTPException, _refuse)
    app.add_exception_handler(Exception, _refuse)
    lock, created = asyncio.Lock(), int(time.time())
    described = {"id": name, "object": "model", "created": created, "owned_by": "lightning-mllm"}

    async def allowed(request: Request) -> None:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if key is not None and not (scheme.lower() == "bearer" and hmac.compare_digest(given.encode(), key.encode())):
            raise ApiError(401, "authorization: found no valid key, expected 'Bearer KEY'", "invalid_api_key")

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    api = APIRouter(prefix="/v1", dependencies=[Depends(allowed)])

    @api.get("/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [described]}

    @api.get("/models/{asked:path}")
    async def one_model(asked: str) -> dict[str, Any]:
        _check_name(asked, name)
        return described

    @api.post("/chat/completions")
    async def complete(request: Request) -> Response:
        asked = parse(await _body(request))
        _check_name(asked.model, name)
        async with lock:
            stream = await run_in_threadpool(_begin, model, asked)
        head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": name}
        if asked.stream:
            usage = asked.stream_options is not None and asked.stream_options.include_usage
            events = _events(_pieces(stream, lock, request), stream, head, usage)
            return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        text = "".join([piece async for piece in _pieces(stream, lock, request)])
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "finish_reason": stream.finish_reason, "logprobs": None}
        return JSONResponse({**head, "object": "chat.completion", "choices": [choice], "usage": _usage(stream)})

    @api.api_route("/{rest:path}", methods=["GET", "POST", "PUT", "DELETE", "PATCH"])
    async def unknown(rest: str) -> None:
        raise ApiError(404, f"found /v1/{rest}, expected {COMPLETIONS} or /v1/models", "not_found")

    app.include_router(api)
    return app


def _begin(model: Model, asked: ChatRequest) -> AnswerStream:
    """The answer, nothing of which is generated yet; pictures are decoded here.

    Raises:
        ApiError: A picture cannot be read, or the conversation is longer than what the net reads.
    """
    processor = model.module.processor
    turns, images = conversation(asked.messages, getattr(processor, "limits", ImageLimits()))
    decoding = asked.decoding(model.decoding, getattr(processor, "max_length", 4096))
    try:
        return model.reply(turns, images, decoding, asked.stops)
    except ValueError as error:
        raise ApiError(400, " ".join(str(error).split()), "invalid_value", "messages") from None


async def _pieces(stream: AnswerStream, lock: asyncio.Lock, request: Request) -> AsyncIterator[str]:
    """The pieces of an answer; generation stops at the next token once the client has disconnected."""
    async with lock:
        try:
            while not await request.is_disconnected():
                # A task of its own, since cancelling `run_in_threadpool` waits for the thread: many tokens can pass
                # before there is a piece.
                piece = asyncio.ensure_future(run_in_threadpool(next, stream, None))
                while not (await asyncio.wait({piece}, timeout=POLL))[0]:
                    if await request.is_disconnected():
                        stream.stop()
                if (text := piece.result()) is None:
                    return
                yield text
        finally:
            stream.stop()


async def _events(
    pieces: AsyncIterator[str], stream: AnswerStream, head: dict[str, Any], usage: bool
) -> AsyncIterator[str]:
    def event(choices: list[dict[str, Any]], **more: Any) -> str:
        return f"data: {json.dumps({**head, 'object': 'chat.completion.chunk', 'choices': choices, **more})}\n\n"

    def delta(told: dict[str, str], reason: str | None = None) -> str:
        return event([{"index": 0, "delta": told, "finish_reason": reason, "logprobs": None}])

    yield delta({"role": "assistant", "content": ""})
    try:
        async for piece in pieces:
            yield delta({"content": piece})
    except Exception:
        log.exception("the net failed")
        yield f"data: {json.dumps(_failed().body())}\n\n"
        return
    yield delta({}, stream.finish_reason)
    if usage:
        yield event([], usage=_usage(stream))
    yield "data: [DONE]\n\n"


def _usage(stream: AnswerStream) -> dict[str, int]:
    asked, told = stream.prompt_tokens, stream.new_tokens
    return {"prompt_tokens": asked, "completion_tokens": told, "total_tokens": asked + told}


def _check_name(asked: str, name: str) -> None:
    if asked != name:
        raise ApiError(404, f"model: found '{asked}', expected '{name}'", "model_not_found", "model")


async def _body(request: Request) -> bytes:
    """The body of JSON.

    Raises:
        ApiError: It is of another type, or too large.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # A page of another site can send everything else without being asked who it is.
        raise ApiError(415, f"content-type: found '{kind}', expected application/json", "unsupported_media_type")
    too_large = ApiError(413, f"body: found more than {MAX_BODY} bytes, expected no more", "request_too_large")
    if int(request.headers.get("content-length") or 0) > MAX_BODY:
        raise too_large
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY:
            raise too_large
    return bytes(body)


class AtMost:
    """Refuses requests of one path while as many as may wait are in work."""

    def __init__(self, app: ASGIApp, path: str, most: int) -> None:
        self.app, self.path, self.most = app, path, most
        self.inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != self.path:
            await self.app(scope, receive, send)
            return
        if self.inside >= self.most:
            error = ApiError(503, f"found {self.inside} requests that wait, expected at most {self.most}", "overloaded")
            await JSONResponse(error.body(), 503, headers={"Retry-After": "1"})(scope, receive, send)
            return
        self.inside += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.inside -= 1


def _failed() -> ApiError:
    return ApiError(500, "the net failed; the server's own log says why")


async def _refuse(request: Request, error: Exception) -> JSONResponse:
    if isinstance(error, HTTPException):
        error = ApiError(error.status_code, str(error.detail))
    if not isinstance(error, ApiError):
        error = _failed()
    return JSONResponse(error.body(), error.status)
