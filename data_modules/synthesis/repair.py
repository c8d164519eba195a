"""Asking again for what was rejected: the same request, the answer, why it cannot be used, and advice."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml

from data_modules.synthesis.request import Message, Rejected, Request

LONGEST = 4000
"""Characters of a rejected answer that are quoted; more of one that does not end are of no use."""


def repair(request: Request, text: str, why: Rejected) -> tuple[Message, ...]:
    """The messages that ask again, whole: those of `request`, the rejected `text` as the assistant's, the reason."""
    said = _texts()
    parts = (said["opening"].format(found=why.sentence.rstrip(".")), said["advice"].get(why.kind, ""), said["closing"])
    rejected = (Message("assistant", text[:LONGEST]),) if text.strip() else ()
    return (*request.messages, *rejected, Message("user", " ".join(part for part in parts if part)))


@cache
def _texts() -> dict[str, Any]:
    return yaml.safe_load(Path(__file__).with_name("repairs.yaml").read_text())
