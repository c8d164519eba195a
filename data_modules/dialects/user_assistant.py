"""LLaVA's layout under the roles of chat templates, as MiniCPM-V, Qwen-VL and others write it."""

from data_modules.dialects.from_value import from_value, one_or_list

USER_ASSISTANT = from_value(
    "user_assistant",
    '{"id", "image", "conversations": [{"from": "user", "value": "<image>\\n..."}, {"from": "assistant", "value"}]}',
    {"user": "user", "assistant": "assistant", "system": "system"},
    {"user": "user", "assistant": "assistant", "system": "system"},
    one_or_list,
)
