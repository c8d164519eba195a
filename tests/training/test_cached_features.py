"""Training from cached features gives the losses and gradients of training with the tower, which is never built."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lightning_mllm.architectures.blip2 import Blip2
from lightning_mllm.architectures.blip2_representation import Blip2Representation
from lightning_mllm.architectures.cogvlm import CogVLM
from lightning_mllm.architectures.language_model import LanguageModelPretraining
from lightning_mllm.architectures.llava import TINY, LLaVA
from lightning_mllm.architectures.sphinx import Sphinx
from lightning_mllm.connectors.mixed import MixedConnector
from lightning_mllm.contracts import Documents, ParamGroup, Sample
from lightning_mllm.processing.images import ImagePolicy
from lightning_mllm.training.cached_features import (
    _described,
    earlier_vision,
    facts_of,
    key_of,
    opened,
    use_cached_features,
)
from lightning_mllm.training.parallelize import ParallelPlan
from lightning_mllm.vision.cached import CachedVision
from lightning_mllm.vision.tower import OpenClipTower
from lightning_mllm.weights.files import resource
from lightning_mllm.weights.safetensors_writer import HeldTensors
from lightning_mllm.weights.stage_weights import write_stage
from tests.architectures.blip2s import EVA, INSTRUCTED, OPT
from tests.architectures.samples import ONE, OTHER, TEXT, TWO, batch_of
from tests.distributed.ranks import on_two_ranks
from tests.training.caches import cached, data_of, written
from tests.training.runs import settings

VIEWS: dict[str, Any] = {"image": ImagePolicy(size=16, fit="pad", views=5), "connector": MixedConnector(pool=(1, 2))}
STAGES: dict[str, Callable[..., Any]] = {
    "llava, align": lambda **more: LLaVA.tiny(stage=settings("align"), **more),
    "llava, instruct": lambda **more: LLaVA.tiny(stage=settings("instruct"), **more),
    "blip2, representation": lambda **more: Blip2Representation.tiny(stage=settings("representation"), **more),
    "blip2 of opt, generative": lambda **more: Blip2.tiny(
        stage=settings("generative"), language=OPT, vision=EVA, **more
    ),
    "instructblip": lambda **more: Blip2.tiny(**INSTRUCTED, stage=settings("instruct"), **more),
    "cogvlm, caption": lambda **more: CogVLM.tiny(stage=settings("caption"), **more),
    "sphinx, five views": lambda **more: Sphinx.tiny(stage=settings("instruct"), **VIEWS, **more),
}
BACKBONE = resource("package:backbones/clip")
MIXED, ALONE = (ONE, OTHER, TEXT, TWO), (TEXT,)


def rows_of(stage: str) -> tuple[tuple[Sample, ...], ...]:
    """Batches with text-only rows and rows of two images, and of text alone; of pairs, where there is nothing else."""
    return ((ONE, OTHER),) if stage == "blip2, representation" else (MIXED, ALONE)


def learned(module: Any, samples: tuple[Sample, ...]) -> tuple[Tensor, dict[str, Tensor]]:
    torch.manual_seed(0)
    module.zero_grad()
    loss = module(batch_of(module, *samples)).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in module.net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "llava, align"])
def test_losses_and_gradients_are_those_of_the_tower(stage: str, tmp_path: Path) -> None:
    plain = STAGES[stage]()
    plain.configure_model()
    written(STAGES[stage](), tmp_path)
    without = STAGES[stage]()
    spec = type(without.components["vision"])
    with patch.object(spec, "build", side_effect=AssertionError("the tower was built")):
        cached(without, tmp_path)
    assert isinstance(without.net.vision, CachedVision) and not list(without.net.vision.parameters())
    for samples in rows_of(stage):
        (loss, gradients), (found, own) = learned(plain, samples), learned(without, samples)
        assert_close(found, loss, rtol=1e-6, atol=0)
        assert own.keys() == gradients.keys() == plain.trained.keys()
        for name, gradient in gradients.items():
            assert_close(own[name], gradient, rtol=0, atol=1e-6 + 1e-5 * float(gradient.abs().max()), msg=name)
    assert without.freeze_rows() == plain.freeze_rows()
    assert without.provenance == plain.provenance


@pytest.mark.parametrize("stage", ["llava, instruct", "sphinx, five views"])
def test_packed_rows_and_documents(stage: str, tmp_path: Path) -> None:
    """In one row, two samples of one image behind one another; and plain text."""
    written(STAGES[stage](), tmp_path)
    plain, without = STAGES[stage](), cached(STAGES[stage](), tmp_path)
    plain.configure_model()
    again = replace(ONE, id="again", turns=(ONE.turns[0], replace(ONE.turns[1], text="A box.")))
    text = Sample(id="text", documents=Documents(texts=("Plain text.", "And more.")))
    for samples, packed in (((ONE, again, TWO, TEXT), True), ((text,), False)):
        found = []
        for module in (plain, without):
            rows = [module.processor.encode(each) for each in samples]
            batch = module.processor.collate(rows, packed=packed)
            module.zero_grad()
            (loss := module(batch).loss).backward()
            own = {n: p.grad.clone() for n, p in module.net.named_parameters() if n in module.trained}
            found.append((loss.detach(), own))
        (loss, gradients), (other, own) = found
        assert_close(other, loss, rtol=1e-6, atol=0)
        for name, gradient in gradients.items():
            assert_close(own[name], gradient, rtol=0, atol=1e-6 + 1e-5 * float(gradient.abs().max()), msg=name)


def test_pairs_of_two_ranks(tmp_path: Path) -> None:
    """Negatives are those of both."""
    stage = "blip2, representation"
    written(STAGES[stage](), tmp_path)

    def work(rank: int) -> Any:
        torch.distributed.init_process_group("gloo")
        plain = STAGES[stage]()
        plain.configure_model()
        return [learned(each, ((ONE,), (OTHER,))[rank]) for each in (plain, cached(STAGES[stage](), tmp_path))]

    for (loss, gradients), (found, own) in on_two_ranks(work):
        assert_close(found, loss, rtol=1e-6, atol=0)
        assert own.keys() == gradients.keys()
        for name, gradient in gradients.items():
            # That of the temperature, 0.3, is a sum of products that are ten times as large.
            assert_close(own[name], gradient, rtol=0, atol=1e-5 * max(1.0, float(gradient.abs().max())), msg=name)


def test_sixteen_bits_are_kept_where_asked_for(tmp_path: Path) -> None:
    store = written(STAGES["llava, align"](), tmp_path, dtype="bfloat16")
    plain, without = STAGES["llava, align"](), cached(STAGES["llava, align"](), tmp_path)
    plain.configure_model()
    assert store.dtype == torch.bfloat16 and (tmp_path / store.folder.name / "features.bin").stat().st_size == 5 * 256
    (loss, gradients), (found, own) = learned(plain, MIXED), learned(without, MIXED)
    assert_close(found, loss, rtol=1e-3, atol=0)
    for name, gradient in gradients.items():
        assert 0 < float((own[name] - gradient).norm() / gradient.norm()) < 0.02, name
    with pytest.raises(ValueError, match="found features in bfloat16, expected float32"):
        written(STAGES["llava, align"](), tmp_path)


def test_the_tower_speaks_as_it_would_in_bf16(tmp_path: Path) -> None:
    module = STAGES["llava, align"]()
    module.parallel = ParallelPlan(precision="bf16")
    store = written(module, tmp_path, dtype=None)
    assert store.dtype == torch.bfloat16 and store.facts["computed_in"] == "bf16"
    use_cached_features(module, data_of(module), tmp_path)
    assert module.components["vision"].build()(store.blank).dtype == torch.bfloat16
    plain = STAGES["llava, align"]()
    with pytest.raises(ValueError, match=r"that a tower computed in bf16, expected fp32, as hardware\.precision is"):
        use_cached_features(plain, data_of(plain), tmp_path)
    with pytest.raises(ValueError, match="that a tower computed in bf16, expected fp32"):
        written(STAGES["llava, align"](), tmp_path, dtype="bfloat16")
    assert [(row.part, row.dtype) for row in module.left_out] == [("vision", "bfloat16")]


def chatting() -> CogVLM:
    return CogVLM.tiny(stage=settings("chat"))


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "the tower": (chatting, r"stage 'chat' trains vision\.\S+ \(vision\.\*\), expected a frozen tower"),
    "adapters of the tower": (
        lambda: CogVLM.tiny(stage=settings("chat_lora")),
        r"stage 'chat_lora' trains vision\.blocks\.0\.attn\.\S+ \(adapters vision\.\*\.attn\.\*\)",
    ),
    "a part of the tower": (
        lambda: LLaVA.tiny(
            stage=settings(
                "own", train={"vision.*": ParamGroup(exclude=("vision.*bias",)), "connector.*": ParamGroup()}
            )
        ),
        r"stage 'own' trains vision\.class_embedding",
    ),
    "parts of images": (
        lambda: STAGES["llava, align"](image=ImagePolicy(size=16, fit="squash", random_area=(0.5, 1.0))),
        r"image.random_area \(0.5, 1.0\).*expected images that are not augmented",
    ),
    "mirror images": (
        lambda: STAGES["llava, align"](image=ImagePolicy(size=16, fit="squash", random_flip=0.5)),
        "image.random_flip 0.5",
    ),
    "no tower": (lambda: LanguageModelPretraining.tiny(stage=settings("pretrain")), "has no part 'vision'"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_does_not_stay_is_refused_with_the_reason(what: str, tmp_path: Path) -> None:
    make, reason = REFUSED[what]
    with pytest.raises(ValueError, match=reason):
        opened(make(), tmp_path)


def test_a_stage_that_trains_a_tower_is_refused_where_features_are(tmp_path: Path) -> None:
    written(STAGES["cogvlm, caption"](), tmp_path)
    module = chatting()
    with pytest.raises(ValueError, match="stage 'chat' trains"):
        use_cached_features(module, data_of(module), tmp_path)


def key(module: Any) -> str:
    return key_of(facts_of(module, earlier_vision(module, module.stage.init_from)))


@dataclass(frozen=True, kw_only=True)
class Otherwise(ImagePolicy):
    """A policy of the same fields that does something else."""


def test_the_key_holds_what_decides_the_features(monkeypatch: pytest.MonkeyPatch) -> None:
    vision, policy = TINY["vision"], ImagePolicy(size=16, fit="crop")
    config = {**vision.config, "vision_cfg": {**vision.config["vision_cfg"], "layers": 4}}
    make = STAGES["llava, align"]
    others = {
        "plain": make(),
        "layer": make(vision=replace(vision, layer=-1)),
        "cls": make(vision=replace(vision, cls="keep")),
        "norm": make(vision=replace(vision, norm=True)),
        "positions": make(vision=replace(vision, output_position_scale=0.5)),
        "config": make(vision=replace(vision, config=config)),
        "activation": make(vision=replace(vision, config={**vision.config, "quick_gelu": False})),
        "statistics": make(
            vision=replace(
                vision, config={"model_cfg": vision.config, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
            )
        ),
        "fit": make(image=replace(policy, fit="squash")),
        "colour": make(image=replace(policy, mean=(0.0, 0.0, 0.0))),
        "decode": make(image=replace(policy, decode="stored")),
        "policy": make(image=Otherwise(size=16, fit="crop")),
    }
    keys = {name: key(module) for name, module in others.items()}
    assert len(set(keys.values())) == len(keys), keys
    assert key(make(image=policy)) == keys["plain"] == key(STAGES["llava, instruct"]())
    monkeypatch.setenv("PL_GLOBAL_SEED", "17")
    assert key(make()) != keys["plain"], "fresh values are those of the seed"


def test_the_key_follows_weights_wherever_they_are(tmp_path: Path) -> None:
    """An earlier stage that trained the tower, and the same one elsewhere and changed."""
    make = STAGES["llava, align"]
    source = make()
    source.configure_model()
    tensors = {f"vision.{n}": p.detach().clone() for n, p in source.net.vision.named_parameters()}

    def started(name: str, change: float) -> Any:
        changed = {n: t + change for n, t in tensors.items()}
        folder = tmp_path / name
        write_stage(folder, HeldTensors(changed), stage="own", settings={}, init_from={}, steps=1, runs=tmp_path)
        module = LLaVA.tiny(stage=settings("align", init_from={name: 1.0}))
        module.runs = str(tmp_path)
        return module

    first, moved, trained = started("a", 0.0), started("b", 0.0), started("c", 0.01)
    assert key(first) == key(moved) != key(trained)
    store = written(trained, tmp_path / "cache")
    without, plain = cached(started("c", 0.01), tmp_path / "cache"), started("c", 0.01)
    plain.configure_model()
    assert_close(learned(without, MIXED)[0], learned(plain, MIXED)[0], rtol=1e-6, atol=0)
    with pytest.raises(ValueError, match=f"found no features of this tower in .*of another weights.*{key(first)}"):
        opened(started("a", 0.0), store.folder.parent)


def test_a_tower_that_computes_otherwise_is_told_by_the_blank_image(tmp_path: Path) -> None:
    make = STAGES["llava, align"]
    written(make(), tmp_path)
    written(make(), tmp_path)
    otherwise = patch("lightning_mllm.vision.encoder.normalised", lambda images, mean, std: images.float() / 255)
    with otherwise, pytest.raises(ValueError, match="its code has changed, write to another folder"):
        written(make(), tmp_path)


def test_names_of_files_are_no_part_of_what_describes_a_tower(tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(BACKBONE, moved)
    found, elsewhere = (_described(OpenClipTower(model=str(each), weights="")) for each in (BACKBONE, moved))
    assert found == elsewhere and str(tmp_path) not in str(found)
