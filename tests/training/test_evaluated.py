"""Closed sets and retrieval through the Trainer: what the module asks an architecture for, on one rank and on two."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from data_modules.evaluation import EvaluationSet
from data_modules.module import MultimodalDataModule
from lightning_mllm.contracts import Batch, Sample, Turn
from lightning_mllm.evaluation.retrieval import Side
from lightning_mllm.language.generation import Decoding
from lightning_mllm.nets.encoded_images import EncodedImages
from lightning_mllm.training.sharding import ShardedStrategy
from tests.distributed.ranks import on_two_ranks
from tests.toy import END, Toy, ToyNet, ToyProcessor
from tests.training.data import COLOURS, Squares
from tests.training.runs import settings, trainer


class SeerNet(ToyNet):
    """A toy that ranks candidates and retrieves."""

    entries = ("generate", "candidates", "embed_images", "embed_texts", "match")

    def candidates(self, batch: Batch) -> list[list[float]]:
        embeds = self.embeddings(batch)
        return [
            [self._likelihood(embeds[row], batch.segments[row], text) for text in candidates]
            for row, candidates in enumerate(batch.candidates)
        ]

    def _likelihood(self, embeds: Tensor, segments: Tensor, text: str) -> float:
        tokens = torch.tensor([*text.encode(), END])
        whole = torch.cat([embeds, self.language.embed(tokens)]).unsqueeze(0)
        real = torch.cat([segments, torch.ones_like(tokens)]).unsqueeze(0)
        logits = self.language.head(self.language(whole, real))[0, -len(tokens) - 1 : -1]
        return float(logits.log_softmax(-1).gather(1, tokens.unsqueeze(1)).sum())

    def embed_images(self, batch: Batch) -> Side:
        return {"features": self.encode_images(batch)}

    def embed_texts(self, texts: list[str]) -> Side:
        return {"features": torch.stack([self.language.embed(torch.tensor([*t.encode()])).mean(0) for t in texts])}

    def match(self, images: Side, texts: Side, image_of: Tensor) -> Tensor:
        return self.language.head(images["features"].mean(1)[image_of] * texts["features"])[:, 0]


class Seer(Toy):
    rerank = 3

    net: SeerNet  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._make_net = SeerNet

    def likelihoods(self, batch: Batch) -> list[list[float]]:
        return self.net.candidates(batch)

    def embed_images(self, batch: Batch) -> Side:
        return self.net.embed_images(batch)

    def embed_texts(self, texts: list[str]) -> Side:
        return self.net.embed_texts(texts)

    def similarity(self, images: Side, texts: Side) -> Tensor:
        return torch.einsum("nvd,md->nmv", images["features"], texts["features"]).amax(-1)

    def match(self, images: Side, texts: Side, image_of: Tensor) -> Tensor:
        return self.net.match(images, texts, image_of)


class Closed(Squares):
    def sample(self, index: int, generator: torch.Generator) -> Sample:
        return replace(super().sample(index, generator), candidates=tuple(COLOURS))


class Hateful(Squares):
    """Is it red?"""

    def sample(self, index: int, generator: torch.Generator) -> Sample:
        sample = super().sample(index, generator)
        label = "yes" if sample.references == ("red",) else "no"
        return replace(sample, references=(label,), candidates=("yes", "no"))


def data() -> MultimodalDataModule:
    sets = {
        "closed": EvaluationSet(source=Closed(10), task="choice"),
        "hateful": EvaluationSet(source=Hateful(10), task="auc", blind=False),
        "written": EvaluationSet(source=Squares(10), task="exact"),
        "pairs": EvaluationSet(source=Squares(10), task="retrieval"),
    }
    return MultimodalDataModule(val=sets, test=sets, eval_batch=3, processor=ToyProcessor())


def net() -> Seer:
    torch.manual_seed(0)
    return Seer(stage=settings("instruct"))


def test_a_closed_set_is_answered_by_the_candidate_of_the_smallest_loss(tmp_path: Path) -> None:
    module = net()
    found = trainer(tmp_path, logger=False, callbacks=[]).test(module, datamodule=data(), verbose=False)
    results = json.loads((tmp_path / "test.json").read_text())
    assert found[0]["test/choice_accuracy"] == pytest.approx(results["scores"]["choice_accuracy"]["value"])
    assert {"auc", "exact_match_blind", "image_retrieval_r5"} <= results["scores"].keys()
    assert results["samples"]["retrieval"] == 10
    by_id = {e["id"]: e for e in results["examples"] if e["task"] == "choice" and not e["blind"]}
    source, processor, right = Closed(10), ToyProcessor(), 0
    for index in range(10):
        sample = source.sample(index, torch.Generator().manual_seed(0))
        losses = {}
        for text in COLOURS:
            told = replace(sample, turns=(sample.turns[0], Turn(role="assistant", text=text)))
            output = module(processor.collate([processor.encode(told)]))
            losses[text] = float((output.loss * output.count).detach())
        assert by_id[sample.id]["answer"] == min(losses, key=lambda text: losses[text])
        right += by_id[sample.id]["answer"] in sample.references
    assert results["scores"]["choice_accuracy"]["value"] == right / 10


def test_the_blind_twin_of_retrieval_is_chance(tmp_path: Path) -> None:
    found = trainer(tmp_path, logger=False, callbacks=[]).test(net(), datamodule=data(), verbose=False)
    scores: dict[str, float] = {name: value for each in found for name, value in each.items()}
    assert scores["test/image_retrieval_r1_blind"] == pytest.approx(1 / 10)
    assert scores["test/text_retrieval_r5_blind"] == pytest.approx(5 / 10)


def test_a_part_may_have_decoding_settings_of_its_own() -> None:
    """SPHINX answers OCR-VQA with 20 new tokens and GQA, which is scored alike, with 10."""
    decoding = {"exact": Decoding(max_new_tokens=3), "exact_novel": Decoding(max_new_tokens=5)}
    torch.manual_seed(0)
    module, processor, asked = Seer(stage=settings("instruct")), ToyProcessor(), []
    module.decoding = decoding
    module.generate = lambda batch, decoding: asked.append(decoding.max_new_tokens) or [[END]] * len(batch.ids)
    batch = processor.collate([processor.encode(Squares(2).sample(0, torch.Generator()), generate=True)])
    for task, part in (("exact", ""), ("exact", "novel"), ("exact", "other"), ("vqa", "novel")):
        module.answers(replace(batch, tasks=[task]), part)
    assert asked == [3, 5, 3, Decoding().max_new_tokens]


def test_predictions_are_the_chosen_candidates() -> None:
    module, processor = net(), ToyProcessor()
    module.configure_model()
    samples = [Closed(4).sample(index, torch.Generator()) for index in range(3)]
    batch = processor.collate([processor.encode(sample, generate=True) for sample in samples], padding="left")
    with torch.inference_mode():
        assert all(answer in COLOURS for answer in module.answers(batch))


def asked() -> MultimodalDataModule:
    sets = {
        "ranked": EvaluationSet(source=Squares(4), task="retrieval"),
        "closed": EvaluationSet(source=Closed(10), task="choice"),
        "written": EvaluationSet(source=Squares(7), task="exact", part="novel"),
    }
    return MultimodalDataModule(test=sets, eval_batch=3, processor=ToyProcessor())


def predicted(folder: Path, **settings: Any) -> list[dict[str, str]]:
    trainer(folder, logger=False, callbacks=[], **settings).predict(net(), datamodule=asked())
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()]


def test_predict_writes_every_answer_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = predicted(tmp_path)
    out = capsys.readouterr().out.strip()
    assert out.startswith("data.test: sets of retrieval are left out, for they are not answered")
    assert out.endswith(f"{tmp_path / 'answers.jsonl'} (17 answers)")
    sources = [("choice", "", Closed(10)), ("exact", "novel", Squares(7))]
    samples = [
        (task, part, source.sample(k, torch.Generator())) for task, part, source in sources for k in range(len(source))
    ]
    assert [(row["task"], row["part"], row["id"]) for row in rows] == [(task, part, s.id) for task, part, s in samples]
    assert [row["prompt"] for row in rows] == [s.turns[0].text.replace("<image>", "") for _, _, s in samples]
    assert all(row["answer"] in COLOURS for row in rows[:10])
    assert [path.name for path in tmp_path.iterdir() if "answers" in path.name] == ["answers.jsonl"]


def test_two_ranks_predict_as_one(tmp_path: Path) -> None:
    def work(rank: int) -> None:
        strategy = DDPStrategy(process_group_backend="gloo")
        own = trainer(tmp_path / "two", devices=2, strategy=strategy, logger=False, callbacks=[])
        own.predict(net(), datamodule=asked())

    on_two_ranks(work)
    one = predicted(tmp_path / "one")
    assert (tmp_path / "two" / "answers.jsonl").read_text() == (tmp_path / "one" / "answers.jsonl").read_text()
    assert len(one) == 17, "what fills up the ranks stands there once"


def test_a_recipe_that_asks_nothing_is_refused_before_the_net_is_built(tmp_path: Path) -> None:
    module, only = net(), {"ranked": EvaluationSet(source=Squares(4), task="retrieval")}
    module.configure_model = lambda: pytest.fail("built")
    given = MultimodalDataModule(test=only, eval_batch=3, processor=ToyProcessor())
    with pytest.raises(ValueError, match=r"data\.test: found only sets of retrieval, expected one that is answered"):
        trainer(tmp_path, logger=False, callbacks=[]).predict(module, datamodule=given)
    assert not (tmp_path / "answers.jsonl").exists()


def test_an_architecture_that_cannot_says_so(tmp_path: Path) -> None:
    plain = Toy(stage=settings("instruct"))
    with pytest.raises(ValueError, match="task is 'retrieval' but Toy has no embed_images"):
        trainer(tmp_path, logger=False, callbacks=[]).test(plain, datamodule=data(), verbose=False)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_ranks_score_as_one(strategy: str, tmp_path: Path) -> None:
    def work(rank: int) -> Any:
        chosen = DDPStrategy(process_group_backend="gloo") if strategy == "ddp" else ShardedStrategy()
        own = trainer(tmp_path / "two", devices=2, strategy=chosen, logger=False, callbacks=[])
        return own.test(net(), datamodule=data(), verbose=False)

    one = trainer(tmp_path / "one", logger=False, callbacks=[]).test(net(), datamodule=data(), verbose=False)
    first, second = on_two_ranks(work)
    expected = {name: value for each in one for name, value in each.items()}
    for each in (first, second):
        found = {name: value for scores in each for name, value in scores.items()}
        assert found == pytest.approx(expected, abs=1e-6)


class Noting(Seer):
    """Notes what is known of images while it answers, and is interrupted in its sixth batch."""

    noted: list[EncodedImages | None]

    def answers(self, batch: Batch, part: str = "") -> list[str]:
        self.noted.append(self.encoded_images)
        if len(self.noted) == 6:
            raise RuntimeError("interrupted")
        return super().answers(batch, part)


def test_images_are_encoded_anew_for_other_weights(tmp_path: Path) -> None:
    """Known within one evaluation alone, also where one is interrupted."""
    torch.manual_seed(0)
    module = Noting(stage=settings("instruct"))
    known = module.noted = []
    sets = {"written": EvaluationSet(source=Squares(10), task="exact")}
    data = MultimodalDataModule(val=sets, eval_batch=3, processor=ToyProcessor())
    runs = trainer(tmp_path, logger=False, callbacks=[], limit_val_batches=None)
    runs.validate(module, datamodule=data, verbose=False)
    assert module.encoded_images is None
    with pytest.raises(RuntimeError, match="interrupted"):
        runs.validate(module, datamodule=data, verbose=False)
    assert module.encoded_images is None, "left by the interrupted one"
    assert None not in known and [each is known[0] for each in known] == [True] * 4 + [False] * 2
    assert known[4] is known[5]
