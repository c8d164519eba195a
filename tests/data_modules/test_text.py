"""Laws of rows of plain text: always full, all of the text, one order for any number of ranks, beside other samples."""

from __future__ import annotations

from collections import Counter
from itertools import chain, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonargparse
import pytest
import torch
from lightning import LightningDataModule

from data_modules.evaluation import EvaluationSet
from data_modules.module import CaptionDataModule, InstructionDataModule, TextDataModule
from data_modules.sources import TextLines
from data_modules.text import TextRows, TextShare
from lightning_mllm.contracts import Batch, Sample
from lightning_mllm.processing.processor import Processor
from tests.data_modules.files import Echo, Numbers, write
from tests.data_modules.test_module import Watcher, trainer
from tests.processing.test_processor import processor
from tests.processing.tokenizer import WORDS


class Words(Echo):
    """Words as tokens; rows of text and other samples in one processor."""

    def encode(self, sample: Sample, *, generate: bool = False, random: Any = None) -> Any:
        if sample.documents is None:
            return super().encode(sample, generate=generate, random=random)
        words = [word for text in sample.documents.texts for word in text.split()]
        return SimpleNamespace(id=sample.id, tokens=words[: sample.documents.length])

    def collate(self, rows: Any, *, padding: str = "right") -> Any:
        if isinstance(rows[0], Sample):
            return super().collate(rows, padding=padding)
        return {"ids": [row.id for row in rows], "tokens": [row.tokens for row in rows]}


def corpus(path: Path, documents: int = 40, *, longest: int = 60) -> TextLines:
    """Documents of 1 to `longest` words, which tell their document and their place in it."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, longest + 1, (documents,), generator=generator).tolist()
    texts = [" ".join(f"d{k}w{word}" for word in range(length)) for k, length in enumerate(lengths)]
    return TextLines(write(path / "corpus.jsonl", [{"text": text} for text in texts]))


def rows(source: TextLines, length: int = 16, seed: int = 0, used: Any = None) -> TextRows:
    return TextRows(source, length, seed, used or Words())


def test_an_epoch_shows_all_of_the_text(tmp_path: Path) -> None:
    """What is given to a row from its beginning to that of the next one, over the rows of an epoch."""
    source = corpus(tmp_path)
    text = rows(source)
    assert len(text) == source.sizes.sum() // text.stride > 20
    for epoch in range(3):
        shown: Counter[tuple[int, int]] = Counter()
        for number in range(len(text)):
            parts, left = text.at(epoch * len(text) + number).parts, text.stride
            for index, begin, end in parts:
                shown.update((index, place) for place in range(begin, min(end, begin + left)))
                left -= min(left, end - begin)
            assert left == 0 and sum(end - begin for _, begin, end in parts) == 2 * text.stride
        assert set(shown.values()) == {1}
        assert source.sizes.sum() - len(shown) < text.stride, "less than a row is left over"


def test_rows_are_full_and_their_words_in_order(tmp_path: Path) -> None:
    text = rows(corpus(tmp_path, longest=200))
    split = Counter()
    for position in range(3 * len(text)):
        documents = text.sample(text.at(position)).documents
        assert documents is not None
        words = " ".join(documents.texts).split()
        assert len(words) >= 16
        for first, second in pairwise(words):
            (d, w), (e, v) = (each[1:].split("w") for each in (first, second))
            assert (d == e and int(v) == int(w) + 1) or v == "0", "a document is begun at its beginning"
        split[words[0].endswith("w0")] += 1
        whole = text.source.read(text.at(position).parts[-1].index).decode()
        assert documents.continued is not whole.endswith(documents.texts[-1])
    assert split[False] > split[True] > 0, "long documents are continued"


def test_orders_are_of_the_seed_and_the_epoch(tmp_path: Path) -> None:
    source = corpus(tmp_path)

    def first(seed: int, epoch: int) -> list[Any]:
        text = rows(source, seed=seed)
        return [text.at(epoch * len(text) + k).parts for k in range(5)]

    text = rows(source)
    backwards = [text.at(k).parts for k in reversed(range(len(text) + 5))][::-1]
    assert backwards[:5] == first(0, 0) and backwards[-5:] == first(0, 1)
    assert len({str(each) for each in (first(0, 0), first(0, 1), first(1, 0))}) == 3


@pytest.mark.parametrize("length", [8, 64])
def test_a_processor_fills_each_row(length: int, tmp_path: Path) -> None:
    texts = [" ".join(WORDS[k % 7 : k % 7 + 3 + k % 23]) for k in range(60)]
    source = TextLines(write(tmp_path / "a.jsonl", [{"text": text} for text in texts]))
    used = processor(max_length=64)
    text = rows(source, length, used=used)
    encoded = [used.encode(text.sample(text.at(k))) for k in range(2 * len(text))]
    assert {len(row.tokens) for row in encoded} == {length}
    # What is given beyond the stride is needed by some rows and not by others.
    own = sum(len(each.tokens) for each in (used.encode(source.sample(k, torch.Generator())) for k in range(60)))
    assert 0.6 < len(text) * length / own < 1.7


def test_text_that_fills_no_row(tmp_path: Path) -> None:
    source = corpus(tmp_path, documents=2, longest=3)
    with pytest.raises(ValueError, match=r"corpus.jsonl: found \d+ bytes of text, expected at least \d+ for a row of"):
        rows(source, 64)


# ---- beside other samples -------------------------------------------------------------------------------------------


def data(path: Path, **settings: Any) -> InstructionDataModule:
    given: dict[str, Any] = {
        "train": {"a": Numbers(7, "a"), "b": Numbers(4, "b")},
        "text": TextShare(source=corpus(path), tokens=64, length=16),
        "epochs": 3,
        "global_batch": 4,
        "micro_batch": 2,
        "text_micro_batch": 2,
        "processor": Words(),
    }
    return InstructionDataModule(**{**given, **settings})


def test_a_step_takes_text_and_then_samples(tmp_path: Path) -> None:
    module = data(tmp_path)
    loader = module.train_dataloader()
    assert module.accumulation(1) == loader.accumulation == 4 and len(loader) == 8 * 4
    alone = [id for batch in data(tmp_path, text=None).train_dataloader() for id in batch["ids"]]
    batches = list(loader)
    assert [list(batch) == ["ids", "tokens"] for batch in batches] == [True, True, False, False] * 8
    assert [id for batch in batches if "tokens" not in batch for id in batch["ids"]] == alone
    text = rows(corpus(tmp_path))
    expected = [text.sample(text.at(k)).id for k in range(8 * 4)]
    assert [id for batch in batches if "tokens" in batch for id in batch["ids"]] == expected
    assert {len(row) for batch in batches if "tokens" in batch for row in batch["tokens"]} == {16}


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_at_every_position(workers: int, tmp_path: Path) -> None:
    whole = list(data(tmp_path).train_dataloader())
    running, states = data(tmp_path, workers=workers).train_dataloader(), []
    for number, batch in enumerate(running):
        assert batch == whole[number]
        states.append(running.state_dict())
    assert [state["position"] for state in states] == [2 * (number + 1) for number in range(len(whole))]
    for number in range(len(whole)) if workers == 0 else (1, 4, 30):
        loader = data(tmp_path, workers=workers).train_dataloader()
        loader.load_state_dict(states[number])
        assert list(loader) == whole[number + 1 :]
    for position in (-2, 3, 66):
        with pytest.raises(ValueError, match=rf"found {position}, expected a multiple of 2 or 2 .* from 0 to 64"):
            data(tmp_path).train_dataloader().load_state_dict({"position": position})


@pytest.mark.parametrize(("world", "micro", "text_micro"), [(1, 4, 1), (1, 1, 4), (2, 1, 2), (2, 2, 1), (4, 1, 1)])
def test_ranks_share_out_each_step(world: int, micro: int, text_micro: int, tmp_path: Path) -> None:
    steps = _steps(list(data(tmp_path).train_dataloader()), 4)
    ranks = []
    for rank in range(world):
        module = data(tmp_path, micro_batch=micro, text_micro_batch=text_micro)
        count = module.accumulation(world)
        assert count == 4 // (world * micro) + 4 // (world * text_micro)
        module.trainer = SimpleNamespace(  # type: ignore[assignment]
            global_rank=rank, world_size=world, max_epochs=1, accumulate_grad_batches=count, fast_dev_run=1
        )
        loader = module.train_dataloader()
        assert loader._stream.number({"position": 8 * 3}) == 3 * count, "a checkpoint of a step fits any layout"
        batches, position = [], 0
        for batch in loader:
            batches.append(batch)
            position += len(batch["ids"]) * world
            assert loader.state_dict() == {"position": position}, "samples of all ranks"
            assert loader._stream.number({"position": position}) == len(batches)
        ranks.append(_steps(batches, count))
    together = [sorted(chain(*(rank[step] for rank in ranks))) for step in range(len(steps))]
    assert together == [sorted(step) for step in steps]
    kinds = [[id.startswith("row") for id in rank[0]] for rank in ranks]
    assert all(each == kinds[0] for each in kinds), "ranks take the same kind at the same time"


def _steps(batches: list[Any], accumulation: int) -> list[list[str]]:
    windows = [batches[k : k + accumulation] for k in range(0, len(batches), accumulation)]
    return [[id for batch in window for id in batch["ids"]] for window in windows]


def test_a_trainer_with_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    watcher = Watcher()
    running = trainer(tmp_path, accumulate_grad_batches=4)
    running.fit(watcher, data(tmp_path))
    assert running.global_step == 8
    assert watcher.seen == [batch["ids"] for batch in data(tmp_path).train_dataloader()]
    printed = " ".join(capsys.readouterr().out.split())
    assert "plain text, 8 steps of 4 rows of 16 tokens" in printed
    with pytest.raises(ValueError, match="found 2, expected 4 for 8 steps and batches of 4 = 2 x 2 x 1 and 4 = 2 x 2"):
        trainer(tmp_path).fit(Watcher(), data(tmp_path))


def test_what_does_not_fit(tmp_path: Path) -> None:
    for settings, sentence in (
        ({"text_micro_batch": 3}, r"data.text.tokens: found 4, expected a multiple of 3 = micro_batch 3 x 1 processes"),
        ({"micro_batch": 3}, r"stage.global_batch: found 4, expected a multiple of 3 = micro_batch 3 x 1 processes"),
    ):
        with pytest.raises(ValueError, match=sentence):
            data(tmp_path, **settings).accumulation(1)
    for tokens, length in ((65, 16), (0, 16), (8, 1)):
        with pytest.raises(ValueError, match=rf"data.text.tokens: found {tokens} tokens in rows of {length}, expected"):
            TextShare(source=corpus(tmp_path), tokens=tokens, length=length)
    with pytest.raises(ValueError, match=r"data.length: found 1, expected at least 2"):
        TextDataModule(corpus(tmp_path), length=1)


# ---- text alone -----------------------------------------------------------------------------------------------------


def test_text_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def module(**settings: Any) -> TextDataModule:
        given = {"epochs": 1.5, "global_batch": 4, "micro_batch": 2, "processor": processor(max_length=64)}
        return TextDataModule(corpus(tmp_path), length=32, **{**given, **settings})

    assert module().optimizer_steps == int(1.5 * len(module().rows)) // 4
    assert module(steps=3).optimizer_steps == 3 and module().accumulation(2) == 1
    module().setup("fit")
    assert "rows of 32 tokens" in " ".join(capsys.readouterr().out.split())
    batches: list[Batch] = list(module().train_dataloader())
    assert len(batches) == 2 * module().optimizer_steps
    for batch in batches:
        assert batch.tokens.shape == (2, 32) and batch.num_images == 0 and bool((batch.segments > 0).all())
    loader = module(workers=1).train_dataloader()
    loader.load_state_dict({"position": 6})
    for found, expected in zip(loader, batches[3:], strict=True):
        assert found.ids == expected.ids and torch.equal(found.tokens, expected.tokens)


def test_documents_to_answer(tmp_path: Path) -> None:
    """A set for perplexity has no blind twin, and its documents are whole rows."""
    answered = EvaluationSet(source=corpus(tmp_path / "test", documents=5), task="perplexity")
    module: Any = TextDataModule(corpus(tmp_path), test={"text": answered}, processor=processor(max_length=2048))
    assert [each.suffix for each in module.evaluations("test")] == [""]
    module.setup("test")
    ((batch,),) = ([*loader] for loader in module.test_dataloader())
    assert batch.tasks == ["perplexity"] * 5 and batch.segments.max() == 1
    used: Processor = module.processor
    assert sorted(batch.indices) == [0, 1, 2, 3, 4], "long ones first"
    for row, (id, index) in enumerate(zip(batch.ids, batch.indices, strict=True)):
        text = answered.source.sample(index, torch.Generator()).documents.texts[0]  # pyright: ignore
        assert id == answered.source.name(index)  # pyright: ignore
        words = batch.labels[row][batch.labels[row] >= 0]
        assert words.tolist()[:-1] == used.tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("kind", ["beside", "alone"])
def test_yaml(kind: str, tmp_path: Path) -> None:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data")
    source = "{class_path: data_modules.sources.TextLines, init_args: {files: a.jsonl}}"
    beside = f"""
    class_path: data_modules.module.CaptionDataModule
    init_args:
        global_batch: 640
        train: {{}}
        text: {{source: {source}, tokens: 65536}}"""
    alone = f"""
    class_path: data_modules.module.TextDataModule
    init_args: {{global_batch: 32, length: 4096, source: {source}}}"""
    text = f"data:{beside if kind == 'beside' else alone}\n"
    module = parser.instantiate_classes(parser.parse_string(text))["data"]
    if kind == "beside":
        assert isinstance(module, CaptionDataModule) and module.text is not None
        assert (module.text.rows, module.text.length) == (32, 2048)
        assert [share.batch for share in module.shares()] == [32, 640]
    else:
        assert isinstance(module, TextDataModule) and module.length == 4096
        with pytest.raises(jsonargparse.ArgumentError, match="train"):
            parser.parse_string(text.replace("length: 4096", "train: {a: 1}"))
