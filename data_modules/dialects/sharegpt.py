"""ShareGPT's exports and what LLaMA-Factory makes of them: many names for two roles, `system` and `images` beside."""

from data_modules.dialects.from_value import from_value, image_list

SHAREGPT = from_value(
    "sharegpt",
    '{"id", "system", "images": [...], "conversations": [{"from": "human", "value"}, {"from": "chatgpt", "value"}]}',
    {
        "human": "user",
        "user": "user",
        "gpt": "assistant",
        "chatgpt": "assistant",
        "bing": "assistant",
        "bard": "assistant",
        "claude": "assistant",
        "bot": "assistant",
        "model": "assistant",
        "assistant": "assistant",
        "system": "system",
    },
    {"user": "human", "assistant": "gpt", "system": "system"},
    image_list,
)
