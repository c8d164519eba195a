from __future__ import annotations

from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from lightning_mllm.architectures.sphinx import TINY, Sphinx
from lightning_mllm.connectors.mixed import MixedConnector, pooled
from lightning_mllm.contracts import IGNORE, IMAGE_MARK, Batch, Sample, TokenKind, Turn
from lightning_mllm.interop import llama2_accessory
from lightning_mllm.language.causal import CausalLM
from lightning_mllm.language.generation import Decoding
from lightning_mllm.language.lm_loss import head, lm_hidden_states
from lightning_mllm.processing.chat import load_template
from lightning_mllm.processing.images import ImagePolicy
from lightning_mllm.training.initialise import build_empty
from lightning_mllm.training.stage import StageSettings
from lightning_mllm.vision.convnext import ConvNextTower
from lightning_mllm.vision.dino import DinoTower
from lightning_mllm.vision.mixture import MixedTower
from lightning_mllm.vision.qformer_tower import QFormerTower
from lightning_mllm.vision.tower import OpenClipTower
from tests.architectures.samples import ONE, OTHER, TEXT, TWO, Noise, batch_of, gradients, packed
from tests.architectures.sphinxes import CLOSE, SHAPES, built, spread

EVERY = pytest.mark.parametrize("shape", SHAPES)


@pytest.fixture(scope="module")
def nets() -> dict[str, Sphinx]:
    """With values that no start would give."""
    return {name: spread(built(**settings)).requires_grad_(True) for name, (settings, _) in SHAPES.items()}


@pytest.fixture(scope="module")
def module(nets: dict[str, Sphinx]) -> Sphinx:
    return nets["one view"]


# ---- what the language model is shown --------------------------------------------------------------------------------


@EVERY
def test_every_view_stands_between_the_learned_ends(nets: dict[str, Sphinx], shape: str) -> None:
    """Put together by hand from towers, projections and ends, as the released `encode_image` does."""
    module, (settings, counts) = nets[shape], SHAPES[shape]
    batch = batch_of(module, TWO, ONE)
    views = len(counts)
    assert batch.images.shape == (3 * views, 3, 16, 16) and batch.num_images == 3 * views
    pool = settings.get("connector", MixedConnector()).pool or (1, 1)
    towers: Any = module.net.vision.groups
    (queries,), (clip, conv, dino) = towers
    ends = [each.view(1, -1) for each in (module.net.image_boundary.begin, module.net.image_boundary.end)]
    shown: list[Tensor] = []
    for place, image in enumerate(batch.images):
        one, doubled = image[None], F.interpolate(image[None], size=(32, 32))
        groups = queries(one), torch.cat([clip(one), conv(doubled), dino(one)], 2)
        if place % views:
            groups = tuple(pooled(each, by) for each, by in zip(groups, pool, strict=True))
        projected = [project(each)[0] for project, each in zip(module.net.connector.projections, groups, strict=True)]
        view = torch.cat([ends[0], *projected, ends[1]])
        assert len(view) == counts[place % views]
        shown.append(view)
    expected = torch.cat(shown)
    visual = module.net.encode_images(batch)
    placed = module.net.merge_visual_embeddings(batch, visual)
    assert_close(placed[batch.kinds != TokenKind.TEXT], expected, **CLOSE)
    assert (placed[batch.kinds == TokenKind.IMAGE_BEGIN] == ends[0]).all()
    assert (placed[batch.kinds == TokenKind.IMAGE_END] == ends[1]).all()
    text = (batch.kinds == TokenKind.TEXT) & (batch.segments > 0)
    assert torch.equal(placed[text], module.net.language.get_input_embeddings()(batch.tokens)[text])


@EVERY
def test_images_stand_behind_the_begin_token(nets: dict[str, Sphinx], shape: str) -> None:
    module, total = nets[shape], sum(SHAPES[shape][1])
    (row,) = batch_of(module, TWO).kinds
    assert row[0] == TokenKind.TEXT and (row[1 : 2 * total + 1] != TokenKind.TEXT).all()
    assert row[1] == TokenKind.IMAGE_BEGIN and row[2 * total] == TokenKind.IMAGE_END
    assert (row[2 * total + 1 :] == TokenKind.TEXT).all()


@pytest.mark.parametrize(
    ("views", "pool", "tokens"),
    [(1, (), 291), (5, (), 1455), (10, (), 2910), (5, (1, 2), 291 + 4 * 99)],
    ids=["llama_ens", "llama_ens5", "llama_ens10", "llama_ens5p2"],
)
def test_sizes_are_those_of_the_released_models(views: int, pool: tuple[int, ...], tokens: int) -> None:
    """Slots of an image, and parameters of the projections and ends at LLaMA 2 13B's width."""
    module = Sphinx(
        vision=PUBLISHED,
        language=replace(TINY["language"], config={**TINY["language"].config, **THIRTEEN}),
        connector=MixedConnector(pool=pool),
        image=ImagePolicy(size=224, fit="pad", views=views),
        max_length=4096,
    )
    assert len(module.processor.mark_rows[IMAGE_MARK][0]) == tokens
    sizes = {
        name: sum(p.numel() for p in build_empty(module.components[name]).parameters())
        for name in ("connector", "image_boundary")
    }
    assert sizes == {"connector": 3_947_520 + 28_851_200, "image_boundary": 2 * 5120}


PUBLISHED = MixedTower(
    groups=[
        [QFormerTower()],
        [
            OpenClipTower(model="ViT-L-14-quickgelu", weights="openai", layer=-1, cls="keep", norm=True),
            ConvNextTower(),
            DinoTower(),
        ],
    ],
    size=224,
)
THIRTEEN = {"hidden_size": 5120, "num_attention_heads": 40, "num_key_value_heads": 40}


# ---- what is learned -------------------------------------------------------------------------------------------------


@EVERY
def test_the_end_of_an_image_predicts_the_first_text_token(nets: dict[str, Sphinx], shape: str) -> None:
    """The released code reads logits from the last visual position on, in place of the begin token's."""
    module, images = nets[shape], sum(SHAPES[shape][1])
    processor = copy(module.processor)
    processor.chat = load_template("cogvlm_caption", processor.tokenizer)
    batch = processor.collate([processor.encode(CAPTION)])
    text = batch.tokens[0, 1 + images :]
    assert batch.labels[0, 1 + images :].equal(text) and (batch.labels[0, : 1 + images] == IGNORE).all()
    hidden = lm_hidden_states(
        module.net.language, module.net.merge_visual_embeddings(batch, module.net.encode_images(batch)), batch
    )[0]
    last = images  # the begin token is at 0
    assert batch.kinds[0, last] == TokenKind.IMAGE_END and batch.kinds[0, last + 1] == TokenKind.TEXT
    logits = head(module.net.language)(hidden[last : last + len(text)])
    expected = F.cross_entropy(logits.float(), text)
    output = module(batch)
    assert output.count == len(text)
    assert_close(output.loss, expected, **CLOSE)
    # And it alone: the first character's score is a function of `end`'s hidden state.
    first = F.cross_entropy(logits[:1].float(), text[:1])
    only = replace(batch, labels=batch.labels.clone())
    only.labels[0, last + 2 :] = IGNORE
    assert_close(module(only).loss, first, **CLOSE)


CAPTION = Sample(
    id="caption",
    turns=(Turn(role="user", text="<image>"), Turn(role="assistant", text="A cube.")),
    images=(Noise(1),),
)


def test_of_a_conversation_answers_are_learned_with_their_end(module: Sphinx) -> None:
    batch = batch_of(module, ONE)
    learned = batch.tokens[0][batch.labels[0] != IGNORE]
    assert module.processor.tokenizer.decode(learned) == " A cube.\n###"


@EVERY
def test_padding_and_packing_change_nothing(nets: dict[str, Sphinx], shape: str) -> None:
    module = nets[shape]
    rows, row = batch_of(module, ONE, TEXT, TWO), packed(module, ONE, TEXT, TWO)
    assert row.segments.max() == 3 and len(row.tokens) == 1
    apart, together = module.net.logits(rows), module.net.logits(row)
    assert_close(together[0], apart[rows.segments > 0], **CLOSE)
    alone = batch_of(module, ONE)
    assert_close(apart[0, : alone.tokens.shape[1]], module.net.logits(alone)[0], **CLOSE)
    both, one, two, text = (module(batch_of(module, *each)) for each in ((ONE, TEXT, TWO), (ONE,), (TWO,), (TEXT,)))
    total = one.loss * one.count + two.loss * two.count + text.loss * text.count
    assert_close(both.loss * both.count, total, atol=1e-3, rtol=0)


def test_a_text_is_the_language_models(module: Sphinx) -> None:
    batch = batch_of(module, TEXT)
    assert batch.num_images == 0
    with torch.no_grad():
        mask = (batch.segments > 0).long()
        plain = module.net.language(input_ids=batch.tokens, attention_mask=mask, position_ids=batch.positions).logits
        assert_close(module.net.logits(batch), plain, **CLOSE)


@EVERY
def test_a_text_only_batch_gives_projections_and_ends_a_gradient_of_zero(shape: str) -> None:
    module = built(**SHAPES[shape][0], stage=StageSettings(name="pretrain"))
    found = gradients(module, batch_of(module, TEXT))
    assert set(found) == {name for name, p in module.net.named_parameters() if p.requires_grad}
    fusion = {name: gradient for name, gradient in found.items() if not name.startswith("language.")}
    assert len(fusion) == 10 and all((gradient == 0).all() for gradient in fusion.values())
    assert (found["language.lm_head.weight"] != 0).any()


@pytest.mark.parametrize("stage", Sphinx.stages)
def test_a_stage_trains_what_is_published_and_nothing_else(stage: str) -> None:
    module = Sphinx.tiny(stage=StageSettings(name=stage))
    module.configure_model()
    module.train()
    trained = {name for name, p in module.net.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in module.net.named_parameters() if name.split(".")[0] != "vision"}
    assert {name.split(".")[0] for name in trained} == {"connector", "image_boundary", "language"}
    found = gradients(module, batch_of(module, ONE, OTHER))
    assert {name for name, gradient in found.items() if (gradient != 0).any()} == trained


def test_towers_stay_in_eval_mode_the_q_formers_dropout_too() -> None:
    """Not so in the released code, whose Q-Former drops as the module around it is trained."""
    (queries, *_), *others = TINY["vision"].groups
    dropping = replace(queries, qformer=replace(queries.qformer, dropout=0.5))
    module = Sphinx.tiny(
        vision=replace(TINY["vision"], groups=[[dropping], *others]), stage=StageSettings(name="pretrain")
    )
    module.configure_model()
    module.train()
    assert module.net.language.training and not any(each.training for each in module.net.vision.modules())
    assert any(isinstance(each, nn.Dropout) and each.p == 0.5 for each in module.net.vision.modules())
    batch = batch_of(module, ONE)
    assert torch.equal(
        module.net.encode_images(batch)[TokenKind.IMAGE], module.net.encode_images(batch)[TokenKind.IMAGE]
    )


# ---- what is answered ------------------------------------------------------------------------------------------------


@EVERY
def test_answers_go_on_where_the_prompt_ends_whatever_stands_on_its_left(nets: dict[str, Sphinx], shape: str) -> None:
    """What is written with a cache is what the whole row, read at once, gives the highest score."""
    module, count = nets[shape], 5
    asked = (ONE, TWO, TEXT)
    together = batch_of(module, *asked, generate=True)
    with torch.no_grad():
        written = module.generate(together, Decoding(max_new_tokens=count))
        for place, each in enumerate(asked):
            alone = batch_of(module, each, generate=True)
            (answer,) = module.generate(alone, Decoding(max_new_tokens=count))
            assert answer == written[place]
            best = module.net.logits(extended(alone, answer))[0].argmax(-1)[-len(answer) - 1 :]
            assert best[:-1].tolist() == answer
            assert len(answer) == count or int(best[-1]) in module.processor.stop_rule.tokens


def extended(prompt: Batch, answer: list[int]) -> Batch:
    def padded(tensor: Tensor, value: int) -> Tensor:
        return F.pad(tensor, (0, len(answer)), value=value)

    return replace(
        prompt,
        tokens=torch.cat([prompt.tokens, torch.tensor([answer])], 1),
        labels=padded(prompt.labels, IGNORE),
        kinds=padded(prompt.kinds, TokenKind.TEXT),
        segments=padded(prompt.segments, 1),
        positions=torch.arange(prompt.tokens.shape[1] + len(answer))[None],
    )


def test_candidates_are_ranked_by_the_loss_of_their_answers(nets: dict[str, Sphinx]) -> None:
    module, texts = nets["five views, pooled"], ("red", "blue and green")
    turns = (Turn(role="user", text="<image>\nWhich colour?"),)
    asked = Sample(id="colours", turns=turns, images=(Noise(1),), candidates=texts)
    answered = [replace(asked, turns=(*turns, Turn(role="assistant", text=text))) for text in texts]
    with torch.no_grad():
        (found,) = module.likelihoods(batch_of(module, asked, generate=True))
        each = [module(batch_of(module, sample)) for sample in answered]
    assert found == pytest.approx([-float(output.loss * output.count) for output in each], rel=1e-5)


def test_an_image_changes_what_follows_it_and_nothing_else(module: Sphinx) -> None:
    batch = batch_of(module, ONE)
    changed = replace(batch, images=255 - batch.images)
    with torch.no_grad():
        before, after = module.net.logits(batch)[0], module.net.logits(changed)[0]
    # The begin token and `begin` come first.
    assert torch.equal(before[:2], after[:2]) and (before[2:] != after[2:]).any(1).all()


def test_parts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"image\.size: found 32, expected 16"):
        Sphinx.tiny(image=ImagePolicy(size=32, fit="pad"))
    with pytest.raises(ValueError, match=r"connector\.pool: found 2 for the 4 vectors of group 0"):
        Sphinx.tiny(image=ImagePolicy(size=16, fit="pad", views=5), connector=MixedConnector(pool=(2, 2)))
    small: Any = replace(TINY["language"], config={**TINY["language"].config, "vocab_size": 100})
    assert isinstance(small, CausalLM)
    with pytest.raises(ValueError, match="tokenizer has 259 tokens, expected at most 100"):
        Sphinx.tiny(language=small)
    module = built()
    batch = batch_of(module, ONE, TEXT)
    kinds = batch.kinds.clone()
    kinds[1, 3] = TokenKind.IMAGE_END
    with pytest.raises(ValueError, match=r"found 2 IMAGE_END slots for 1 vectors of 1 images.* 'Say something\.'"):
        module(replace(batch, kinds=kinds))


# ---- names -----------------------------------------------------------------------------------------------------------

BLOCK = [
    *(f"attention.w{each}" for each in "qkvo"),
    *(f"feed_forward.w{k}" for k in (1, 2, 3)),
    "attention_norm",
    "ffn_norm",
]
OWN = {
    *(f"{name}.weight" for name in ("tok_embeddings", "norm", "output")),
    *(f"layers.{n}.{name}.weight" for n in range(2) for name in BLOCK),
    *(f"{name}_proj.{k}.{kind}" for name in ("visual", "qformer") for k in (0, 1) for kind in ("weight", "bias")),
    "start_img",
    "end_img",
}
TOWERS = {
    "clip": "visual.transformer.resblocks.1.attn.in_proj_weight",
    "openclip_convnext_xxl": "stages.2.blocks.3.mlp.fc1.weight",
    "dinov2_vitg14": "blocks.1.attn.qkv.weight",
    "qformer": "vision_model.encoder.layers.0.self_attn.qkv.weight",
}
"""Of each tower a name of the released checkpoints."""


def test_the_authors_names_are_total_and_come_back_bit_for_bit(module: Sphinx) -> None:
    state, table = module.state_dict(), llama2_accessory.keys(module.components)
    theirs = dict(table.to_theirs(state.items()))
    plain = {name.removeprefix("llma.") for name in theirs}
    assert all(name.startswith("llma.") for name in theirs)
    assert {name for name in plain if name.split(".")[0] not in TOWERS} == OWN
    assert {f"{tower}.{name}" for tower, name in TOWERS.items()} < plain
    assert {"qformer.query_tokens", "qformer.qformer.layernorm.weight"} < plain
    assert {"openclip_convnext_xxl.head.norm.bias", "qformer.vision_model.post_layernorm.bias"} < plain
    assert torch.equal(theirs["llma.start_img"], module.net.image_boundary.begin)
    assert torch.equal(theirs["llma.visual_proj.1.bias"], state["connector.projections.1.norm.bias"])
    unused = ("clip.visual.proj", "clip.logit_scale", "dinov2_vitg14.mask_token", "qformer.language_projection.bias")
    given = {**theirs, **{f"llma.{name}": torch.ones(1) for name in (*unused, "rope.freqs")}}
    for back in (
        dict(table.to_ours(given)),
        {name: load() for name, load in table.lazily(given).items()},
    ):
        assert back.keys() == state.keys()
        assert [name for name, tensor in back.items() if not torch.equal(tensor, state[name])] == []


def test_a_checkpoint_of_the_authors_is_a_start(module: Sphinx, tmp_path: Path) -> None:
    """One file, as they save it; the language model's heads are turned by their own width."""
    path = tmp_path / "consolidated.00-of-01.model.pth"
    torch.save({"model": dict(llama2_accessory.keys(module.components).to_theirs(module.state_dict().items()))}, path)
    again = built(stage=StageSettings(name="instruct", init_from={str(path): 1.0}))
    assert set(again.provenance.values()) == {"stage.init_from"}
    batch = batch_of(module, ONE, TEXT)
    with torch.no_grad():
        assert torch.equal(again.net.logits(batch), module.net.logits(batch))


def test_heads_of_another_width_have_another_table(module: Sphinx) -> None:
    name, tensor = "language.model.layers.0.self_attn.q_proj.weight", torch.arange(256).view(256, 1)
    assert TINY["language"].config["hidden_size"] // TINY["language"].config["num_attention_heads"] == 16
    for components, second in ((module.components, 8), ({}, 64)):
        ((_, theirs),) = llama2_accessory.keys(components).to_theirs([(name, tensor)])
        assert theirs[:2].flatten().tolist() == [0, second]
