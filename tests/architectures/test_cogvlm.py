from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from lightning_mllm.architectures.cogvlm import FUSION, TINY, CogVLM
from lightning_mllm.contracts import IGNORE, IMAGE_MARK, Batch, ParamGroup, Sample, TokenKind, Turn
from lightning_mllm.interop.cogvlm import KEYS
from lightning_mllm.language.generation import Decoding
from lightning_mllm.language.lora import Lora
from lightning_mllm.language.visual_expert import vision_mask
from lightning_mllm.language.visual_expert_lm import VisualExpertLM
from lightning_mllm.processing.images import ImagePolicy
from lightning_mllm.training.freezing import match
from lightning_mllm.training.initialise import build_empty
from lightning_mllm.training.stage import StageSettings
from lightning_mllm.vision.eva2 import Eva2Tower
from lightning_mllm.vision.tower import TINY_TOWER
from lightning_mllm.weights.files import write_tensors
from tests.architectures.cogvlms import CLOSE, built, plain, positions, spread
from tests.architectures.samples import ONE, OTHER, TEXT, TWO, Noise, batch_of, gradients, packed
from tests.training.runs import fit, settings

BATCHES = {
    "one image": (ONE,),
    "two lengths": (ONE, OTHER),
    "two images in a row": (TWO, ONE),
    "an image and a text": (TEXT, OTHER),
}


@pytest.fixture(scope="module")
def copied() -> CogVLM:
    """As it starts: experts are copies of the language model."""
    return built()


@pytest.fixture(scope="module")
def trained() -> CogVLM:
    """With values that no start would give."""
    return spread(built()).requires_grad_(True)


@torch.no_grad()
def plain_logits(module: CogVLM, batch: Batch) -> Tensor:
    embeds = module.net.merge_visual_embeddings(batch, module.net.encode_images(batch))
    mask = (batch.segments > 0).long()
    return plain(module)(inputs_embeds=embeds, attention_mask=mask, position_ids=positions(batch)).logits


@pytest.mark.parametrize("name", BATCHES)
def test_experts_that_are_copies_are_the_language_model(copied: CogVLM, name: str) -> None:
    """At the same positions; the strongest test of routing (every token meets one of two equal sets of weights)."""
    batch = batch_of(copied, *BATCHES[name])
    real = batch.segments > 0
    with torch.no_grad():
        found = copied.net.logits(batch)
    assert_close(found[real], plain_logits(copied, batch)[real], **CLOSE)


def test_experts_of_their_own_change_all_that_sees_an_image_and_nothing_else() -> None:
    module = spread(built(), ".vision.")
    batch = batch_of(module, TEXT, ONE)
    with torch.no_grad():
        found, expected = module.net.logits(batch), plain_logits(module, batch)
    first = int(vision_mask(batch.kinds)[1].int().argmax())
    text, before = int((batch.segments[0] > 0).sum()), slice(0, first)
    assert first > 0
    assert_close(found[0, :text], expected[0, :text], **CLOSE)
    assert_close(found[1, before], expected[1, before], **CLOSE)
    changed = (found[1] - expected[1]).abs().amax(1) > 1e-3
    assert changed[first : int((batch.segments[1] > 0).sum())].all()


def test_a_text_is_the_language_models_bit_for_bit(trained: CogVLM) -> None:
    batch = batch_of(trained, TEXT)
    assert batch.num_images == 0
    with torch.no_grad():
        assert torch.equal(trained.net.logits(batch), plain_logits(trained, batch))


def test_begin_vectors_and_end_stand_in_their_slots(trained: CogVLM) -> None:
    batch = batch_of(trained, TWO, ONE)
    visual = trained.net.encode_images(batch)
    assert visual[TokenKind.IMAGE].shape == (3 * 4, 32)
    placed = trained.net.merge_visual_embeddings(batch, visual)
    assert torch.equal(placed[batch.kinds == TokenKind.IMAGE], visual[TokenKind.IMAGE])
    assert (placed[batch.kinds == TokenKind.IMAGE_BEGIN] == trained.net.image_boundary.begin.flatten()).all()
    assert (placed[batch.kinds == TokenKind.IMAGE_END] == trained.net.image_boundary.end.flatten()).all()
    text = (batch.kinds == TokenKind.TEXT) & (batch.segments > 0)
    assert torch.equal(placed[text], trained.net.language.get_input_embeddings()(batch.tokens)[text])


def test_a_slot_too_many_is_named(trained: CogVLM) -> None:
    batch = batch_of(trained, ONE, TEXT)
    kinds = batch.kinds.clone()
    kinds[1, 3] = TokenKind.IMAGE_END
    with pytest.raises(ValueError, match=r"found 2 IMAGE_END slots for 1 vectors of 1 images.* 'Say something\.'"):
        trained(replace(batch, kinds=kinds))


def test_padding_and_packing_change_nothing(trained: CogVLM) -> None:
    rows, row = batch_of(trained, ONE, TEXT, TWO), packed(trained, ONE, TEXT, TWO)
    assert row.segments.max() == 3 and len(row.tokens) == 1
    apart, together = trained.net.logits(rows), trained.net.logits(row)
    assert_close(together[0], apart[rows.segments > 0], **CLOSE)
    alone = batch_of(trained, ONE)
    assert_close(apart[0, : alone.tokens.shape[1]], trained.net.logits(alone)[0], **CLOSE)
    one, other = gradients(trained, rows), gradients(trained, row)
    for name, gradient in one.items():
        assert_close(other[name], gradient, **CLOSE)


def test_answers_go_on_where_the_prompt_ends_whatever_stands_on_its_left(trained: CogVLM) -> None:
    """What is written with a cache is what the whole row, read at once, gives the highest score."""
    count = 6
    together = batch_of(trained, ONE, TWO, TEXT, generate=True)
    with torch.no_grad():
        written = trained.generate(together, Decoding(max_new_tokens=count))
        for place, each in enumerate((ONE, TWO, TEXT)):
            alone = batch_of(trained, each, generate=True)
            (answer,) = trained.generate(alone, Decoding(max_new_tokens=count))
            assert answer == written[place]
            pad = lambda tensor, value, n=len(answer): F.pad(tensor, (0, n), value=value)  # noqa: E731
            whole = replace(
                alone,
                tokens=torch.cat([alone.tokens, torch.tensor([answer])], 1),
                labels=pad(alone.labels, IGNORE),
                kinds=pad(alone.kinds, TokenKind.TEXT),
                segments=pad(alone.segments, 1),
                positions=torch.cat([alone.positions, alone.positions[:, -1:] + torch.arange(1, len(answer) + 1)], 1),
            )
            best = trained.net.logits(whole)[0].argmax(-1)[-len(answer) - 1 :]
            assert best[:-1].tolist() == answer
            assert len(answer) == count or int(best[-1]) in trained.processor.stop_rule.tokens


def test_candidates_are_ranked_by_the_loss_of_their_answers(trained: CogVLM) -> None:
    texts = ("red", "blue and green")
    asked = Sample(
        id="colours",
        turns=(Turn(role="user", text="<image>\nWhich colour?"),),
        images=(Noise(1),),
        candidates=texts,
    )
    answered = [replace(asked, turns=(*asked.turns, Turn(role="assistant", text=text))) for text in texts]
    with torch.no_grad():
        (found,) = trained.likelihoods(batch_of(trained, asked, generate=True))
        each = [trained(batch_of(trained, sample)) for sample in answered]
    assert found == pytest.approx([-float(output.loss * output.count) for output in each], rel=1e-5)


def test_a_text_only_batch_gives_all_that_sees_a_gradient_of_zero() -> None:
    module = built(stage=StageSettings(name="chat"))
    found = gradients(module, batch_of(module, TEXT))
    assert set(found) == {name for name, p in module.net.named_parameters() if p.requires_grad}
    assert all((gradient == 0).all() for gradient in found.values())


EXPECTED = {
    "caption": {"connector", "image_boundary", "expert"},
    "grounding": {"connector", "image_boundary", "expert"},
    "chat": {"vision", "connector", "image_boundary", "expert"},
    "chat_lm": {"connector", "image_boundary", "expert", "language"},
    "chat_lora": {"lora", "vision lora"},
}
LORA = Lora(r=2, alpha=4, dropout=0.0)


def group(name: str) -> str:
    if name.startswith("language."):
        expert = "expert adapter" if ".lora_" in name else "expert"
        return expert if ".vision." in name else "lora" if ".lora_" in name else "language"
    return name.split(".")[0] + (" lora" if ".lora_" in name else "")


@pytest.mark.parametrize("stage", EXPECTED)
def test_a_stage_trains_what_is_published_and_nothing_else(stage: str) -> None:
    module = CogVLM.tiny(stage=StageSettings(name=stage, lora=LORA if stage == "chat_lora" else None))
    module.configure_model()
    trained = {name for name, p in module.net.named_parameters() if p.requires_grad}
    assert {group(name) for name in trained} == EXPECTED[stage]
    groups = {group(name) for name, p in module.net.named_parameters() if not p.requires_grad}
    assert groups.isdisjoint(EXPECTED[stage])
    assert any(each.training for each in module.net.vision.modules()) == (stage in ("chat", "chat_lora"))
    found = gradients(module, batch_of(module, ONE, OTHER))
    assert set(found) == trained
    silent = {name for name in trained if not (found[name] != 0).any()}
    # B of a fresh adapter is zero, and with it A's gradient.
    assert {name for name in silent if ".lora_A." not in name} == module.net.unused_parameters() & trained
    assert module.net.unused_parameters() and all(".layers.1." in name for name in module.net.unused_parameters())


def test_rates_are_parts_of_the_stages() -> None:
    rates = {}
    for stage in ("chat", "chat_lm"):
        module = CogVLM.tiny(stage=StageSettings(name=stage, lr=1e-5))
        module.configure_model()
        rates[stage] = {row.pattern: row.lr for row in module.freeze_rows() if row.trained}
    fusion = dict.fromkeys(FUSION, 1e-5)
    assert rates["chat"] == {"vision.*": pytest.approx(1e-6), **fusion}
    assert rates["chat_lm"] == {"language.*": pytest.approx(1e-6), **fusion}


@pytest.mark.parametrize("stage", ["caption", "chat_lora"])
def test_training_leaves_the_language_model_as_it_was(tmp_path: Path, stage: str) -> None:
    """Bit for bit; also proves that nobody waits for a gradient of what the last block writes at images."""
    lora = LORA if stage == "chat_lora" else None
    module = fit(
        tmp_path, stage=settings(stage, lora=lora), build=lambda stage: CogVLM.tiny(stage=stage), data={"steps": 3}
    )
    fresh = {name: tensor for name, tensor in built().state_dict().items() if group(name) in ("language", "expert")}
    changed = set()
    for name, tensor in module.state_dict().items():
        plainly = name.replace(".base_layer.", ".")
        if plainly in fresh and not torch.equal(tensor, fresh[plainly]):
            changed.add(group(plainly))
    assert changed == ({"expert"} if stage == "caption" else set())


def test_the_released_adapters_are_those_of_attention() -> None:
    """finetune_demo/finetune_cogvlm_demo.py: `matrix_A`, `matrix_B`, and the tower's feed-forward of some blocks."""
    table = {"language.*lora_*": ParamGroup(), "vision.*lora_*": ParamGroup(), "vision.blocks.1.mlp.*": ParamGroup()}
    module = CogVLM.tiny(stage=StageSettings(name="chat_lora", train=table, lora=LORA))
    module.configure_model()
    layers = {name.split(".lora_")[0] for name, p in module.net.named_parameters() if p.requires_grad}
    attention = {f"language.model.layers.{n}.self_attn.{each}_proj.language" for n in range(2) for each in "qkvo"}
    tower = {f"vision.blocks.{n}.attn.{each}" for n in range(2) for each in ("qkv", "proj")}
    others = {f"vision.blocks.1.mlp.{each}.{kind}" for each in ("fc1", "fc2") for kind in ("weight", "bias")}
    assert layers == attention | tower | others


def test_a_trained_adapter_is_folded_into_its_language_model(tmp_path: Path) -> None:
    build: Any = lambda stage: CogVLM.tiny(stage=stage)  # noqa: E731
    module = fit(tmp_path / "lora", stage=settings("chat_lora", lora=LORA), build=build, data={"steps": 3})
    after = CogVLM.tiny(stage=settings("caption", train={}, init_from={"lora": 1.0}))
    after.runs = str(tmp_path)
    after.configure_model()
    assert not any("lora" in name for name in after.state_dict())
    batch = batch_of(after, ONE, TEXT)
    with torch.no_grad():
        assert_close(after.eval().net.logits(batch), module.eval().net.logits(batch), **CLOSE)


# ---- names and sizes -------------------------------------------------------------------------------------------------

BLOCK = [
    "input_layernorm.weight",
    "post_attention_layernorm.weight",
    *(
        f"self_attn.{expert}_expert_{part}.weight"
        for expert in ("vision", "language")
        for part in ("query_key_value", "dense")
    ),
    *(f"mlp.{expert}_mlp.{part}_proj.weight" for expert in ("vision", "language") for part in ("gate", "up", "down")),
]
TOWER_BLOCK = [
    f"{part}.{kind}"
    for part in (
        "input_layernorm",
        "post_attention_layernorm",
        "attention.query_key_value",
        "attention.dense",
        "mlp.fc1",
        "mlp.fc2",
    )
    for kind in ("weight", "bias")
]
PUBLISHED = {
    "lm_head.weight",
    *(f"model.{name}" for name in ("embed_tokens.weight", "norm.weight")),
    *(f"model.layers.{n}.{name}" for n in range(2) for name in BLOCK),
    *(f"model.vision.{name}" for name in ("boi", "eoi")),
    *(
        f"model.vision.linear_proj.{name}"
        for name in (
            "linear_proj.weight",
            "norm1.weight",
            "norm1.bias",
            "gate_proj.weight",
            "dense_h_to_4h.weight",
            "dense_4h_to_h.weight",
        )
    ),
    *(
        f"model.vision.patch_embedding.{name}"
        for name in ("cls_embedding", "position_embedding.weight", "proj.weight", "proj.bias")
    ),
    *(f"model.vision.transformer.layers.{n}.{name}" for n in range(2) for name in TOWER_BLOCK),
}
"""Of the released remote code, for two blocks of each."""


def test_the_authors_names_are_total_and_come_back_bit_for_bit(trained: CogVLM) -> None:
    state = trained.state_dict()
    theirs = dict(KEYS.to_theirs(state.items()))
    assert set(theirs) == PUBLISHED
    fused = theirs["model.layers.1.self_attn.vision_expert_query_key_value.weight"]
    assert torch.equal(fused[32:64], state["language.model.layers.1.self_attn.k_proj.vision.weight"])
    assert theirs["model.vision.boi"].shape == (1, 1, 32)
    constant = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    for back in (
        dict(KEYS.to_ours({**theirs, **constant})),
        {name: load() for name, load in KEYS.lazily({**theirs, **constant}).items()},
    ):
        assert back.keys() == state.keys()
        assert [name for name, tensor in back.items() if not torch.equal(tensor, state[name])] == []


def test_a_published_folder_is_a_start(trained: CogVLM, tmp_path: Path) -> None:
    write_tensors(tmp_path / "model.safetensors", dict(KEYS.to_theirs(trained.state_dict().items())))
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["CogVLMForCausalLM"]}))
    module = built(stage=StageSettings(name="chat", init_from={str(tmp_path): 1.0}))
    assert set(module.provenance.values()) == {"stage.init_from"}
    for name, tensor in trained.state_dict().items():
        assert torch.equal(module.state_dict()[name], tensor), name


def test_sizes_are_the_published_ones() -> None:
    """Sec. 2.1 and 2.2: of 17B parameters 6.5B are the experts'."""
    seven = {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 32000,
    }
    net = CogVLM(vision=Eva2Tower(weights=None), language=VisualExpertLM(config=seven))
    parts = {name: build_empty(spec) for name, spec in net.components.items()}
    sizes = {f"{part}.{name}": p.numel() for part, each in parts.items() for name, p in each.named_parameters()}
    found: dict[str, int] = {}
    for name, pattern in match(sizes, CogVLM.stages["caption"].train).items():
        found[pattern] = found.get(pattern, 0) + sizes[name]
    assert found == {"connector.*": 142_614_528, "image_boundary.*": 2 * 4096, "language.*.vision.*": 6_476_005_376}
    assert round(sum(sizes.values()) / 1e9, 1) == 17.6
    assert net.processor.vectors_per_image == 35 * 35 and len(net.processor.mark_rows[IMAGE_MARK][0]) == 1227


def test_a_tower_of_open_clip_will_do() -> None:
    module = built(vision=replace(TINY_TOWER, cls="drop"), stage=StageSettings(name="chat"))
    found = gradients(module, batch_of(module, TWO))
    assert (found["vision.conv1.weight"] != 0).any()


def test_parts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"image\.size: found 32, expected 16"):
        CogVLM.tiny(image=ImagePolicy(size=32, fit="squash"))
    small = replace(TINY["language"], config={**TINY["language"].config, "vocab_size": 100})
    with pytest.raises(ValueError, match="tokenizer has 259 tokens, expected at most 100"):
        CogVLM.tiny(language=small)
