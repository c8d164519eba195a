"""Accepted answers as LLaVA's JSON, with where each comes from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from data_modules.synthesis.request import Request
from lightning_mllm.contracts import IMAGE_MARK, Turn

Json = dict[str, Any]
NAMES = {"user": "human", "assistant": "gpt"}


def record(request: Request, turns: Sequence[Turn], provenance: Json) -> Json:
    """One record: `id`, `image`, `conversations`, the first of which begins with the image mark, and `provenance`."""
    said = [{"from": NAMES[turn.role], "value": turn.text} for turn in turns]
    said[0]["value"] = f"{IMAGE_MARK}\n{said[0]['value']}"
    return {"id": request.id, "image": request.image, "conversations": said, "provenance": provenance}
