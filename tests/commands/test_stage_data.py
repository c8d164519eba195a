"""The stages of an experiment composed for a look at their data: nothing is built, or read before it is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from data_modules.mixture_sampler import SampleLocation
from data_modules.module import MultimodalDataModule
from data_modules.training_samples import TrainingSamples
from lightning_mllm.commands.config import ConfigError
from lightning_mllm.commands.stage_data import ComposedStage, composed_stages
from tests.commands.tiny_experiment import again, tiny_experiment


@pytest.fixture(scope="module")
def parsed(tmp_path_factory: pytest.TempPathFactory) -> list[ComposedStage]:
    stages = composed_stages(tiny_experiment(tmp_path_factory.mktemp("parsed")))
    assert stages[1].resolved and stages[1].processor
    return stages


@pytest.fixture
def stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parsed: list[ComposedStage]) -> list[ComposedStage]:
    monkeypatch.chdir(tmp_path)
    tiny_experiment(tmp_path)
    return [again(each) for each in parsed]


def test_the_stages_of_a_folder_stand_in_their_order(stages: list[ComposedStage]) -> None:
    assert [each.title for each in stages] == ["tiny/align", "tiny/instruct"]
    assert stages[1].resolved["stage"]["init_from"] == {"align": 1.0}
    # The same processor as training's, and a net that is not built.
    assert stages[1].with_processor().processor is stages[1].module.processor
    assert not hasattr(stages[1].module, "net")


def test_a_file_is_one_stage_with_its_net(tmp_path: Path) -> None:
    folder = tiny_experiment(tmp_path)
    (only,) = composed_stages(folder / "align.yaml", overrides=["--stage.lr=0.5"])
    assert only.resolved["stage"]["lr"] == 0.5 and only.module.stages["align"]


@pytest.mark.parametrize(
    ("given", "only", "sentence"),
    [
        ("tiny/alin.yaml", None, "found no such file, expected an experiment or a YAML file of one stage"),
        ("tiny", "alin", "--stage: found 'alin', expected one of align, instruct; the nearest is 'align'"),
    ],
)
def test_what_is_wrong_is_one_sentence(tmp_path: Path, given: str, only: str | None, sentence: str) -> None:
    tiny_experiment(tmp_path)
    with pytest.raises(ConfigError, match=sentence):
        composed_stages(tmp_path / "experiments" / given, only=only)


def test_sets_are_what_is_trained_on_and_scored(stages: list[ComposedStage]) -> None:
    found = {each.title: each for each in stages[1].sets()}
    assert list(found) == ["data.train.talks", "data.test.questions"]
    talks, questions = found.values()
    with pytest.raises(AssertionError):
        len(talks)  # nothing is read before it is asked for
    talks.load()
    questions.load()
    assert (len(talks), talks.generates, talks.task) == (4, False, "")
    assert (len(questions), questions.generates, questions.task) == (2, True, "vqa")
    assert talks.where(1).endswith("talks.json: record 1")
    assert questions.sample(0)[0].references


def test_training_samples_are_those_of_the_first_epoch(stages: list[ComposedStage]) -> None:
    talks = next(stages[1].sets())
    talks.load()
    data, processor = stages[1].with_processor(), stages[1].processor
    assert isinstance(data, MultimodalDataModule)
    trained = TrainingSamples(data.train, processor, data.seed)[SampleLocation(0, "talks", 2)]
    sample, random = talks.sample(2)
    assert torch.equal(processor.encode(sample, random=random).tokens, trained.tokens)  # pyright: ignore


def test_a_missing_file_is_told_with_its_set(stages: list[ComposedStage], tmp_path: Path) -> None:
    (tmp_path / "talks.json").unlink()
    talks = next(stages[1].sets())
    with pytest.raises(ValueError, match=r"^data.train.talks: .*talks.json not found"):
        talks.load()


def test_rows_of_plain_text_are_a_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tiny_experiment(tmp_path)
    (tmp_path / "text1.txt").write_text("one two three four five six seven eight nine ten\n" * 20)
    stage = yaml.safe_load((folder / "instruct.yaml").read_text())
    source = {"class_path": "data_modules.sources.TextFiles", "init_args": {"files": "text*.txt"}}
    stage["data"]["init_args"]["text"] = {"source": source, "tokens": 64, "length": 32}
    (folder / "instruct.yaml").write_text(yaml.safe_dump(stage))
    (composed,) = composed_stages(folder, only="instruct")
    composed.with_processor()
    rows = next(each for each in composed.sets() if each.rows)
    rows.load()
    sample, _ = rows.sample(0)
    assert rows.title == "data.text" and len(rows) > 1 and sample.documents is not None
