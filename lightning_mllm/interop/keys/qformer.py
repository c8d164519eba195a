"""Names of a Q-Former's tensors, and of its first heads', here and in BERT, transformers and LAVIS."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor

from lightning_mllm.weights.keymap import KeyMap, Rule, RuleLike

TEXT, QUERY_TWIN = ".text_feed_forward.", ".query_feed_forward."


def _layers(inner: str) -> list[RuleLike]:
    """A block's lines; `inner` is what the projections of attention stand below."""
    ours, theirs = "layers.{n}.", "encoder.layer.{n}."
    lines: list[RuleLike] = []
    for here, there in (("self_attention", "attention"), ("cross_attention", "crossattention")):
        lines += [
            (f"{ours}{here}.{name}.{{...}}", f"{theirs}{there}.{inner}.{name}.{{...}}")
            for name in ("query", "key", "value")
        ]
        lines += [
            (f"{ours}{here}.out.{{...}}", f"{theirs}{there}.output.dense.{{...}}"),
            (f"{ours}{here}.norm.{{...}}", f"{theirs}{there}.output.LayerNorm.{{...}}"),
        ]
    for here, there in (("query_feed_forward", "_query"), ("text_feed_forward", "")):
        lines += [
            (f"{ours}{here}.up.{{...}}", f"{theirs}intermediate{there}.dense.{{...}}"),
            (f"{ours}{here}.down.{{...}}", f"{theirs}output{there}.dense.{{...}}"),
            (f"{ours}{here}.norm.{{...}}", f"{theirs}output{there}.LayerNorm.{{...}}"),
        ]
    return lines


def _embeddings(norm: str, tables: str) -> list[RuleLike]:
    return [
        ("norm.{...}", f"{norm}.{{...}}"),
        ("words.{...}", f"{tables}.word_embeddings.{{...}}"),
        ("positions.{...}", f"{tables}.position_embeddings.{{...}}"),
    ]


BERT_KEYS = KeyMap(
    [
        Rule(ours=None, theirs=("embeddings.token_type_embeddings.weight",)),
        Rule(ours=None, theirs=("embeddings.position_ids",)),
        Rule(ours=None, theirs=("pooler.{...}",)),
        Rule(ours=None, theirs=("cls.{...}",)),
        *_embeddings("embeddings.LayerNorm", "embeddings"),
        *_layers("self"),
    ]
)
"""`QFormer` <-> `BertModel`; see `plain_bert` for the other spellings."""


def plain_bert(name: str) -> str:
    """A tensor of BERT as `BertModel` calls it: files of models with a head have a prefix, old ones gamma and beta."""
    name = name.removeprefix("bert.")
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


_IN_TRANSFORMERS = KeyMap(_layers("attention")).under("", "qformer.").table

BLIP2_QFORMER_KEYS = KeyMap(
    [
        ("queries", "query_tokens"),
        Rule(ours=None, theirs=("embeddings.position_ids",)),
        *_embeddings("qformer.layernorm", "embeddings"),
        *_IN_TRANSFORMERS,
    ]
)
"""`QFormer` <-> what `Blip2ForConditionalGeneration` and `Blip2ForImageTextRetrieval` have of it on disk."""

INSTRUCTBLIP_QFORMER_KEYS = KeyMap(
    [
        ("queries", "query_tokens"),
        Rule(ours=None, theirs=("qformer.embeddings.position_ids",)),
        *_embeddings("qformer.embeddings.layernorm", "qformer.embeddings"),
        *_IN_TRANSFORMERS,
    ]
)
"""`QFormer` <-> what `InstructBlipForConditionalGeneration` has of it on disk; see `with_last_text`."""

LAVIS_QFORMER_KEYS = KeyMap(
    [
        ("queries", "query_tokens"),
        Rule(ours=None, theirs=("Qformer.bert.embeddings.position_ids",)),
        *KeyMap([*_embeddings("embeddings.LayerNorm", "embeddings"), *_layers("self")])
        .under("", "Qformer.bert.")
        .table,
    ]
)
"""`QFormer` <-> LAVIS."""

LAVIS_HEADS_KEYS = KeyMap(
    [
        *((f"{name}.{{...}}", f"{name}.{{...}}") for name in ("vision_proj", "text_proj", "itm_head")),
        ("temperature", "temp", (lambda ours: ours.reshape(()), lambda theirs: theirs.reshape(1))),
        ("transform.{...}", "Qformer.cls.predictions.transform.dense.{...}"),
        ("norm.{...}", "Qformer.cls.predictions.transform.LayerNorm.{...}"),
        ("bias", "Qformer.cls.predictions.bias"),
        # The table of words and the bias once more.
        Rule(ours=None, theirs=("Qformer.cls.predictions.decoder.{...}",)),
    ]
)
"""`AlignmentHeads` <-> LAVIS's first stage."""

BLIP2_HEADS_KEYS = KeyMap(
    [
        ("vision_proj.{...}", "vision_projection.{...}"),
        ("text_proj.{...}", "text_projection.{...}"),
        ("itm_head.{...}", "itm_head.{...}"),
    ]
)
"""What `Blip2ForImageTextRetrieval` has of `AlignmentHeads`: no temperature, and none of the head of captions."""


def with_last_text(tensors: Iterable[tuple[str, Tensor]], layers: int) -> Iterator[tuple[str, Tensor]]:
    """An instructed Q-Former's tensors, and a feed-forward for the text of its last block.

    Other layouts have one there though nothing comes of it; it becomes a copy of the queries', its twin at the start.
    """
    last = f"layers.{layers - 1}{QUERY_TWIN}"
    for name, tensor in tensors:
        yield name, tensor
        if f".{last}" in f".{name}":
            yield name.replace(QUERY_TWIN, TEXT), tensor.clone()
