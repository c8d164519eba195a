"""`mllm preview`: what the net gets of some samples, on one page that loads nothing."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from lightning_mllm.cli import main
from lightning_mllm.commands.preview_page import render
from lightning_mllm.commands.preview_samples import ShownSample, preview
from lightning_mllm.commands.preview_tokens import TokenText
from lightning_mllm.commands.stage_data import ComposedStage, composed_stages
from lightning_mllm.language.tokenizer import byte_tokenizer, load_tokenizer
from tests.commands.tiny_experiment import again, tiny_experiment


@pytest.fixture(scope="module")
def parsed(tmp_path_factory: pytest.TempPathFactory) -> ComposedStage:
    """The second stage, its settings parsed once for all tests."""
    (stage,) = composed_stages(tiny_experiment(tmp_path_factory.mktemp("parsed")), only="instruct")
    assert stage.resolved and stage.processor
    return stage


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tiny_experiment(tmp_path)


def only(parsed: ComposedStage, id: str) -> tuple[ShownSample, str]:
    """One sample of the conversations, and the page."""
    shown, missing = preview([again(parsed)], ids=[id])
    assert missing == []
    return shown[0].sets[0].samples[0], render("tiny", shown)


def test_the_command_writes_one_page_that_loads_nothing(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["preview", str(experiment), "--samples", "2", "--to", "pages/a.html"])
    page = Path("pages/a.html").read_text()
    assert capsys.readouterr().out.strip() == "pages/a.html"
    assert [each.name for each in Path("pages").iterdir()] == ["a.html"]  # written beside and renamed
    assert not re.search(r'(src|href)="(?!data:|#)|@import|url\(|<script', page)
    for told in ("data.train.captions", "data.train.talks", "data.test.questions", "talks.json: record", "plain"):
        assert told in page
    assert page.count('<article class="card sample') == 6 and "differ</span>" not in page


def test_a_sample_shows_pictures_tokens_and_what_is_learned(experiment: Path, parsed: ComposedStage) -> None:
    sample, page = only(parsed, "talk-1")
    facts = dict(sample.facts)
    assert facts["pictures"] == "1 x 4 slots" and sample.template == "vicuna_v1"
    (picture,) = sample.pictures
    assert (picture.original.width, picture.original.height) == (24, 12)
    assert (picture.views[0].width, picture.views[0].height) == (16, 16)
    images = [chip for chip in sample.row if chip.kind == "image"]
    assert [(chip.text, chip.count) for chip in images] == [("<image>", 4)]
    learned = "".join(chip.text for chip in sample.row if chip.learned)
    assert learned == " It is green.</s> [[000,000,499,999]]</s>"
    assert len([chip for chip in sample.row if chip.learned]) == int(facts["learned"])
    assert sum(chip.count for chip in sample.row) == int(facts["tokens"])
    assert '<i class="image" title="token' in page and "&lt;image&gt; <b>&times; 4</b>" in page
    assert re.search(r'title="token \d+  &#39;W&#39;  position \d+"', page)


def test_boxes_stand_where_their_frame_says(experiment: Path, parsed: ComposedStage) -> None:
    (picture,) = only(parsed, "talk-0")[0].pictures
    for shown in (picture.original, picture.views[0]):
        (box,) = shown.boxes
        assert (box.x, box.y, box.answer) == (0, 0, True)
        assert box.width == pytest.approx(0.499) and box.height == pytest.approx(0.999)
    assert (picture.wrong, picture.notes) == ([], [])


def test_boxes_of_another_frame_are_told_and_drawn_as_the_net_reads_them(
    experiment: Path, parsed: ComposedStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = parsed.processor.image
    monkeypatch.setattr(parsed.processor, "image", replace(policy, fit="pad"))
    (picture,) = only(parsed, "talk-0")[0].pictures
    assert picture.wrong == ["the boxes are told as shares of the image, and image.fit: pad shows the square"]
    # A picture of 24 x 12 fills half the square: the box is right on it, and reaches too far on the square.
    assert picture.original.boxes[0].height == pytest.approx(0.999) == picture.views[0].boxes[0].height
    monkeypatch.setattr(parsed.processor, "image", replace(policy, fit="crop"))
    (cut,) = only(parsed, "talk-0")[0].pictures
    # The middle half of the width is shown; the box ends at its middle, and begins before it.
    assert cut.views[0].boxes[0].x == pytest.approx(-0.5) and cut.views[0].boxes[0].width == pytest.approx(0.998)


def test_a_picture_that_cannot_be_read_is_told_in_its_place(experiment: Path, parsed: ComposedStage) -> None:
    Path("images/2.png").write_bytes(b"no picture")
    sample, page = only(parsed, "talk-2")
    assert "found bytes of no known image format" in sample.error and sample.error.split(":")[-1] in page


def test_a_prompt_that_differs_is_marked_red(
    experiment: Path, parsed: ComposedStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    sentence = "token 3 is 'a' in training and 'b' where asked"
    monkeypatch.setattr("lightning_mllm.commands.prompt_parity._difference", lambda *_: sentence)
    sample, page = only(parsed, "talk-0")
    assert sample.verdict == "differ" and "The prompts differ: token 3 is" in page
    assert '<article class="card sample bad">' in page and 'class="verdict differ"' in page


def test_a_cut_row_says_so(experiment: Path, parsed: ComposedStage) -> None:
    talks = json.loads(Path("talks.json").read_text())
    talks[0]["conversations"][3]["value"] = "long " * 200
    Path("talks.json").write_text(json.dumps(talks))
    sample, _ = only(parsed, "talk-0")
    assert sample.verdict == "agree" and sample.notes == ["overlong: found 1226 tokens, expected at most 512"]


def test_an_unknown_id_and_a_missing_set_are_sentences(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["preview", str(experiment), "--stage", "align", "--ids", "talk-9"])
    assert "--ids: found no sample 'talk-9' in the sets of tiny, expected one" in capsys.readouterr().err
    Path("talks.json").unlink()
    main(["preview", str(experiment), "--stage", "instruct", "--samples", "1"])
    assert "not shown: data.train.talks: talks.json not found" in capsys.readouterr().err
    assert "talks.json not found" in Path("preview.html").read_text()


def test_a_tokenizer_that_is_absent_is_one_sentence(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["preview", str(experiment), "--model.language.model=lmsys/vicuna-7b-v1.5"])
    (line,) = [each for each in capsys.readouterr().err.splitlines() if each.startswith("mllm:")]
    assert "tokenizer: found 'lmsys/vicuna-7b-v1.5', expected a folder or a name on the hub" in line


@pytest.mark.parametrize("model", ["", "package:backbones/llama"])
def test_tokens_say_what_they_stand_for(model: str) -> None:
    tokenizer = load_tokenizer(model) if model else byte_tokenizer()
    text = "a red  ring\nis here"
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    words = TokenText(tokenizer)
    assert words.of(tokens) == text == "".join(words.of([token]) for token in tokens)  # pyright: ignore
