"""Chat completions as JSON: the body of a request, and what a body that came back is worth.

OpenAI's client gives a completion of whatever came with status 200 (a page of HTML, `{}`, an error object, half a
stream), so nothing is an answer here that was not checked: one choice, `finish_reason` 'stop', a text, and usage.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from data_modules.synthesis.request import Answer, Message, Refused, Request, Retry, Stop
from lightning_mllm.contracts import ImageRef

MAX_IMAGE_BYTES = 20 * 2**20
"""Of one picture in a request."""
USAGE = ("prompt_tokens", "completion_tokens")
MOST_TOKENS = 10**9
"""Of one call; a larger count is none."""
TOO_BUSY = 1.0
"""Seconds to wait after a 429 that names no time."""
KINDS = ((b"\x89PNG\r\n\x1a\n", "png"), (b"\xff\xd8\xff", "jpeg"), (b"GIF8", "gif"), (b"RIFF", "webp"))
"""First bytes of the pictures that endpoints take."""
ALONE = {"content_filter", "content_policy_violation", "context_length_exceeded", "string_above_max_length"}
"""Codes of a 400 that says something of this request, and not of all."""
NO_QUOTA = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "access_terminated"}
"""Codes of a 429 that no waiting helps against."""


def body_of(request: Request, model: str, limit: str = "max_tokens") -> dict[str, Any]:
    """What is posted for a request.

    Args:
        limit: The key of the most tokens: OpenAI's own models take 'max_completion_tokens', most others 'max_tokens'.

    Raises:
        ValueError: A picture is missing, too large, or of a kind that no endpoint takes; names it.
    """
    messages = [{"role": each.role, "content": _content(each)} for each in request.messages]
    return {"model": model, "messages": messages, "temperature": request.temperature, limit: request.max_tokens}


def _content(message: Message) -> str | list[dict[str, Any]]:
    if not message.images:
        return message.text
    images = [{"type": "image_url", "image_url": {"url": _data_url(image)}} for image in message.images]
    return [*images, {"type": "text", "text": message.text}]


def _data_url(image: ImageRef) -> str:
    data = image.read(MAX_IMAGE_BYTES)
    kind = next((kind for start, kind in KINDS if data.startswith(start)), None)
    if kind is None:
        raise ValueError(f"{image.name}: found bytes that begin with {data[:8]!r}, expected PNG, JPEG, GIF or WebP")
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def answer_of(data: bytes | str) -> Answer:
    """The complete answer in the body of a response with status 200.

    Raises:
        Retry: It is something else, or incomplete.
        Refused: The model will not answer.
    """
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        raise _incomplete(f"a body that is no JSON: {_short(data)}") from None
    if not isinstance(body, dict):
        raise _incomplete(f"a body that is no object: {_short(data)}")
    if body.get("error"):
        raise Retry(f"found an error in a response of status 200: {_message(body)}")
    choices = body.get("choices")
    if not (isinstance(choices, list) and len(choices) == 1 and isinstance(choices[0], dict)):
        raise _incomplete(f"{_short(choices)} as choices, expected one")
    message, reason = choices[0].get("message"), choices[0].get("finish_reason")
    if not isinstance(message, dict):
        raise _incomplete(f"{_short(message)} as message")
    if reason == "content_filter" or message.get("refusal"):
        raise Refused(f"the model refused: {_short(message.get('refusal') or reason)}", paid=True)
    if reason != "stop":
        raise _incomplete(f"finish_reason {_short(reason)}, expected 'stop': the answer is cut")
    text = message.get("content")
    if not isinstance(text, str) or not text.strip():
        raise _incomplete(f"{_short(text)} as content, expected a text")
    model = str(body.get("model") or "")
    if (text + model).encode(errors="replace") != (text + model).encode(errors="surrogatepass"):
        raise _incomplete(f"half a character in {_short(text)}, expected Unicode")
    usage: Any = body.get("usage")
    counts: list[Any] = [usage.get(name) for name in USAGE] if isinstance(usage, dict) else []
    if not counts or not all(type(count) is int and 0 <= count <= MOST_TOKENS for count in counts):
        raise _incomplete(f"{_short(usage)} as usage, expected counts of tokens, by which the budget is kept")
    return Answer(text=text, model=model, prompt_tokens=counts[0], completion_tokens=counts[1])


def failure_of(status: int, data: bytes | str, headers: Mapping[str, str]) -> Retry | Refused | Stop:
    """What a response of another status than 200 means.

    Args:
        headers: Of the response, by lower-case name.
    """
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        body = {}
    error = body.get("error") if isinstance(body, dict) else None
    codes = {error.get("code"), error.get("type")} if isinstance(error, dict) else set()
    told = f"status {status}: {_message(body) or _short(data)}"
    if status in (401, 403):
        # Without the endpoint's own words, which may repeat the key.
        return Stop(f"status {status}: the endpoint refuses the key; --key-env names the variable that must hold one")
    if status == 429 and not codes & NO_QUOTA:
        after = _after(headers)
        return Retry(told, TOO_BUSY if after is None else after)
    if status in (408, 409, 425) or status >= 500:
        return Retry(told, _after(headers))
    if status == 413 or (status in (400, 422) and codes & ALONE):
        return Refused(told)
    return Stop(told)


def _after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the endpoint asks to wait (RFC 9110: a number or a date; `retry-after-ms` is OpenAI's)."""
    try:
        if text := headers.get("retry-after-ms"):
            return max(0.0, float(text) / 1000)
        if not (text := headers.get("retry-after", "")):
            return None
        if text.strip().replace(".", "", 1).isdigit():
            return float(text)
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return None


def _incomplete(found: str) -> Retry:
    return Retry(f"found {found}", paid=True)


def _message(body: object) -> str:
    error: Any = body.get("error") if isinstance(body, dict) else None
    if isinstance(error, dict):
        error = error.get("message") or error.get("code") or error
    return _short(error) if error else ""


def _short(value: object) -> str:
    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    text = " ".join(text.encode(errors="replace").decode().split())
    return text if len(text) <= 160 else f"{text[:157]}..."
