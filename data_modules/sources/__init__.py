"""Where samples come from: one class for each published file format, its constructor arguments being YAML."""

from data_modules.sources.captions import CocoCaptions, KarpathyCaptions
from data_modules.sources.conversations import LlavaConversations, LlavaPretrain
from data_modules.sources.source import Source
from data_modules.sources.vqa import VqaV2

__all__ = ["CocoCaptions", "KarpathyCaptions", "LlavaConversations", "LlavaPretrain", "Source", "VqaV2"]
