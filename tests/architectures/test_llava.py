from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.testing import assert_close
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from lightning_mllm.architectures.llava import TINY, LLaVA
from lightning_mllm.connectors.projector import LinearConnector, MlpConnector
from lightning_mllm.contracts import Batch, TokenKind
from lightning_mllm.inference import Model
from lightning_mllm.interop import hf_llava, llava_original
from lightning_mllm.language.generation import Decoding
from lightning_mllm.language.lm_loss import head, lm_hidden_states
from lightning_mllm.language.lora import Lora
from lightning_mllm.processing.images import ImagePolicy
from lightning_mllm.training.stage import StageSettings
from lightning_mllm.weights.files import TensorFiles, write_tensors
from tests.architectures.samples import ONE, OTHER, TEXT, TWO, batch_of, gradients, packed, sample

IMAGE_TOKEN = 271
CLOSE: dict[str, Any] = {"atol": 1e-5, "rtol": 0.0}


def built(**settings: Any) -> LLaVA:
    module = LLaVA.tiny(**settings)
    module.configure_model()
    return module.eval()


def reference(act: str = "gelu", depth: int = 3) -> Any:
    """transformers' own, of the sizes of `tiny`, with values that no initialisation rule has made small."""
    text = {key: value for key, value in TINY["language"].config.items() if key != "model_type"}
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=128,
        num_hidden_layers=depth,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
        hidden_act="quick_gelu",
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(**text),
        image_token_index=IMAGE_TOKEN,
        image_seq_length=4,
        projector_hidden_act=act,
    )
    model = LlavaForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.eval()


def on_disk(name: str) -> str:
    """A name in transformers' memory as it is written to files."""
    for memory, disk in (
        ("model.language_model.", "language_model.model."),
        ("model.", ""),
        ("lm_head.", "language_model.lm_head."),
    ):
        if name.startswith(memory):
            return disk + name.removeprefix(memory)
    raise AssertionError(name)


def their_inputs(batch: Batch) -> dict[str, Any]:
    """What transformers' model takes for our batch."""
    tower = TINY["vision"]
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (tower.mean, tower.std))
    inputs = {
        "input_ids": batch.tokens.masked_fill(batch.kinds == TokenKind.IMAGE, IMAGE_TOKEN),
        "attention_mask": (batch.segments > 0).long(),
    }
    if batch.num_images:
        inputs["pixel_values"] = (batch.images / 255 - mean) / std
    return inputs


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[LLaVA, Any]:
    """Ours and theirs with the same weights, taken from the files that transformers writes."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("llava")
    theirs = reference()
    theirs.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    ours = built()
    state = dict(hf_llava.KEYS.to_ours(TensorFiles(folder), config))
    ours.load_state_dict(state, strict=True)
    return ours.requires_grad_(True), theirs


BATCHES = {
    "one image": (ONE,),
    "two lengths": (ONE, OTHER),
    "two images in a row": (TWO, ONE),
    "an image and a text": (TEXT, OTHER),
    "text alone": (TEXT,),
}


@pytest.mark.parametrize("name", BATCHES)
def test_parity_with_transformers(pair: tuple[LLaVA, Any], name: str) -> None:
    ours, theirs = pair
    batch = batch_of(ours, *BATCHES[name])
    inputs = their_inputs(batch)
    if batch.num_images:
        pixels = inputs["pixel_values"]
        seen = theirs.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        assert_close(ours.net.vision(batch.images), seen, **CLOSE)
        projected = theirs.model.get_image_features(pixels, vision_feature_layer=-2).pooler_output
        assert_close(ours.net.encode_images(batch)[TokenKind.IMAGE], torch.cat(list(projected)), **CLOSE)

    expected = theirs(**inputs, labels=batch.labels)
    real = batch.segments > 0
    assert_close(logits(ours, batch)[real], expected.logits[real], **CLOSE)
    output = ours(batch)
    assert_close(output.loss, expected.loss, **CLOSE)
    assert output.count == (batch.labels[:, 1:] != -100).sum()

    theirs.zero_grad()
    expected.loss.backward()
    found = gradients(ours, batch)
    wanted: dict[str, Tensor] = {
        on_disk(n): torch.zeros_like(p) if p.grad is None else p.grad for n, p in theirs.named_parameters()
    }
    matched = dict(hf_llava.KEYS.to_ours(wanted, theirs.config.to_dict()))
    assert set(found) == set(matched)
    for parameter, gradient in found.items():
        assert_close(gradient, matched[parameter], **CLOSE, msg=lambda text, p=parameter: f"{p}: {text}")


def logits(module: LLaVA, batch: Batch) -> Tensor:
    embeds = module.net.merge_visual_embeddings(batch, module.net.encode_images(batch))
    return head(module.net.language)(lm_hidden_states(module.net.language, embeds, batch))


def test_greedy_answers_are_those_of_transformers(pair: tuple[LLaVA, Any]) -> None:
    ours, theirs = pair
    batch = batch_of(ours, ONE, OTHER, TEXT, generate=True)
    with torch.no_grad():
        mine = ours.generate(batch, Decoding(max_new_tokens=8))
        written: Any = theirs.generate(
            **their_inputs(batch), max_new_tokens=8, do_sample=False, eos_token_id=2, pad_token_id=0
        )
    for row, other in zip(mine, written[:, batch.tokens.shape[1] :].tolist(), strict=True):
        assert row == other[: len(row)] and (len(row) == 8 or other[len(row)] == 2)


def test_files_come_back_bit_for_bit(pair: tuple[LLaVA, Any], tmp_path: Path) -> None:
    ours, theirs = pair
    classic = dict(hf_llava.KEYS.to_theirs(ours.state_dict().items()))
    assert "vision_tower.vision_model.encoder.layers.1.self_attn.k_proj.weight" in classic
    assert "language_model.model.layers.0.mlp.up_proj.weight" in classic
    back = dict(hf_llava.KEYS.to_ours(classic, theirs.config.to_dict()))
    assert back.keys() == ours.state_dict().keys()
    for name, tensor in ours.state_dict().items():
        assert torch.equal(back[name], tensor), name
    # transformers reads the classic layout too; only what our net does not have is new.
    write_tensors(tmp_path / "model.safetensors", classic)
    theirs.config.save_pretrained(tmp_path)
    loaded: Any = LlavaForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    read, report = loaded
    missing = {name for name in report["missing_keys"] if "layers.2" not in name and "post_layernorm" not in name}
    assert not missing and not report["unexpected_keys"] and not report["mismatched_keys"]
    assert torch.equal(read.lm_head.weight, theirs.lm_head.weight)


def test_a_linear_connector_reads_its_folder_and_the_authors_files() -> None:
    ours = built(connector=LinearConnector())
    config = reference("linear").config.to_dict()
    files = {
        "multi_modal_projector.linear_1.weight": torch.ones(32, 32),
        "multi_modal_projector.linear_1.bias": torch.ones(32),
        "multi_modal_projector.linear_2.weight": torch.eye(32),
        "multi_modal_projector.linear_2.bias": torch.zeros(32),
    }
    assert set(dict(hf_llava.KEYS.to_ours(files, config))) == {"connector.linear.weight", "connector.linear.bias"}
    authors = {"model.mm_projector.weight": torch.ones(32, 32), "model.mm_projector.bias": torch.ones(32)}
    for name, tensor in llava_original.KEYS.to_ours(authors):
        ours.net.get_parameter(name).data.copy_(tensor)


@pytest.mark.parametrize("connector", [LinearConnector(), MlpConnector(depth=2), MlpConnector(depth=3)])
def test_the_authors_names_are_total(connector: LinearConnector | MlpConnector) -> None:
    ours = built(connector=connector)
    state = ours.state_dict()
    if isinstance(connector, MlpConnector) and connector.depth == 3:
        with pytest.raises(ValueError, match=r"'connector\.linear_3\.weight' has no name in the other layout"):
            dict(llava_original.KEYS.to_theirs(state.items()))
        return
    theirs = dict(llava_original.KEYS.to_theirs(state.items()))
    assert "model.embed_tokens.weight" in theirs
    back = dict(llava_original.KEYS.to_ours(theirs))
    assert {name: torch.equal(tensor, state[name]) for name, tensor in back.items()} == dict.fromkeys(state, True)


def test_of_the_authors_files_what_is_not_used_is_left_out() -> None:
    layer = "model.vision_tower.vision_tower.vision_model.encoder.layers.{}.layer_norm1.bias"
    files = {
        layer.format(22): torch.ones(1),
        layer.format(23): torch.ones(1),
        "model.vision_tower.vision_tower.vision_model.post_layernorm.bias": torch.ones(1),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(1),
        "model.norm.weight": torch.ones(1),
    }
    used = {"vision.transformer.resblocks.22.ln_1.bias", "language.model.norm.weight"}
    assert set(dict(llava_original.KEYS.to_ours(files, {"mm_vision_select_layer": -2}))) == used
    last = {"vision.transformer.resblocks.23.ln_1.bias"}
    assert set(dict(llava_original.KEYS.to_ours(files, {"mm_vision_select_layer": -1}))) == used | last


@pytest.mark.parametrize("connector", [LinearConnector(), MlpConnector()])
def test_padding_changes_nothing(connector: LinearConnector | MlpConnector) -> None:
    module = built(connector=connector)
    alone, padded = batch_of(module, ONE), batch_of(module, ONE, OTHER)
    length = alone.tokens.shape[1]
    with torch.no_grad():
        assert_close(logits(module, padded)[0, :length], logits(module, alone)[0], **CLOSE)
        both, one, two = (module(batch_of(module, *each)) for each in ((ONE, OTHER), (ONE,), (OTHER,)))
    assert both.count == one.count + two.count
    assert_close(both.loss * both.count, one.loss * one.count + two.loss * two.count, atol=1e-4, rtol=0)


def test_left_and_right_padding_answer_alike() -> None:
    module = built()
    with torch.no_grad():
        together = module.generate(batch_of(module, ONE, OTHER, generate=True), Decoding(max_new_tokens=6))
        apart = [
            module.generate(batch_of(module, each, generate=True), Decoding(max_new_tokens=6))[0]
            for each in (ONE, OTHER)
        ]
    assert together == apart


def test_packed_segments_are_separate_rows() -> None:
    module = built().requires_grad_(True)
    rows, row = batch_of(module, ONE, TEXT, TWO), packed(module, ONE, TEXT, TWO)
    assert row.segments.max() == 3 and row.tokens.shape[0] == 1
    assert_close(logits(module, row)[0], logits(module, rows)[rows.segments > 0], **CLOSE)
    apart, together = gradients(module, rows), gradients(module, row)
    assert module(rows).count == module(row).count
    for name, gradient in apart.items():
        assert_close(together[name], gradient, **CLOSE)


@pytest.mark.parametrize("stage", ["align", "instruct"])
def test_a_text_only_batch_gives_the_connector_a_gradient_of_zero(stage: str) -> None:
    module = built(stage=StageSettings(name=stage))
    batch = batch_of(module, TEXT)
    assert batch.num_images == 0 and len(batch.images) == 1
    found = gradients(module, batch)
    connector = {name: gradient for name, gradient in found.items() if name.startswith("connector.")}
    assert len(connector) == 4 and all((gradient == 0).all() for gradient in connector.values())
    assert stage == "align" or (found["language.lm_head.weight"] != 0).any()


def test_an_image_changes_only_what_follows_it() -> None:
    module = built()
    batch = batch_of(module, ONE)
    changed = replace(batch, images=255 - batch.images)
    first = int((batch.kinds == TokenKind.IMAGE)[0].int().argmax())
    with torch.no_grad():
        before, after = logits(module, batch)[0], logits(module, changed)[0]
    assert torch.equal(before[:first], after[:first])
    assert (before[first:] != after[first:]).any(1).all()


def test_images_go_to_their_own_slots() -> None:
    module = built()
    batch = batch_of(module, TWO, ONE)
    visual = module.net.encode_images(batch)
    placed = module.net.merge_visual_embeddings(batch, visual)
    assert torch.equal(placed[batch.kinds == TokenKind.IMAGE], visual[TokenKind.IMAGE])
    text = (batch.kinds == TokenKind.TEXT) & (batch.segments > 0)
    assert torch.equal(placed[text], module.net.language.get_input_embeddings()(batch.tokens)[text])


def test_a_slot_too_many_is_named() -> None:
    module = built()
    batch = batch_of(module, ONE, TEXT)
    kinds = batch.kinds.clone()
    kinds[1, 3] = TokenKind.IMAGE
    with pytest.raises(ValueError, match=r"found 5 IMAGE slots for 4 vectors of 1 images.* 'Say something\.'"):
        module(replace(batch, kinds=kinds))


EXPECTED = {
    "align": {"connector"},
    "instruct": {"connector", "language"},
    "instruct_lora": {"connector", "lora"},
}


@pytest.mark.parametrize("stage", EXPECTED)
def test_a_stage_trains_what_is_published_and_nothing_else(stage: str) -> None:
    lora = Lora(r=2, alpha=4, dropout=0.0) if stage == "instruct_lora" else None
    module = LLaVA.tiny(stage=StageSettings(name=stage, lora=lora))
    module.configure_model()
    trained = {
        "lora" if ".lora_" in n else n.split(".")[0] for n, p in module.net.named_parameters() if p.requires_grad
    }
    assert trained == EXPECTED[stage]
    assert not any(each.training for each in module.net.vision.modules())
    found = gradients(module, batch_of(module, ONE, OTHER))
    silent = {n for n, p in module.net.named_parameters() if p.requires_grad and not (found[n] != 0).any()}
    # B of a fresh adapter is zero, and with it A's gradient.
    assert all(".lora_A." in name for name in silent)
    assert set(found) == {n for n, p in module.net.named_parameters() if p.requires_grad}


def test_sharegpt4v_trains_what_its_code_unlocks_but_for_the_block_that_is_not_read() -> None:
    """The rule of `unlock_vit` (ShareGPT4V, share4v/train/train.py:808, from layer 12) on transformers' own names."""
    theirs = reference(depth=24)
    unlocked = set()
    for name, _ in theirs.named_parameters():
        _, tower, rest = name.partition("vision_tower.")
        _, block, number = rest.partition("encoder.layers.")
        if not tower or (block and int(number.split(".")[0]) >= 12):
            unlocked.add(name)
    state = {on_disk(name): parameter for name, parameter in theirs.named_parameters() if name in unlocked}
    read = {name: each for name, each in state.items() if ".encoder.layers.23." not in name}
    assert len(state) - len(read) == 16
    vision = {**(TINY["vision"].config or {})["vision_cfg"], "layers": 24}
    tower = replace(TINY["vision"], config={**(TINY["vision"].config or {}), "vision_cfg": vision})
    module = built(vision=tower, stage=StageSettings(name="pretrain"))
    trained = {name for name, parameter in module.net.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in hf_llava.KEYS.to_ours(read, theirs.config.to_dict())}
    found = gradients(module, batch_of(module, ONE, OTHER))
    assert set(found) == trained and all((gradient != 0).any() for gradient in found.values())


def test_biases_of_adapted_layers_are_trained_where_it_is_said() -> None:
    lora = Lora(r=2, alpha=4, dropout=0.0, bias="lora_only", targets=("q_proj",))
    biased = replace(TINY["language"], config={**TINY["language"].config, "attention_bias": True})
    module = LLaVA.tiny(language=biased, stage=StageSettings(name="instruct_lora", lora=lora))
    module.configure_model()
    trained = {name.split(".self_attn.")[-1] for name in module.trained if name.startswith("language.")}
    assert trained == {
        f"q_proj.{each}" for each in ("base_layer.bias", "lora_A.default.weight", "lora_B.default.weight")
    }
    with pytest.raises(ValueError, match=r"pattern '\*\.base_layer\.bias' matches no parameter"):
        LLaVA.tiny(stage=StageSettings(name="instruct_lora", lora=lora)).configure_model()


def test_fresh_adapters_change_nothing() -> None:
    plain = built()
    adapted = built(stage=StageSettings(name="instruct_lora", lora=Lora(r=2, alpha=4, dropout=0.0)))
    batch = batch_of(plain, ONE)
    with torch.no_grad():
        assert torch.equal(plain(batch).loss, adapted(batch).loss)


def test_answers_are_text_and_the_same_each_time() -> None:
    module = built(decoding={"": Decoding(max_new_tokens=4)})
    batch = batch_of(module, ONE, TEXT, generate=True)
    with torch.no_grad():
        answers = module.answers(batch)
        assert answers == module.answers(batch) and len(answers) == 2


def test_two_builds_are_one_net() -> None:
    one, two = built(), built()
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, two.state_dict()[name]), name


def test_parts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"image\.size: found 32, expected 16"):
        LLaVA.tiny(image=ImagePolicy(size=32, fit="pad"))
    small = replace(TINY["language"], config={**TINY["language"].config, "vocab_size": 100})
    with pytest.raises(ValueError, match="tokenizer has 259 tokens, expected at most 100"):
        LLaVA.tiny(language=small)
    with pytest.raises(ValueError, match="chat: found 'vicuna'"):
        LLaVA.tiny(chat="vicuna")


def test_an_image_in_five_views_is_shown_as_five_images() -> None:
    module = built(image=ImagePolicy(size=16, fit="squash", views=5))
    batch = batch_of(module, TWO, ONE, TEXT)
    assert batch.images.shape == (15, 3, 16, 16) and batch.num_images == 15
    assert (batch.kinds == TokenKind.IMAGE).sum(1).tolist() == [40, 20, 0]
    visual = module.net.encode_images(batch)
    placed = module.net.merge_visual_embeddings(batch, visual)[batch.kinds == TokenKind.IMAGE]
    assert torch.equal(placed, visual[TokenKind.IMAGE])
    module.net.connector.requires_grad_(True)
    assert gradients(module, batch)["connector.linear_1.weight"].any()
    # A text-only batch carries one blank image all the same.
    assert gradients(module, batch_of(module, TEXT))["connector.linear_1.weight"].eq(0).all()


def test_rows_that_teach_nothing_are_kept_by_name() -> None:
    """LLaVA's published policy: what max_length cuts off is not learned, and a batch of it has the loss 0."""
    long = sample("What is it? " * 20, "A cube.", 1)
    with pytest.raises(ValueError, match="cutting the end would leave no answer"):
        batch_of(LLaVA.tiny(max_length=300), long)
    module = built(max_length=300, masks="published", stage=StageSettings(name="instruct"))
    batch = batch_of(module, long)
    (notes,) = batch.notes
    assert [note.partition(":")[0] for note in notes] == ["overlong", "nothing learned"]
    assert batch.tokens.shape == (1, 300)
    output = module(batch)
    assert output.loss == 0 and output.count == 0
    assert not any(gradient.any() for gradient in gradients(module, batch).values())
    both, alone = module(batch_of(module, long, ONE)), module(batch_of(module, ONE))
    torch.testing.assert_close(both.loss, alone.loss)
    with pytest.raises(ValueError, match="masks: found 'none', expected one of strict, published"):
        LLaVA.tiny(masks="none")


def test_pictures_are_given_as_files_or_open() -> None:
    module = built()
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 9, 3), dtype=np.uint8))
    model = Model(module)
    decoding = Decoding(max_new_tokens=3)
    assert isinstance(model.answer([picture, picture.convert("CMYK")], "What?", decoding), str)
    for odd in (np.asarray(picture), torch.zeros(3, 9, 9), [np.asarray(picture)]):
        with pytest.raises(ValueError, match=r"^image: found a \w+\.\w+, expected a path or an open picture \(PIL"):
            model.answer(cast(Any, odd), "What?", decoding)
