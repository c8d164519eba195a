from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonargparse
import pytest
import torch
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from data_modules.evaluation import EvaluationSet
from data_modules.module import CaptionDataModule, InstructionDataModule, MultimodalDataModule, VQADataModule
from data_modules.sources import CocoCaptions, VqaV2
from lightning_mllm.contracts import Evaluation
from tests.data_modules.files import Echo, Numbers
from tests.data_modules.test_stream import Packed, sources_of


def data(**settings: Any) -> InstructionDataModule:
    given: dict[str, Any] = {
        "train": {"a": Numbers(7, "a"), "b": Numbers(4, "b", mixed=True)},
        "test": {
            "all": EvaluationSet(source=Numbers(5, "t"), task="vqa"),
            "rest": EvaluationSet(source=Numbers(3, "u"), task="vqa", part="novel", blind=False),
        },
        "epochs": 2,
        "global_batch": 4,
        "micro_batch": 2,
        "eval_batch": 2,
        "processor": Echo(),
    }
    return InstructionDataModule(**{**given, **settings})


class Watcher(LightningModule):
    """Writes down which samples it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[list[str]] = []
        self.answered: dict[tuple[str, int], list[str]] = {}

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        self.seen.append(batch["ids"])
        return self.weight**2

    def _answer(self, verb: str, batch: dict[str, Any], dataloader_idx: int) -> None:
        assert batch["padding"] == "left"
        self.answered.setdefault((verb, dataloader_idx), []).extend(batch["ids"])

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._answer("val", batch, dataloader_idx)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._answer("test", batch, dataloader_idx)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._answer("predict", batch, dataloader_idx)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(folder: Path, **settings: Any) -> Trainer:
    return Trainer(
        **{
            "max_epochs": 1,
            "accumulate_grad_batches": 2,
            "use_distributed_sampler": False,
            "accelerator": "cpu",
            "devices": 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "default_root_dir": folder,
            **settings,
        }
    )


def test_steps_and_epochs(capsys: pytest.CaptureFixture[str]) -> None:
    module = data(weights={"a": 10, "b": 1})
    assert module.optimizer_steps == 22 // 4
    counts = {"a": 10, "b": 1}
    assert module.effective_epochs() == {
        name: pytest.approx(20 / 11 * count / len(module.train[name])) for name, count in counts.items()
    }
    module.setup("fit")
    printed = capsys.readouterr().out
    assert "5 steps of 4" in printed
    for name, epochs in module.effective_epochs().items():
        assert name in printed and f"{epochs:.2f}" in printed


def test_what_a_policy_changes_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    module = data()
    module.train["b"].changed = {"blanks kept": 96, "marks as words": 0}
    module.setup("fit")
    printed = capsys.readouterr().out
    assert "blanks kept" in printed and "96" in printed and "marks as words" not in printed


def test_steps_take_the_place_of_epochs() -> None:
    """Twelve global batches are more than four passes over eleven samples."""
    module = data(steps=12, epochs=1)
    assert module.optimizer_steps == 12
    loader = module.train_dataloader()
    assert len(loader) == 12 * loader.accumulation
    assert sum(len(batch["ids"]) for batch in loader) == 12 * 4
    assert module.effective_epochs() == pytest.approx({"a": 48 / 11, "b": 48 / 11})


def test_only_what_is_needed_is_loaded() -> None:
    for stage, expected in (("fit", (1, 1, 0)), ("validate", (0, 1, 0)), ("test", (0, 0, 1)), ("predict", (0, 0, 1))):
        sources = Numbers(4), Numbers(4), Numbers(4)
        sets = [{"s": EvaluationSet(source=source, task="vqa")} for source in sources[1:]]
        data(train={"a": sources[0]}, val=sets[0], test=sets[1]).setup(stage)
        assert tuple(source.loads for source in sources) == expected


def longest_first(name: str, size: int) -> list[str]:
    """The samples of a set as they are answered."""
    return [f"{name}{k}" for k in sorted(range(size), key=lambda k: -Numbers(size).length(k))]


def test_evaluations_are_aligned_with_the_loaders() -> None:
    module = data(val={"v": EvaluationSet(source=Numbers(4), task="vqa")})
    assert module.evaluations("val") == [Evaluation(task="vqa")]
    assert [each.suffix for each in module.evaluations("test")] == ["", "_blind", "_novel"]
    assert len(module.val_dataloader()) == 1 and len(module.predict_dataloader()) == 2
    seeing, blind, novel = (list(loader) for loader in module.test_dataloader())
    assert [batch["ids"] for batch in seeing] == [batch["ids"] for batch in blind]
    assert [batch["images"] for batch in seeing] != [batch["images"] for batch in blind]
    assert [id for batch in novel for id in batch["ids"]] == longest_first("u", 3)


def test_length_grouping_counts_images(monkeypatch: pytest.MonkeyPatch) -> None:
    module = data(group="modality_length", global_batch=2)
    module.setup("fit")
    assert module._length("a", 3) == 128 + Numbers(4).length(3)
    assert module._length("b", 3) == Numbers(4).length(3)
    names = sorted(
        id
        for batch in data(group="length", epochs=1, global_batch=1, micro_batch=1).train_dataloader()
        for id in batch["ids"]
    )
    assert names == sorted([f"a{k}" for k in range(7)] + [f"b{k}" for k in range(4)])


def test_a_trainer_runs_every_verb(tmp_path: Path) -> None:
    module, watcher = data(val={"v": EvaluationSet(source=Numbers(3, "v"), task="vqa")}), Watcher()
    running = trainer(tmp_path)
    running.fit(watcher, module)
    assert running.global_step == module.optimizer_steps == 5
    assert watcher.seen == [batch["ids"] for batch in data().train_dataloader()]
    running.test(watcher, module, verbose=False)
    running.predict(watcher, module)
    assert watcher.answered == {
        ("val", 0): longest_first("v", 3),
        ("test", 0): longest_first("t", 5),
        ("test", 1): longest_first("t", 5),
        ("test", 2): longest_first("u", 3),
        ("predict", 0): longest_first("t", 5),
        ("predict", 1): longest_first("u", 3),
    }


@pytest.mark.parametrize("workers", [0, 1])
def test_a_trainer_goes_on_where_a_checkpoint_was_written(tmp_path: Path, workers: int) -> None:
    whole = [batch["ids"] for batch in data().train_dataloader()]
    saving = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    trainer(tmp_path, enable_checkpointing=True, callbacks=[saving]).fit(Watcher(), data(workers=workers))
    for step in range(1, 6) if workers == 0 else (2,):
        watcher, second = Watcher(), trainer(tmp_path)
        second.fit(watcher, data(workers=workers), ckpt_path=str(tmp_path / f"step={step}.ckpt"), weights_only=True)
        assert watcher.seen == whole[2 * step :] and second.global_step == 5


def test_ranks_come_from_the_trainer() -> None:
    parts = []
    for rank in range(2):
        module = data(micro_batch=1)
        named = {"global_rank": rank, "world_size": 2, "max_epochs": 1, "accumulate_grad_batches": 2, "fast_dev_run": 1}
        module.trainer = SimpleNamespace(**named)  # type: ignore[assignment]
        parts.append([batch["ids"] for batch in module.train_dataloader()])
        assert [len(list(loader)) for loader in module.test_dataloader()] == [2, 2, 1]
    together = [a + b for a, b in zip(*parts, strict=True)]
    assert together == [batch["ids"] for batch in data().train_dataloader()]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"max_epochs": 2}, "trainer.max_epochs: found 2, expected 1"),
        ({"accumulate_grad_batches": 1}, "trainer.accumulate_grad_batches: found 1, expected 2 .* 4 = 2 x 2 x 1"),
    ],
)
def test_a_trainer_that_does_not_fit(tmp_path: Path, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        trainer(tmp_path, **settings).fit(Watcher(), data())


def test_packed_samples_follow_a_budget(tmp_path: Path) -> None:
    """Two epochs of 47 samples in steps of twelve; without a budget as many micro-batches as without packing."""

    def packed(**settings: Any) -> InstructionDataModule:
        return data(train=sources_of(), global_batch=12, processor=Packed(), pack=True, **settings)

    module = packed(token_budget=60)
    assert (
        module.accumulation(1)
        > module.accumulation(2)
        > module.accumulation(4)
        == packed(token_budget=120).accumulation(2)
    )
    assert packed().accumulation(1) == 6 and packed().accumulation(2) == 3
    with pytest.raises(ValueError, match="global_batch: found 12, expected a multiple of 5 = micro_batch 5 x 1"):
        packed(micro_batch=5).accumulation(1)
    with pytest.raises(ValueError, match=r"accumulate_grad_batches: found 2, expected \d for .* of 12 dealt to \d x 1"):
        trainer(tmp_path).fit(Watcher(), datamodule=module)
    loader = packed(token_budget=60).train_dataloader()
    assert loader.accumulation == module.accumulation(1) and len(loader) == 7 * loader.accumulation
    assert sorted(number for batch in loader for number in batch.numbers) == sorted([*range(12)] * 7)


def test_wrong_settings() -> None:
    same = EvaluationSet(source=Numbers(3), task="vqa")
    with pytest.raises(ValueError, match=r"data.test.b: task 'vqa' and part '' are those of a, expected a part"):
        data(test={"a": same, "b": same})
    with pytest.raises(ValueError, match="processor: found none"):
        data(processor=None).train_dataloader()
    with pytest.raises(ValueError, match=r"data.train.q: found VqaV2, expected a source of captions"):
        CaptionDataModule(train={"q": VqaV2("q.json", "a.json", "images")})
    CaptionDataModule(train={"c": CocoCaptions("c.json", "images")})
    with pytest.raises(ValueError, match="train: found no source"):
        InstructionDataModule().setup("fit")


@pytest.mark.parametrize("settings", [{"token_budget": 60}, {"image_cost": 5}])
def test_settings_of_packed_rows_without_them_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"^hardware\.token_budget: found .* padded, expected none, or hardware\.pack"):
        data(**settings)


def test_sources_are_balanced_by_the_square_root_of_their_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    """InstructBLIP, sec. 2.4: p_d = sqrt(S_d) / sum sqrt(S_i), then factors by hand."""
    sources = {"big": Numbers(400, "big"), "middle": Numbers(100, "mid"), "small": Numbers(25, "s")}
    module = VQADataModule(train=sources, global_batch=5, micro_batch=5)
    module.setup("fit")
    assert module.order.counts == {"big": 300, "middle": 150, "small": 75}
    printed = capsys.readouterr().out
    assert all(text in printed for text in ("57.1%", "28.6%", "14.3%", "0.75", "1.50", "3.00"))
    lowered = VQADataModule(train=sources, factors={"middle": 0.5, "small": 2.0})
    assert lowered.order.counts == {"big": 300, "middle": 75, "small": 150}, "as 20 : 5 : 10"


def test_other_weights_and_factors() -> None:
    sources = {"a": Numbers(30, "a"), "b": Numbers(10, "b")}
    assert VQADataModule(train=sources, weights=None).order.counts == {"a": 30, "b": 10}
    assert VQADataModule(train=sources, weights=None, factors={"b": 3}).order.counts == {"a": 20, "b": 20}
    assert VQADataModule(train=sources, weights={"a": 1, "b": 1}).order.counts == {"a": 20, "b": 20}
    assert VQADataModule(train=sources, weights={"a": 1, "b": 1}, factors={"a": 3}).order.counts == {"a": 30, "b": 10}
    for settings, sentence in (
        ({"weights": "size"}, "data.weights: found 'size', expected 'sqrt'"),
        ({"factors": {"aa": 1.0}}, r"data.factors.aa: found no such source, expected a, b \(did you mean 'a'\?\)"),
        ({"factors": {"a": 0.0}}, "data.factors.a: found 0.0, expected a finite number above 0"),
        ({"factors": {"a": float("nan")}}, "data.factors.a: found nan"),
    ):
        with pytest.raises(ValueError, match=sentence):
            VQADataModule(train=sources, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(("weights", "balanced"), [("sqrt", True), ("{q: 1.0}", False), ("null", False)])
def test_yaml_of_template_data(weights: str, balanced: bool) -> None:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data")
    text = f"""
data:
  class_path: data_modules.module.VQADataModule
  init_args:
    weights: {weights}
    factors: {{q: 0.5}}
    global_batch: 8
    train:
      q: &q
        class_path: data_modules.sources.VqaV2
        init_args: {{questions: q.json, annotations: a.json, images: images, prompt: vqa, answers: drawn}}
      generated:
        class_path: data_modules.sources.QuestionGeneration
        init_args: {{source: *q}}
      prefixes:
        class_path: data_modules.sources.PrefixCaptions
        init_args:
          source:
            class_path: data_modules.sources.CocoCaptions
            init_args: {{annotations: c.json, images: images}}
      choices:
        class_path: data_modules.sources.AOkVqa
        init_args: {{annotations: a.json, images: images, form: choice}}
"""
    module = parser.instantiate_classes(parser.parse_string(text))["data"]
    assert isinstance(module, VQADataModule) and module.balanced is balanced
    assert module.global_batch == 8 and module.factors == {"q": 0.5}
    with pytest.raises(jsonargparse.ArgumentError, match="global_bach"):
        parser.parse_string(text.replace("global_batch", "global_bach"))


def test_yaml_names_sources_and_sets() -> None:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data")
    text = """
data:
  class_path: data_modules.module.InstructionDataModule
  init_args:
    group: modality_length
    weights: {q: 1.0}
    train:
      q: &q
        class_path: data_modules.sources.VqaV2
        init_args: {questions: q.json, annotations: a.json, images: images}
    test:
      novel: {source: *q, task: vqa, part: novel, limit: 5}
"""
    module = parser.instantiate_classes(parser.parse_string(text))["data"]
    assert isinstance(module, MultimodalDataModule) and isinstance(module.train["q"], VqaV2)
    assert module.test["novel"].limit == 5 and isinstance(module.test["novel"].source, VqaV2)
    with pytest.raises(jsonargparse.ArgumentError, match="imagez"):
        parser.parse_string(text.replace("images: images", "imagez: images"))
