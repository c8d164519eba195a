"""`mllm doctor`: a sound experiment is green, and a planted fault turns its own line red, with what to do about it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from lightning_mllm.cli import main
from lightning_mllm.commands import doctor_batch, doctor_environment, doctor_files, doctor_memory, doctor_twin
from lightning_mllm.commands.doctor import CHECKS, examine, render, summary, worst
from lightning_mllm.commands.doctor_lines import Line, Subject, offline
from lightning_mllm.commands.stage_data import ComposedStage, composed_stages
from lightning_mllm.contracts import Encoded, TokenKind
from lightning_mllm.processing.chat_template import ChatTemplate
from lightning_mllm.training.memory import Memory
from tests.commands.tiny_experiment import again, tiny_experiment

SMALL = ([], Memory(parameters=10**6))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the tiny experiment; the memory oracle, which has tests of its own, answers at once."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor_memory, "stage_row", lambda command: SMALL)
    tiny_experiment(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def parsed(tmp_path_factory: pytest.TempPathFactory) -> ComposedStage:
    """The second stage, its settings parsed once for all tests."""
    (stage,) = composed_stages(tiny_experiment(tmp_path_factory.mktemp("parsed")), only="instruct")
    assert stage.resolved and stage.processor
    return stage


def subject_of(stage: ComposedStage) -> Subject:
    return Subject(stage=stage, siblings=("align", "instruct"), runs=Path("runs"))


@pytest.fixture
def sound(root: Path, parsed: ComposedStage) -> Subject:
    return subject_of(again(parsed))


def lines(subject: Subject, *, twin: bool = True) -> list[Line]:
    """Of all checks of a stage; those of the `twin` read none of its data."""
    left_out = () if twin else (doctor_twin.gradients, doctor_twin.round_trip)
    with offline():
        return [line for check in CHECKS if check not in left_out for line in check(subject)]


def test_a_sound_experiment_has_no_red_line(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor", "experiments/tiny", "--stage", "instruct", "--to", "pages/doctor.html"])
    out, page = capsys.readouterr().out, Path("pages/doctor.html").read_text()
    assert "0 red: nothing" in out and "FAULT" not in out
    for check in ("configuration", "init_from", "data", "batch", "masks", "slots", "prompts", "freezing", "gradients"):
        assert check in out and f'<div class="check">{check}</div>' in page
    assert "LlavaForConditionalGeneration: written, read" in " ".join(page.split())
    assert "2 samples a step = 1 x 2 x 1, 2 steps" in " ".join(page.split())
    assert "<script" not in page and "http" not in page.replace("http-equiv", "")


def test_every_check_has_a_line_of_a_sound_stage(sound: Subject) -> None:
    found = lines(sound)
    assert {line.level for line in found} == {"green"}
    assert len({line.check for line in found}) == len(CHECKS)


def settings(root: Path) -> list[str]:
    return [each.read_text() for each in sorted((root / "experiments/tiny").glob("*.yaml"))]


def no_picture(root: Path) -> None:
    (root / "images/2.png").unlink()


def damaged_picture(root: Path) -> None:
    (root / "images/1.png").write_bytes(b"no picture")


def no_annotations(root: Path) -> None:
    (root / "questions.json").unlink()


def unknown_stage(root: Path) -> None:
    change(root, stage={"init_from": {"aline": 1.0}})


def change(root: Path, **settings: Any) -> None:
    """Settings laid over those of the second stage."""
    file = root / "experiments/tiny/instruct.yaml"
    found = yaml.safe_load(file.read_text())
    for group, more in settings.items():
        found[group] = {**found.get(group, {}), **more}
    file.write_text(yaml.safe_dump(found))


def no_parameters(root: Path) -> None:
    change(root, stage={"train": {"conector.*": {}}})


def odd_batch(root: Path) -> None:
    change(root, stage={"global_batch": 3})


def long_rows(root: Path) -> None:
    talks = json.loads((root / "talks.json").read_text())
    talks[1]["conversations"][0]["value"] += " long" * 200
    (root / "talks.json").write_text(json.dumps(talks))


def other_frame(root: Path) -> None:
    change(root, model={"init_args": {"image": {"size": 16, "fit": "pad"}}})


def absent_weights(root: Path) -> None:
    config = yaml.safe_load((root / "experiments/tiny/net.yaml").read_text())
    config["model"]["init_args"]["vision"]["weights"] = "weights/tower.safetensors"
    (root / "experiments/tiny/net.yaml").write_text(yaml.safe_dump(config))


def unknown_setting(root: Path) -> None:
    change(root, stage={"name": "instrukt"})


FAULTS: dict[Callable[[Path], None], tuple[str, str, str]] = {
    no_picture: ("data", "data.train.talks: talks.json: record 2", "put the file where it is named"),
    damaged_picture: (
        "data",
        "1.png: found bytes of no known image format",
        "correct what is named, or leave such out",
    ),
    no_annotations: ("data", "data.test.questions: questions.json not found", "put the file where it is named"),
    unknown_stage: ("init_from", "found no 'tiny/aline' in runs", "name a stage of this experiment"),
    no_parameters: ("freezing", "pattern 'conector.*' matches no parameter", "correct stage.train"),
    odd_batch: ("batches", "stage.global_batch: found 3, expected a multiple of 2", "--hardware.micro_batch=N"),
    long_rows: ("batch", "talks.json: record 1: sample 'talk-1': found", "correct the record, or leave such out"),
    other_frame: (
        "batch",
        "boxes are shares of the image, and image.fit: pad shows another",
        "model.image.fit: squash",
    ),
    absent_weights: ("weights and tokenizers", "weights/tower.safetensors: found no such file", "put it there"),
}


@pytest.mark.parametrize("plant", FAULTS, ids=lambda plant: plant.__name__)
def test_a_planted_fault_turns_its_line_red(root: Path, parsed: ComposedStage, plant: Callable[[Path], None]) -> None:
    before = settings(root)
    plant(root)
    same = settings(root) == before
    stage = again(parsed) if same else composed_stages(root / "experiments/tiny", only="instruct")[0]
    found = lines(subject_of(stage), twin=not same)
    check, told, remedy = FAULTS[plant]
    red = [line for line in found if line.level == "red"]
    assert {line.check for line in red} == {check}, red
    assert told in red[0].found and red[0].remedy.startswith(remedy)


def test_a_damaged_picture_that_training_replaces_is_yellow(root: Path, parsed: ComposedStage) -> None:
    damaged_picture(root)
    subject = subject_of(again(parsed))
    for each in subject.sets:
        each.source.bad_records = "skip"
    found = [line for line in doctor_files.data(subject) if line.level != "green"]
    assert [line.level for line in found] == ["yellow"] * len(found) and found
    assert "no known image format" in found[0].found and "data.bad_limits" in found[0].remedy


def test_a_wrong_configuration_is_the_only_line_of_its_stage(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unknown_setting(root)
    with pytest.raises(SystemExit) as left:
        main(["doctor", "experiments/tiny", "--stage", "instruct"])
    out = " ".join(capsys.readouterr().out.split())
    assert left.value.code == 2 and "FAULT" in out and "1 red: the run would go wrong" in out
    assert (
        "configuration" in out and "stage.name: found 'instrukt', expected" in out and "data" not in out.split("->")[0]
    )


def red_of(subject: Subject, *, twin: bool = False) -> Line:
    """The only check that is red, and its line."""
    red = [line for line in lines(subject, twin=twin) if line.level == "red"]
    assert len({line.check for line in red}) == 1, red
    return red[0]


def changed_rows(subject: Subject, change: Callable[[Encoded], Encoded], monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of training as another processor would make them."""
    assert subject.processor is not None
    own, kind = subject.processor.encode, type(subject.processor)

    def encode(processor: Any, sample: Any, **how: Any) -> Encoded:
        row = own(sample, **how)
        return change(row) if not how.get("generate") and processor is subject.processor else row

    monkeypatch.setattr(kind, "encode", lambda self, sample, **how: encode(self, sample, **how))


def test_a_template_that_masks_nothing(sound: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    render_ = ChatTemplate.render

    def all_learned(self: ChatTemplate, *turns: Any, **how: Any) -> Any:
        return [piece if piece.mark else piece._replace(learn=True) for piece in render_(self, *turns, **how)]

    monkeypatch.setattr(ChatTemplate, "render", all_learned)
    talks = json.loads(Path("talks.json").read_text())
    for each in talks:
        each["conversations"][0]["value"] = "<image>\nWhat colour is the picture?"
    Path("talks.json").write_text(json.dumps(talks))
    line = next(each for each in doctor_batch.masks(sound) if each.level == "red")
    assert "the question 'What colour is the picture?' is learned, expected answers alone" in line.found
    assert line.remedy.startswith("choose the chat template that the data is written for")


def test_slots_that_are_learned(sound: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    def learned(row: Encoded) -> Encoded:
        return replace(row, labels=torch.where(row.kinds == TokenKind.IMAGE, 5, row.labels))

    changed_rows(sound, learned, monkeypatch)
    line = red_of(sound)
    assert line.check == "masks" and "4 slots of pictures are learned, expected none" in line.found


def test_nothing_that_is_learned(sound: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    changed_rows(sound, lambda row: replace(row, labels=row.labels * 0 - 100), monkeypatch)
    line = red_of(sound)
    assert line.check == "masks" and "nothing is learned of any" in line.found


def test_counts_of_slots_that_are_wrong(sound: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    changed_rows(sound, lambda row: replace(row, visual_counts=(5,)), monkeypatch)
    line = red_of(sound)
    assert line.check == "slots" and "4 slots for 5 vectors, expected as many" in line.found
    assert "model.vision" in line.remedy


def test_a_prompt_that_breaks_parity(sound: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    changed_rows(
        sound, lambda row: replace(row, tokens=row.tokens.clone().index_fill_(0, torch.tensor(3), 9)), monkeypatch
    )
    line = red_of(sound)
    assert line.check == "prompts" and "differ; sample talk-0: token 3 is" in line.found
    assert line.remedy.startswith("mllm preview shows both prompts")


@pytest.mark.parametrize(("times", "level"), [(0.9, "red"), (1.5, "yellow"), (3.0, "green")])
def test_a_disk_that_is_too_small(sound: Subject, times: float, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = sum(each.numel() for each in sound.net.parameters() if each.requires_grad)
    free = SimpleNamespace(free=times * 40 * trained)
    monkeypatch.setattr(doctor_files.shutil, "disk_usage", lambda folder: free)
    (line,) = doctor_files.disk(sound)
    assert line.level == level
    assert f"{40 * trained / 10**6:,.1f} MB for checkpoints and weights" in line.found
    assert ("--runs" in line.remedy) == (line.level != "green")


@pytest.mark.parametrize(("size", "level"), [(10**9, "red"), (1_050_000_000, "yellow"), (10**10, "green")])
def test_a_device_that_is_too_small(sound: Subject, size: int, level: str) -> None:
    sound.device_memory = size
    (line,) = doctor_memory.memory(sound)
    assert line.level == level and f"the device has {size / 10**9:.1f} GB" in line.found


def test_a_trained_tensor_that_no_loss_reaches(sound: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    own = doctor_twin._trained_twin

    def deaf(subject: Subject) -> Any:
        twin, left_out = own(subject)
        assert twin is not None
        # What the tower says reaches the connector no more.
        twin.net.get_submodule("connector").register_forward_pre_hook(
            lambda module, given: tuple(each * 0 for each in given)
        )
        return twin, left_out

    monkeypatch.setattr(doctor_twin, "_trained_twin", deaf)
    line = red_of(sound, twin=True)
    assert line.check == "gradients" and "connector" in line.found and "expected a non-zero gradient" in line.found


def test_a_frozen_tensor_that_has_a_gradient(sound: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    own = doctor_twin.GradientCheck

    def lying(net: Any, unused: Any) -> Any:
        found = own(net, unused)
        name = next(iter(found.trained))
        found.frozen[name] = found.trained.pop(name)
        found.waiting.discard(name)
        return found

    monkeypatch.setattr(doctor_twin, "GradientCheck", lying)
    assert "frozen, expected no gradient, found one" in red_of(sound, twin=True).found


def test_an_export_that_comes_back_changed(sound: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    own = doctor_twin.import_folder

    def changed(folder: Path) -> Any:
        module = own(folder)
        module.configure_model()
        with torch.no_grad():
            next(module.net.get_submodule("connector").parameters()).mul_(1.5)
        return module

    monkeypatch.setattr(doctor_twin, "import_folder", changed)
    line = red_of(sound, twin=True)
    assert line.check == "export" and "read back, the logits of the tiny twin differ by" in line.found


def test_a_malicious_upload_is_red(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {line.level for line in doctor_environment.packages()} == {"green"}
    known = {"lightning": "2.6.3", "torch": "2.10.1", "transformers": "5.3.0"}
    monkeypatch.setattr(doctor_environment, "_installed", lambda name: known.get(name, ""))
    red = [line for line in doctor_environment.packages() if line.level == "red"]
    assert ["malicious upload" in line.found for line in red] == [True, False]
    assert "change every password and key" in red[0].remedy


def test_patterns_that_a_small_net_lacks_are_told(sound: Subject) -> None:
    subject = sound
    subject.net.table["language.model.layers.30.*"] = subject.net.table["connector.*"]
    (line,) = doctor_twin.gradients(subject)
    assert line.level == "green" and "not tried on it: language.model.layers.30.*" in line.found


def test_a_check_that_fails_itself_is_a_line(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(subject: Subject) -> Any:
        raise KeyError("unforeseen")
        yield

    monkeypatch.setattr("lightning_mllm.commands.doctor.CHECKS", (wrong,))
    found = examine(Path("experiments/tiny"), only="align")
    assert worst(found) == "red" and "wrong: KeyError: 'unforeseen'" in found[-1].found
    assert summary(found).endswith("1 red: the run would go wrong") and "unforeseen" in render("tiny", "cpu", found)


def test_a_published_recipe_without_its_files_has_no_traceback(root: Path) -> None:
    found = [line for line in examine(Path("llava15_7b"), hardware="gpu8", only="align") if line.stage]
    levels = {line.check: line.level for line in found}
    assert levels["data"] == "red" and levels["freezing"] == "green" and levels["batch"] == "yellow"
    assert [line.found for line in found if line.check == "weights and tokenizers"] == [
        "lmsys/vicuna-7b-v1.5 is not on this machine",
        "vision: ViT-L-14-336-quickgelu with weights openai: not on this machine",
    ]
    assert all(line.remedy for line in found if line.level != "green")
