"""Messages as chat templates of transformers read them, `images` beside, as TRL's vision data sets have them."""

from data_modules.dialects.messages import with_parts

CHAT = with_parts(
    "chat",
    '{"images": [...], "messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text"}]}]}',
    lambda picture: {"type": "image"},
    "image",
    embeds=False,
)
