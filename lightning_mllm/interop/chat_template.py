"""Chat templates (jinja) of folders in the layout of transformers."""

from __future__ import annotations

import json

from lightning_mllm.processing.chat import Chat
from lightning_mllm.processing.chat_template import ChatTemplate


def chat_template(wraps: ChatTemplate) -> str:
    """A chat template (jinja) that writes conversations as ours does."""
    own = _turns_template(wraps)
    if (other := wraps.wordless) is not None:
        own = f"{WORDLESS}{_turns_template(other)}{{%- else -%}}{own}{{%- endif -%}}"
    return FLATTEN + own


def _turns_template(wraps: ChatTemplate) -> str:
    def literal(text: str) -> str:
        return json.dumps(text.replace("{bos}", wraps.bos).replace("{eos}", wraps.eos))

    def sides(wrap: str) -> tuple[str, str]:
        before, after = wrap.split("{text}")
        return literal(before), literal(after)

    (s_before, s_after), (u_before, u_after) = sides(wraps.system_wrap), sides(wraps.user)
    a_before, a_after = sides(wraps.assistant)
    opening = literal(wraps.assistant_prompt + wraps.generation_prompt)
    inside = "true" if wraps.system_inside else "false"
    return "".join(
        [
            f"{{%- set ns.system = {literal(wraps.system)} -%}}",
            "{%- if messages and messages[0]['role'] == 'system' -%}",
            "{%- set ns.system = messages[0]['content'] -%}{%- set messages = messages[1:] -%}",
            "{%- endif -%}",
            f"{{%- set lead = ({s_before} ~ ns.system ~ {s_after}) if ns.system else '' -%}}",
            f"{{%- set inside = {inside} and messages and messages[0]['role'] == 'user' -%}}",
            IMAGES_FIRST if wraps.images == "first" else "",
            "{{- '' if inside else lead -}}",
            "{%- for message in messages -%}",
            "{%- set text = message['content'] -%}{%- set images = '' -%}",
            "{%- if message['role'] == 'user' -%}",
            PLACE_IMAGES[wraps.images],
            f"{{{{- '' if loop.first else {literal(wraps.between)} -}}}}",
            f"{{{{- images ~ {u_before} ~ (lead if inside and loop.first else '') ~ text ~ {u_after} -}}}}",
            "{%- else -%}",
            f"{{{{- {literal(wraps.assistant_prompt)} ~ {a_before} ~ text ~ {a_after} -}}}}",
            "{%- endif -%}",
            "{%- endfor -%}",
            "{%- if messages and messages[-1]['role'] == 'assistant' -%}",
            f"{{{{- {literal(wraps.end)} -}}}}{{%- endif -%}}",
            f"{{%- if add_generation_prompt -%}}{{{{- {opening} -}}}}{{%- endif -%}}",
        ]
    )


def folder_template(chat: Chat) -> str:
    """The chat template (jinja) of a folder: what ours writes, for turns of text and for lists of images and texts.

    Args:
        chat: A template of ours, or a tokenizer's, which stays what it is: one for plain texts also takes lists.
    """
    if isinstance(chat, ChatTemplate):
        return chat_template(chat)
    template = chat.jinja
    if chat.trims:
        # What jinja takes off the end of a file.
        template = f"{TRIM}{chat.unmarked.removesuffix(LINE_END)}{TRIMMED}"
    return template if chat.lists or template.startswith(FLATTEN) else FLATTEN + template


FLATTEN = """\
{%- set ns = namespace(turns=[], system='') -%}
{%- for message in messages -%}
{%- set turn = namespace(text='') -%}
{%- if message['content'] is string -%}
{%- set turn.text = message['content'] -%}
{%- else -%}
{%- for item in message['content'] -%}
{%- if item['type'] == 'image' -%}
{%- set turn.text = turn.text ~ '<image>\\n' -%}
{%- elif item['type'] == 'text' -%}
{%- set turn.text = turn.text ~ item['text'] -%}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- set ns.turns = ns.turns + [{'role': message['role'], 'content': turn.text}] -%}
{%- endfor -%}
{%- set messages = ns.turns %}
"""
"""Opens a template: messages whose content is a list of images and texts become messages of text with marks. What
stands behind it is written as at the start of a file."""

LINE_END = "\n"

TRIM = "{%- set written %}\n"
"""Opens what is written; transformers takes the end of this line off, and nothing of what stands behind."""
TRIMMED = "{%+ endset -%}{{- written.rstrip(' ') if add_generation_prompt else written -}}"

WORDLESS = (
    "{%- set ns.words = '' -%}{%- set ns.asked = false -%}"
    "{%- for message in messages if message['role'] == 'user' -%}{%- set ns.asked = true -%}"
    "{%- set ns.words = ns.words ~ message['content'].replace('<image>', '').strip() -%}{%- endfor -%}"
    "{%- if ns.asked and not ns.words -%}"
)
"""Opens what is written where users say nothing but show images."""

IMAGES_FIRST = (
    "{%- set ns.count = 0 -%}{%- for message in messages if message['role'] == 'user' -%}"
    "{%- set ns.count = ns.count + message['content'].split('<image>') | length - 1 -%}{%- endfor -%}"
    "{{- '<image>' * ns.count -}}"
)
"""Writes the images of all turns."""

PLACE_IMAGES = {
    "first": "{%- if '<image>' in text -%}{%- set text = text.replace('<image>', '').strip() -%}{%- endif -%}",
    "stay": "",
    "only": (
        "{%- set count = text.split('<image>') | length - 1 -%}"
        "{%- if count -%}{%- set text = '<image>' * count -%}{%- endif -%}"
    ),
    "before": (
        "{%- set count = text.split('<image>') | length - 1 -%}"
        "{%- if count -%}"
        "{%- set images = '<image>' * count -%}{%- set text = text.replace('<image>', '').strip() -%}"
        "{%- endif -%}"
    ),
    "front": (
        "{%- set count = text.split('<image>') | length - 1 -%}"
        "{%- if count -%}"
        "{%- set text = (('<image>\\n' * count) ~ text.replace('<image>', '').strip()).strip() -%}"
        "{%- endif -%}"
    ),
}
