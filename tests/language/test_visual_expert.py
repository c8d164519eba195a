from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from lightning_mllm.contracts import IGNORE, Batch
from lightning_mllm.language.causal import CausalLM
from lightning_mllm.language.lm_loss import head, lm_hidden_states, lm_losses
from lightning_mllm.language.lora import Lora, add_lora, merge_lora
from lightning_mllm.language.visual_expert import Plan, has_experts, plan_of, unused_names, vision_mask
from lightning_mllm.language.visual_expert_lm import VisualExpertLM
from lightning_mllm.layout import runs_of
from lightning_mllm.processing.shared_positions import shared_positions
from lightning_mllm.training.initialise import build_empty, initialise, materialise
from lightning_mllm.weights.stage_weights import InitialTensors
from tests.language import models
from tests.language.batches import batch_of
from tests.language.experts import CONFIGS, boolean, copied, kinds_of, plain_of, run, segments_of, small
from tests.language.models import LLAMA

ONE, TWO, TEXT = "TBIIIETT", "TBIETBIE", "TTTTTTTT"
MIXED = (ONE, TWO, TEXT, "IIIIITTT")
CLOSE: dict[str, Any] = {"atol": 1e-5, "rtol": 0}


def some(*rows: str) -> Tensor:
    return torch.randn(len(rows), len(rows[0].replace("|", "")), 32)


def runs(*rows: str) -> tuple[tuple[int, int], ...]:
    return runs_of(kinds_of(*rows))


def grads(model: nn.Module) -> dict[str, Tensor | None]:
    return {name: p.grad for name, p in model.named_parameters()}


# ---- kinds -> expert, position, plan --------------------------------------------------------------------------------


def test_begin_and_vectors_are_the_experts_and_the_end_is_not() -> None:
    assert vision_mask(kinds_of(ONE))[0].int().tolist() == [0, 1, 1, 1, 1, 0, 0, 0]


@pytest.mark.parametrize(
    ("row", "positions"),
    [
        ("TBIIIETT", [0, 1, 2, 2, 2, 3, 4, 5]),
        ("TBIIETBIIET", [0, 1, 2, 2, 3, 4, 5, 6, 6, 7, 8]),
        ("TBIIEBIIET", [0, 1, 2, 2, 3, 4, 5, 5, 6, 7]),  # two views, side by side
        ("..TBIIET", [0, 0, 0, 1, 2, 2, 3, 4]),
        ("TBIIET..", [0, 1, 2, 2, 3, 4, 0, 0]),
        ("TBIIET|TTBIIE.", [0, 1, 2, 2, 3, 4, 0, 1, 2, 3, 3, 4, 0]),
        ("TII|IITT", [0, 1, 1, 0, 0, 1, 2]),  # images of two segments are two
        ("TTTT", [0, 1, 2, 3]),
    ],
)
def test_positions_are_shared_by_an_images_vectors(row: str, positions: list[int]) -> None:
    assert shared_positions(kinds_of(row.replace("|", "")), segments_of(row))[0].tolist() == positions


def test_plan() -> None:
    assert plan_of(runs(TEXT, TEXT)) is None
    assert plan_of(runs(ONE, "IITTTTTT")) == Plan((1, 4, 3, 2, 6), vision=1, closed=False)
    assert plan_of(runs("BIET", "TTTT")) == Plan((2, 6), vision=0, closed=True)
    assert plan_of(runs("TI", "IT")) == Plan((1, 2, 1), vision=1, closed=False)


# ---- what an expert changes, and what not ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CONFIGS)
def test_copies_say_what_the_language_model_says(kind: str) -> None:
    model = copied(small(kind))
    plain = plain_of(model, CONFIGS[kind])
    embeds, kinds, segments = some(*MIXED), kinds_of(*MIXED), segments_of(*MIXED)
    positions = shared_positions(kinds, segments)
    expected = head(plain)(lm_hidden_states(plain, embeds, batch_of(segments, positions)))
    found = lm_hidden_states(model, embeds, batch_of(segments, positions, kinds))
    assert_close(head(model)(found), expected, **CLOSE)


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_text_never_meets_an_expert(kind: str) -> None:
    model = small(kind)
    plain = plain_of(model, CONFIGS[kind])
    embeds = some(TEXT)
    assert not torch.equal(run(model, embeds, ONE), run(plain, embeds, ONE))
    with torch.no_grad():
        assert torch.equal(run(model, embeds, TEXT), run(plain, embeds, TEXT))
    assert torch.equal(run(model, embeds, TEXT), run(plain, embeds, TEXT))  # also while experts are trained
    tokens = torch.arange(8)[None]
    assert torch.equal(model(tokens).logits, plain(tokens).logits)


def test_without_images_trained_experts_have_a_gradient_of_zero_and_frozen_language_none() -> None:
    model = small()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".vision." in name)
    (run(model, some(TEXT).requires_grad_(), TEXT)).sum().backward()
    for name, gradient in grads(model).items():
        if ".vision." in name:
            assert gradient is not None and not gradient.any(), name
        else:
            assert gradient is None, name


@pytest.mark.parametrize("kind", ["llama, biases", "qwen2"])
@pytest.mark.parametrize("rows", [(ONE,), MIXED, ("IIIIIIII", TEXT), ("TBIET|TIITT...",)])
def test_routing_by_runs_is_routing_by_a_mask(kind: str, rows: tuple[str, ...]) -> None:
    ours = small(kind)
    theirs = boolean(ours, kinds_of(*(row.replace("|", "") for row in rows)))
    embeds, weights = some(*rows), some(*rows)
    inputs = [embeds.clone().requires_grad_() for _ in range(2)]
    found, expected = (run(model, x, *rows) for model, x in zip((ours, theirs), inputs, strict=True))
    assert_close(found, expected, **CLOSE)
    real = segments_of(*rows).unsqueeze(-1) > 0
    for hidden in (found, expected):
        (hidden * weights * real).sum().backward()
    assert_close(inputs[0].grad, inputs[1].grad, atol=1e-4, rtol=1e-5)
    reference = grads(theirs)
    for name, gradient in grads(ours).items():
        if "lm_head" not in name and "embed_tokens" not in name:
            assert gradient is not None
            assert_close(gradient, reference[name], atol=1e-4, rtol=1e-5, msg=name)


def test_packed_segments_are_separate_rows_and_padding_changes_nothing() -> None:
    model, embeds = small(), some("TBIIET|TTBIIE.")
    together = run(model, embeds, "TBIIET|TTBIIE.")[0]
    assert_close(together[:6], run(model, embeds[:, :6], "TBIIET")[0], **CLOSE)
    second = run(model, embeds[:, 6:12], "TTBIIE")[0]
    assert_close(together[6:12], second, **CLOSE)
    padded = torch.cat([torch.randn(1, 3, 32), embeds[:, 6:12]], 1)
    assert_close(run(model, padded, "...TTBIIE")[0, 3:], second, **CLOSE)
    padded = torch.cat([embeds[:, 6:12], torch.randn(1, 3, 32)], 1)
    assert_close(run(model, padded, "TTBIIE...")[0, :6], second, **CLOSE)


def test_a_copy_of_a_model_has_a_plan_of_its_own() -> None:
    model = small()
    embeds = some(ONE)
    expected = run(model, embeds, ONE)
    twin = deepcopy(model)
    assert torch.equal(run(twin, embeds, ONE), expected)
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            parameter.mul_(2.0 if ".vision." in name else 1.0)
    assert not torch.equal(run(twin, embeds, ONE), expected) and torch.equal(run(model, embeds, ONE), expected)


def test_activation_checkpointing_gives_the_same_gradients_whatever_ran_in_between() -> None:
    embeds = some(ONE, TWO)
    plain = small().train()
    saving = deepcopy(plain)
    saving.activation_checkpointing_enable()
    for model in (plain, saving):
        # Three plans, one of them none, before the first is needed again.
        losses = [run(model, embeds, *rows).square().sum() for rows in ((ONE, TWO), (TEXT, ONE), (TEXT, TEXT))]
        for loss in losses:
            loss.backward()
    reference = grads(plain)
    assert all(layer.gradient_checkpointing for layer in saving.model.layers)
    for name, gradient in grads(saving).items():
        expected = reference[name]
        assert (gradient is None) == (expected is None), name
        if gradient is not None:
            assert_close(gradient, expected, atol=1e-4, rtol=1e-5, msg=name)


# ---- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "experts"),
    [
        ({}, {0: {"q_proj", "k_proj", "v_proj", "o_proj", "mlp"}, 1: {"q_proj", "k_proj", "v_proj", "o_proj", "mlp"}}),
        ({"every": 2}, {0: {"q_proj", "k_proj", "v_proj", "o_proj", "mlp"}}),
        ({"parts": ("ffn",)}, {0: {"mlp"}, 1: {"mlp"}}),
        ({"parts": ("qkv",), "every": 2}, {0: {"q_proj", "k_proj", "v_proj"}}),
        ({"parts": ("output",)}, {0: {"o_proj"}, 1: {"o_proj"}}),
    ],
)
def test_a_subset_of_blocks_or_parts(settings: dict[str, Any], experts: dict[int, set[str]]) -> None:
    model = small(**settings)
    found: dict[int, set[str]] = {}
    for name, _ in model.named_parameters():
        if ".vision." in name:
            path = name.split(".vision.")[0].split(".")
            found.setdefault(int(path[2]), set()).add(path[-1])
    assert found == experts
    embeds = some(ONE, TWO)
    assert_close(run(model, embeds, ONE, TWO), run(boolean(model, kinds_of(ONE, TWO)), embeds, ONE, TWO), **CLOSE)
    same = copied(model)
    assert_close(run(same, embeds, ONE, TWO), run(plain_of(same, LLAMA), embeds, ONE, TWO), **CLOSE)
    assert not torch.equal(run(model, embeds, ONE, TWO), run(same, embeds, ONE, TWO))


def labelled(rows: tuple[str, ...]) -> Batch:
    kinds, segments = kinds_of(*rows), segments_of(*rows)
    labels = torch.where(kinds == 0, 5, IGNORE)
    return batch_of(segments, shared_positions(kinds, segments), kinds, labels)


@pytest.mark.parametrize("settings", [{}, {"every": 2}, {"parts": ("ffn",)}, {"parts": ("qkv",)}])
def test_idle_parameters_are_those_that_no_loss_reaches(settings: dict[str, Any]) -> None:
    model = small(**settings)
    batch = labelled((ONE, TWO))
    loss = lm_losses(model, some(ONE, TWO), batch)[0].sum()
    loss.backward()
    silent = {n for n, p in model.named_parameters() if ".vision." in n and (p.grad is None or not p.grad.any())}
    assert unused_names(model) == silent
    assert bool(silent) == ("every" not in settings)


def test_a_plain_model_has_no_experts() -> None:
    assert not has_experts(models.small("opt")) and unused_names(models.small("opt")) == set()
    assert has_experts(small(every=2))


def test_sizes_are_the_papers() -> None:
    vicuna = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "vocab_size": 32000}
    heads = {"num_attention_heads": 32, "num_key_value_heads": 32}
    model = build_empty(VisualExpertLM(config={"model_type": "llama", **vicuna, **heads}))
    experts = {name: p for name, p in model.named_parameters() if ".vision." in name}
    assert all(p.is_meta for p in model.parameters())
    assert sum(p.numel() for name, p in experts.items() if ".layers.7." in name) == 202_375_168
    assert sum(p.numel() for p in experts.values()) == 6_476_005_376
    assert sum(p.numel() for name, p in model.named_parameters() if name not in experts) == 6_738_415_616


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"every": 0}, r"language\.every: found 0, expected at least 1"),
        ({"parts": ()}, r"language\.parts: found \[\], expected some of"),
        ({"parts": ("ffn", "ffn")}, r"language\.parts: found \['ffn', 'ffn'\]"),
        ({"parts": ("mlp",)}, r"language\.parts: found \['mlp'\], expected some of \['qkv', 'output', 'ffn'\]"),
        ({"start": "zeros"}, r"language\.start: found 'zeros', expected copy or fresh"),
        ({"config": models.OPT}, "found a 'opt' model without layers, expected one with Llama's blocks"),
        (
            {"config": {"model_type": "gpt_neox", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}},
            r"found a 'gpt_neox' model, whose blocks have no self_attn\.q_proj, expected Llama's",
        ),
        (
            {"config": {**LLAMA, "model_type": "phi3", "pad_token_id": 0}},
            r"found a 'phi3' model, whose blocks have no self_attn\.q_proj",
        ),
    ],
)
def test_what_cannot_be_had(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        VisualExpertLM(**{"config": LLAMA, **settings}).build()


# ---- first values ---------------------------------------------------------------------------------------------------


def filled(spec: CausalLM) -> tuple[Any, dict[str, str]]:
    net = nn.ModuleDict({"language": build_empty(spec)})
    materialise(net, torch.device("cpu"))
    seen = initialise(net, {"language": spec}, InitialTensors({}, {}))
    return net["language"], {name.removeprefix("language."): source for name, source in seen.items()}


def test_experts_start_as_copies_of_the_pretrained_model(tmp_path: Path) -> None:
    plain = models.small("qwen2")
    plain.save_pretrained(tmp_path)
    model, seen = filled(VisualExpertLM(model=str(tmp_path)))
    state = plain.state_dict()
    assert set(seen.values()) == {"pretrained"}
    for name, tensor in model.named_parameters():
        assert torch.equal(tensor, state[name.replace(".language.", ".").replace(".vision.", ".")]), name
    embeds = some(ONE)
    assert_close(run(model.eval(), embeds, ONE), run(plain, embeds, ONE), **CLOSE)


def test_experts_may_start_fresh(tmp_path: Path) -> None:
    plain = models.small("llama")
    plain.save_pretrained(tmp_path)
    model, seen = filled(VisualExpertLM(model=str(tmp_path), start="fresh", every=2))
    assert {name for name, source in seen.items() if source == "fresh"} == {n for n in seen if ".vision." in n}
    state = model.state_dict()
    for name in (n for n in seen if ".vision." in n):
        other = state[name.replace(".vision.", ".language.")]
        assert state[name].std().item() == pytest.approx(0.02, rel=0.2) and not torch.equal(state[name], other)
    own = {name.replace(".language.", "."): tensor for name, tensor in state.items() if ".vision." not in name}
    assert all(torch.equal(tensor, own[name]) for name, tensor in plain.state_dict().items())


@pytest.mark.parametrize("start", ["copy", "fresh"])
def test_experts_of_a_fresh_model_start_as_they_would_of_any(start: Any) -> None:
    model, seen = filled(VisualExpertLM(config=LLAMA, start=start))
    state = model.state_dict()
    assert set(seen.values()) == {"fresh"}
    for name in (n for n in state if ".vision." in n):
        assert torch.equal(state[name], state[name.replace(".vision.", ".language.")]) == (start == "copy")


# ---- adapters -------------------------------------------------------------------------------------------------------


def test_adapters_of_the_expert_change_image_tokens_alone_and_fold() -> None:
    plain = small()
    model = deepcopy(plain)
    lora = Lora(r=2, alpha=4, dropout=0.0)
    add_lora(model, lora)
    embeds = some(ONE)
    assert torch.equal(run(model, embeds, ONE), run(plain, embeds, ONE))

    def disturb(pattern: str) -> None:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if ".lora_B." in name and pattern in name:
                    parameter.normal_()

    disturb(".vision.")
    assert torch.equal(run(model, embeds, TEXT), run(plain, embeds, TEXT))
    found, before = run(model, embeds, ONE), run(plain, embeds, ONE)
    assert torch.equal(found[:, 0], before[:, 0]) and (found[:, 1] != before[:, 1]).any()
    # Of one module, exactly the tokens that are its own.
    x = some(ONE)
    mine, theirs = (each.model.layers[0].self_attn.q_proj for each in (model, plain))
    for each in (mine, theirs):
        each.switch.plan = plan_of(runs(ONE))
    assert torch.equal((mine(x) != theirs(x)).any(-1), vision_mask(kinds_of(ONE)))
    disturb(".language.")
    folded = deepcopy(plain)
    folded.load_state_dict(merge_lora(model.state_dict(), lora.scale), strict=True)
    assert_close(run(folded, embeds, ONE), run(model.eval(), embeds, ONE), atol=1e-4, rtol=0)
    assert not torch.equal(run(model, embeds, TEXT), run(plain, embeds, TEXT))
