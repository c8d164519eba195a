"""LLaVA (arXiv 2304.08485, released data)."""

from data_modules.dialects.from_value import from_value, one_or_list

LLAVA = from_value(
    "llava",
    '{"id", "image", "conversations": [{"from": "human", "value": "<image>\\n..."}, {"from": "gpt", "value"}]}',
    {"human": "user", "gpt": "assistant", "system": "system"},
    {"user": "human", "assistant": "gpt", "system": "system"},
    one_or_list,
)
