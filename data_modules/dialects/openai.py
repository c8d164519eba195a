"""OpenAI's messages with texts; images beside, as LLaMA-Factory and ms-swift have them."""

from functools import partial

from data_modules.containers.values import Record
from data_modules.dialects.conversation import Conversation, escaped
from data_modules.dialects.dialect import Dialect
from data_modules.dialects.fields import written
from data_modules.dialects.from_value import image_list, picture_written
from data_modules.dialects.messages import KEYS, fits, read, weight


def _write(conversation: Conversation) -> Record:
    messages = [{"role": role, "content": escaped(text), **weight(learn)} for role, text, learn in conversation.turns]
    images = [picture_written(picture) for picture in conversation.images]
    return written(conversation, {"messages": messages}, image_list(images))


OPENAI = Dialect(
    name="openai",
    form='{"id", "images": [...], "messages": [{"role": "user", "content": "<image>\\n..."}, {"role", ...}]}',
    keys=KEYS,
    fits=partial(fits, parts=lambda parts: not parts),
    read=read,
    write=_write,
)
