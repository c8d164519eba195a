"""Where samples come from: one class for each published file format, its constructor arguments being YAML."""

from data_modules.sources.any_conversations import Conversations
from data_modules.sources.aokvqa import AOkVqa
from data_modules.sources.blind import Blind
from data_modules.sources.blip_captions import PlainCaptions, PrefixCaptions
from data_modules.sources.caption_sets import TextCaps, WebCapFilt
from data_modules.sources.captions import CocoCaptions, KarpathyCaptions
from data_modules.sources.choices import IconQa, ScienceQa
from data_modules.sources.conversations import LlavaConversations, LlavaPretrain
from data_modules.sources.detection import CocoDetection, CocoObjects
from data_modules.sources.dialogue import VisualDialog
from data_modules.sources.documents import ChartQa, DocVqa
from data_modules.sources.grounded_captions import GroundedCaptions
from data_modules.sources.held_out_captions import Flickr30k, NoCaps
from data_modules.sources.llava_bench import LlavaBench
from data_modules.sources.mm_vet import MmVet
from data_modules.sources.mmbench import MmBench
from data_modules.sources.mme import Mme
from data_modules.sources.ocr import OcrVqa
from data_modules.sources.open_questions import Gqa, TextVqa, VizWiz
from data_modules.sources.pope import Pope, PopeObjects
from data_modules.sources.pose import CocoPose
from data_modules.sources.question_generation import QuestionGeneration
from data_modules.sources.refcoco import RefCoco, RefCocoRefs
from data_modules.sources.scene_text import SceneText
from data_modules.sources.seed_bench import SeedBench
from data_modules.sources.source import Source
from data_modules.sources.statements import HatefulMemes, Vsr
from data_modules.sources.text_files import TextFiles, TextLines
from data_modules.sources.text_table import TextTable
from data_modules.sources.video import IVqa, MsrvttQa, MsvdQa
from data_modules.sources.visual_genome import (
    VisualGenomeObjects,
    VisualGenomeQa,
    VisualGenomeRegions,
    VisualGenomeRelations,
)
from data_modules.sources.vqa import OkVqa, VqaV2
from data_modules.sources.web_captions import WebCaptions

__all__ = [
    "AOkVqa",
    "Blind",
    "ChartQa",
    "CocoCaptions",
    "CocoDetection",
    "CocoObjects",
    "CocoPose",
    "Conversations",
    "DocVqa",
    "Flickr30k",
    "Gqa",
    "GroundedCaptions",
    "HatefulMemes",
    "IVqa",
    "IconQa",
    "KarpathyCaptions",
    "LlavaBench",
    "LlavaConversations",
    "LlavaPretrain",
    "MmBench",
    "MmVet",
    "Mme",
    "MsrvttQa",
    "MsvdQa",
    "NoCaps",
    "OcrVqa",
    "OkVqa",
    "PlainCaptions",
    "Pope",
    "PopeObjects",
    "PrefixCaptions",
    "QuestionGeneration",
    "RefCoco",
    "RefCocoRefs",
    "SceneText",
    "ScienceQa",
    "SeedBench",
    "Source",
    "TextCaps",
    "TextFiles",
    "TextLines",
    "TextTable",
    "TextVqa",
    "VisualDialog",
    "VisualGenomeObjects",
    "VisualGenomeQa",
    "VisualGenomeRegions",
    "VisualGenomeRelations",
    "VizWiz",
    "VqaV2",
    "Vsr",
    "WebCapFilt",
    "WebCaptions",
]
