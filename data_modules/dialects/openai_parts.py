"""OpenAI's messages with parts: images as data URLs, or as names and file URLs."""

from data_modules.dialects.messages import linked, with_parts

OPENAI_PARTS = with_parts(
    "openai_parts",
    '{"messages": [{"role", "content": [{"type": "image_url", "image_url": {"url"}}, {"type": "text", "text"}]}]}',
    linked,
    "image_url",
    embeds=True,
)
