"""A chat request as OpenAI's clients write it, checked, and as turns, pictures and decoding settings of ours."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lightning_mllm.contracts import IMAGE_MARK, ImageRef, Role, Turn
from lightning_mllm.language.generation import Decoding
from lightning_mllm.processing.images import ImageLimits

MAX_IMAGES = 16
"""Of one request."""
GREEDY_BELOW = 0.01
"""A temperature below it is greedy: logits divided by less are not finite."""


class ApiError(Exception):
    """What a client is told, in OpenAI's layout.

    Args:
        status: Of HTTP.
        message: One sentence.
        code: A word for programs.
        param: The key of the request that is wrong.
    """

    def __init__(self, status: int, message: str, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param

    def body(self) -> dict[str, dict[str, str | None]]:
        """The JSON of the answer."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class TextPart(_Strict):
    type: Literal["text"]
    text: str


class ImageUrl(_Strict):
    url: str
    detail: Literal["auto", "low", "high"] | None = None
    """Accepted and not read: the net has one resolution."""


class ImagePart(_Strict):
    type: Literal["image_url"]
    image_url: ImageUrl


class Message(_Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Annotated[TextPart | ImagePart, Field(discriminator="type")]]
    name: str | None = None
    """Accepted and not read."""


class StreamOptions(_Strict):
    include_usage: bool = False


class ChatRequest(_Strict):
    """What this server can do of `POST /v1/chat/completions`; a key that it does not know is refused."""

    model: str
    messages: list[Message] = Field(min_length=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    stop: (
        Annotated[str, Field(min_length=1)]
        | Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=4)]
        | None
    ) = None
    seed: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Literal[1] | None = None
    logprobs: Literal[False] | None = None
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None
    # Accepted and not read: nothing here depends on them.
    user: str | None = None
    store: bool | None = None
    metadata: dict[str, Any] | None = None

    @property
    def stops(self) -> list[str]:
        """Texts that end the answer."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())

    def decoding(self, own: Decoding, most: int) -> Decoding:
        """How the answer is generated.

        Args:
            own: The net's own settings, which hold where the request says nothing.
            most: New tokens that a request may ask for.

        Raises:
            ApiError: It asks for more.
        """
        asked = self.max_completion_tokens or self.max_tokens
        if asked is not None and asked > most:
            raise ApiError(400, f"max_tokens: found {asked}, expected at most {most}", param="max_tokens")
        limit = asked or own.max_new_tokens
        known = replace(own, max_new_tokens=limit, min_new_tokens=min(own.min_new_tokens, limit))
        if self.temperature is None and self.top_p is None:
            return known if own.top_p is None or self.seed is None else replace(known, seed=self.seed)
        if self.temperature is not None and self.temperature < GREEDY_BELOW:
            return replace(known, top_p=None, temperature=1.0)
        return Decoding(
            max_new_tokens=limit,
            min_new_tokens=known.min_new_tokens,
            repetition_penalty=own.repetition_penalty,
            top_p=self.top_p or 1.0,
            temperature=1.0 if self.temperature is None else self.temperature,
            seed=self.seed,
        )


def parse(body: bytes) -> ChatRequest:
    """The request in a body of JSON.

    Raises:
        ApiError: It is no JSON, or a key is missing, unknown or of another value than can be served.
    """
    try:
        return ChatRequest.model_validate_json(body)
    except ValidationError as error:
        # Of the kinds that `content` and `stop` may have, the one that fits furthest.
        worst = max(error.errors(include_url=False, include_context=False), key=lambda each: len(each["loc"]))
    if worst["type"] == "json_invalid":
        raise ApiError(400, f"body: found no JSON ({worst['msg']})")
    path = [str(each) for each in worst["loc"] if str(each).isidentifier() or isinstance(each, int)]
    # Without what pydantic adds: the kinds of a value that may be of several.
    where = ".".join(each for i, each in enumerate(path) if each not in ("str", "text") and [each] != path[i - 1 : i])
    if worst["type"] == "extra_forbidden":
        raise ApiError(400, f"{where}: found a key that this server does not know", "unknown_parameter", where)
    if worst["type"] == "missing":
        raise ApiError(400, f"{where}: found nothing, expected a value", "missing_required_parameter", where)
    found = repr(worst["input"])
    found = found if len(found) < 80 else f"{found[:77]}..."
    raise ApiError(400, f"{where}: found {found}; {worst['msg']}", "invalid_value", where)


@dataclass(frozen=True)
class ImageBytes:
    """An image that came with a request."""

    name: str
    data: bytes

    def read(self, max_bytes: int) -> bytes:
        """As `ImageRef`."""
        if len(self.data) > max_bytes:
            raise ValueError(f"{self.name}: found {len(self.data)} bytes, expected at most {max_bytes}")
        return self.data


def conversation(messages: Sequence[Message], limits: ImageLimits) -> tuple[list[Turn], list[ImageRef]]:
    """Turns, `<image>` where a picture stands, and their pictures.

    Raises:
        ApiError: A picture is no data URL, too large, in a turn that is not a user's, or one of too many; or the last
            turn is not a user's.
    """
    turns: list[Turn] = []
    images: list[ImageRef] = []
    for i, message in enumerate(messages):
        role: Role = "system" if message.role == "developer" else message.role
        parts = [TextPart(type="text", text=message.content)] if isinstance(message.content, str) else message.content
        shown = [part for part in parts if isinstance(part, ImagePart)]
        told = [part.text if isinstance(part, TextPart) else IMAGE_MARK for part in parts]
        where = f"messages.{i}.content"
        if shown and role != "user":
            raise ApiError(400, f"{where}: found a picture in a turn of {role}, expected one of user", param=where)
        if shown and sum(text.count(IMAGE_MARK) for text in told) > len(shown):
            raise ApiError(400, f"{where}: found {IMAGE_MARK} in a text, expected an image_url part", param=where)
        images += [_image(part.image_url.url, f"messages.{i}: the picture", limits) for part in shown]
        turns.append(Turn(role=role, text="\n".join(told), literal=not shown))
    if len(images) > MAX_IMAGES:
        raise ApiError(400, f"messages: found {len(images)} pictures, expected at most {MAX_IMAGES}", param="messages")
    if turns[-1].role != "user":
        raise ApiError(400, f"messages: found a last turn of {turns[-1].role}, expected one of user", param="messages")
    return turns, images


def _image(url: str, name: str, limits: ImageLimits) -> ImageBytes:
    """The image in a data URL (RFC 2397)."""
    if not url.startswith("data:"):
        shown = url if len(url) < 60 else f"{url[:57]}..."
        raise ApiError(
            400,
            f"{name}: found the address '{shown}', expected data:image/png;base64,...: this server fetches nothing",
            "image_url_not_supported",
            "messages",
        )
    head, _, payload = url.partition(",")
    if not head.endswith(";base64"):
        raise ApiError(400, f"{name}: found '{head[:60]}', expected data:image/png;base64,...", "invalid_image")
    if len(payload) > limits.max_bytes * 4 // 3 + 4:
        found = len(payload) * 3 // 4
        raise ApiError(400, f"{name}: found {found} bytes, expected at most {limits.max_bytes}", "image_too_large")
    try:
        data = base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ApiError(400, f"{name}: found no base64 ({error})", "invalid_image", "messages") from None
    return ImageBytes(f"the picture {blake2b(data, digest_size=8).hexdigest()}", data)
