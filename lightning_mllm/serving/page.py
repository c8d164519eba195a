"""A page to talk with a model: pictures are uploaded, answers come as they are written; nothing is loaded elsewhere."""

from __future__ import annotations

import hmac
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lightning_mllm.contracts import IMAGE_MARK, ImageFile, ImageRef, Turn
from lightning_mllm.inference.model import Model
from lightning_mllm.processing.images import FORMATS, ImageLimits

POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; frame-ancestors 'self'"
)
"""What the browser is told: nothing of this page comes from another server."""
REFUSED = "This cannot be answered. "
"""How an answer begins that says why there is none."""
KEPT = 3600
"""Seconds that an uploaded picture is kept."""


def mount_page(app: FastAPI, model: Model, name: str, key: str | None = None) -> FastAPI:
    """The application with the page at `/`.

    Args:
        app: The server.
        model: Answers.
        name: Of the model, for the title.
        key: The password of the page, for any user name; None lets everybody in.
    """

    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported
    import gradio

    def told(message: dict[str, Any], history: list[dict[str, Any]]) -> Iterator[str]:
        yield from answered(model, message, history)

    kinds = [f".{each.lower()}" for each in (*FORMATS, "jpg", "tif")]
    box = gradio.MultimodalTextbox(file_types=kinds, file_count="multiple", placeholder="A question; pictures with +")
    talk = gradio.ChatInterface(
        told,
        multimodal=True,
        title=name,
        textbox=box,
        chatbot=gradio.Chatbot(render_markdown=False, label=name, buttons=["copy", "copy_all"]),
        analytics_enabled=False,
        delete_cache=(KEPT, KEPT),
        api_visibility="private",
    )

    app.add_middleware(Alone)
    limits: ImageLimits = getattr(model.module.processor, "limits", ImageLimits())
    login = None if key is None else lambda user, password: hmac.compare_digest(password.encode(), key.encode())
    return gradio.mount_gradio_app(
        app,
        talk,
        "/",
        auth=login,
        max_file_size=limits.max_bytes,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        mcp_server=False,
    )


def answered(model: Model, message: dict[str, Any], history: list[dict[str, Any]]) -> Iterator[str]:
    """The answer so far, once for each piece of it.

    Args:
        model: Answers.
        message: `files`, paths of uploaded pictures, and `text`.
        history: The turns before it, as gradio keeps them.
    """
    asked = {"role": "user", "content": [*({"path": file} for file in message["files"]), message["text"]]}
    try:
        stream, text = model.reply(*conversation([*history, asked])), ""
    except ValueError as error:
        # As an answer: after an error of gradio's own the page takes no further question.
        reason = " ".join(str(error).split()).removeprefix("sample 'question': ")
        for file in message["files"]:
            reason = reason.replace(file, Path(file).name)
        yield REFUSED + reason
        return
    try:
        for piece in stream:
            text += piece
            yield text
        if not text:
            yield "(no words)"
    finally:
        stream.close()


class Alone:
    """Tells browsers that no page of this server loads anything from another one."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Content-Security-Policy"] = POLICY
            await send(message)

        await self.app(scope, receive, told)


def conversation(messages: list[dict[str, Any]]) -> tuple[list[Turn], list[ImageRef]]:
    """What gradio keeps of a conversation as turns, pictures before the text of each, and those pictures.

    What was refused is left out, so that the conversation goes on without it.
    """
    told: list[tuple[Turn, list[ImageRef]]] = []
    for message in messages:
        content = message["content"]
        parts = content if isinstance(content, list) else [content]
        images: list[ImageRef] = [ImageFile(Path(path)) for part in parts if (path := _path(part))]
        words = [part if isinstance(part, str) else part["text"] for part in parts if not _path(part)]
        text = f"{IMAGE_MARK}\n" * len(images) + "\n".join(words).replace(IMAGE_MARK, "image")
        if text.startswith(REFUSED) and message["role"] == "assistant":
            told.pop()
            continue
        if told and told[-1][0].role == message["role"]:
            turn, before = told.pop()
            text, images = f"{turn.text.rstrip()}\n{text}", [*before, *images]
        told.append((Turn(role=message["role"], text=text), images))
    return [turn for turn, _ in told], [image for _, images in told for image in images]


def _path(part: Any) -> str | None:
    """Of an uploaded file, in each of the ways gradio tells it."""
    if not isinstance(part, dict):
        return None
    return part.get("path") or (part.get("file") or {}).get("path")
