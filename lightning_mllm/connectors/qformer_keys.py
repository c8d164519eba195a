"""Names of a Q-Former's tensors here, in BERT, in transformers (BLIP-2, InstructBLIP) and in LAVIS."""

from __future__ import annotations

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


BLIP2_KEYS = KeyMap(
    [
        ("queries", "query_tokens"),
        *KeyMap(_embeddings("qformer.layernorm", "embeddings")).table,
        *KeyMap(_layers("attention")).under("", "qformer.").table,
    ]
)
"""`QFormer` <-> what `Blip2ForConditionalGeneration` and `Blip2ForImageTextRetrieval` have of it on disk."""

INSTRUCTBLIP_KEYS = KeyMap(
    [
        ("queries", "query_tokens"),
        *KeyMap(_embeddings("embeddings.layernorm", "embeddings")).under("", "qformer.").table,
        *KeyMap(_layers("attention")).under("", "qformer.").table,
    ]
)
"""`QFormer` <-> what `InstructBlipForConditionalGeneration` has of it on disk."""

LAVIS_KEYS = KeyMap(
    [
        ("queries", "query_tokens"),
        Rule(ours=None, theirs=("Qformer.bert.embeddings.position_ids",)),
        *KeyMap([*_embeddings("embeddings.LayerNorm", "embeddings"), *_layers("self")])
        .under("", "Qformer.bert.")
        .table,
    ]
)
"""`QFormer` <-> LAVIS, whose models call it `Qformer`."""
