from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_modules.sources import IVqa, MsrvttQa, MsvdQa
from data_modules.sources.video import spread
from tests.data_modules.files import touch, write
from tests.data_modules.sources.held_out import samples, score, turns


def asked(id: int = 0, video: int = 1, **changes: Any) -> dict[str, Any]:
    return {"answer": "chew", "id": id, "question": "what does the animal do?", "video_id": video, **changes}


def frames(video: str, numbers: Any = range(1, 9)) -> list[str]:
    return [f"{video}/{number:04d}.jpg" for number in numbers]


def msvd(folder: Path, records: list[Any], names: list[str] | None = None, **settings: Any) -> MsvdQa:
    images = touch(folder / "frames", *(frames("vid1") if names is None else names))
    return MsvdQa(write(folder / "test_qa.json", records), images, **settings)


def shown(sample: Any) -> list[str]:
    return [Path(image.name).name for image in sample.images]


@pytest.mark.parametrize(
    ("total", "count", "places"),
    [(8, 4, [1, 3, 5, 7]), (4, 4, [0, 1, 2, 3]), (9, 1, [4]), (100, 4, [12, 37, 62, 87]), (5, 3, [0, 2, 4])],
)
def test_frames_are_the_centres_of_equal_segments(total: int, count: int, places: list[int]) -> None:
    assert spread([str(k) for k in range(total)], count) == [str(place) for place in places]


def test_every_frame_once_where_all_are_asked_for() -> None:
    for total in range(1, 30):
        each = [str(k) for k in range(total)]
        assert spread(each, total) == each
        assert all(len(set(spread(each, count))) == count for count in range(1, total + 1))


def test_msvd_shows_as_many_images_as_marks(tmp_path: Path) -> None:
    first, second = samples(msvd(tmp_path, [asked(), asked(1, question="who is it?", answer="panda")]))
    assert turns(first) == ["<image><image><image><image>\nQuestion: what does the animal do? Short answer:", "chew"]
    assert shown(first) == shown(second) == ["0002.jpg", "0004.jpg", "0006.jpg", "0008.jpg"]
    assert first.images[0].name.endswith("frames/vid1/0002.jpg")
    assert (first.id, first.task, first.references, first.candidates) == ("0", "exact", ("chew",), ())
    assert (score([first, second]), score([first], right=False)) == (1, 0)
    (one,) = samples(msvd(tmp_path, [asked()], frames=1))
    assert turns(one)[0].count("<image>") == len(one.images) == 1


def test_frames_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    names = [f"vid1/{number}.jpg" for number in (10, 9, 2, 1)]
    (sample,) = samples(msvd(tmp_path, [asked()], [*names, "vid1/cover.jpg", "vid1/3.txt"]))
    assert shown(sample) == ["1.jpg", "2.jpg", "9.jpg", "10.jpg"]


def test_a_vocabulary_is_ranked(tmp_path: Path) -> None:
    vocabulary = write(tmp_path / "train_ans2label.json", {"man": 0, "chew": 1, "panda": 2})
    (inside, outside) = samples(msvd(tmp_path, [asked(), asked(1, answer="sniff")], vocabulary=vocabulary))
    assert inside.candidates == outside.candidates == ("man", "chew", "panda")
    assert outside.references == ("sniff",), "asked all the same: it counts as wrong"
    with pytest.raises(ValueError, match=r"train_ans2label.json: expected an object of at least 2 answers"):
        msvd(tmp_path, [asked()], vocabulary=write(tmp_path / "train_ans2label.json", ["man", "chew"])).load()


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"video_id": 2}, "video .*frames/vid2 not found"),
        ({"video_id": 3}, "video .*frames/vid3 has 3 frames NUMBER.jpg, expected at least 4"),
        ({"video_id": "1"}, "'video_id' is a text, expected a number"),
        ({"answer": ""}, "'answer' is empty"),
        ({"question": None}, "'question' is null, expected a text"),
        ({"id": 0}, "the id 0 occurs twice"),
    ],
)
def test_msvd_refuses(tmp_path: Path, changes: dict[str, Any], rule: str) -> None:
    names = [*frames("vid1"), *frames("vid3", range(3)), "vid3/cover.jpg"]
    source = msvd(tmp_path, [asked(), asked(**{"id": 1, **changes})], names)
    with pytest.raises(ValueError, match=rf"test_qa.json: record 1 \(id \d\): {rule}"):
        source.load()


def test_frames_are_the_centres_or_the_starts_of_segments(tmp_path: Path) -> None:
    """LAVIS: numpy.arange(0, n, n / 4) as whole numbers."""
    for count in (4, 5, 9, 10, 23):
        names = frames("vid1", range(count))
        for which in ("centres", "starts"):
            folder = tmp_path / f"{count}_{which}"
            folder.mkdir()
            (sample,) = samples(msvd(folder, [asked()], names, spread=which))
            starts = np.arange(0, count, count / 4).astype(int).tolist()
            centres = [int((k + 0.5) * count / 4) for k in range(4)]
            assert [int(Path(name).stem) for name in shown(sample)] == (starts if which == "starts" else centres)
    with pytest.raises(ValueError, match="spread: found 'ends', expected 'centres' or 'starts'"):
        msvd(tmp_path, [asked()], spread="ends")


def test_frames_settings_and_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="frames: found 0, expected at least 1"):
        msvd(tmp_path, [asked()], frames=0)
    with pytest.raises(ValueError, match=r"^\S+/nowhere not found$"):
        MsvdQa(write(tmp_path / "test_qa.json", [asked()]), str(tmp_path / "nowhere")).load()


def test_msrvtt_calls_its_videos_otherwise(tmp_path: Path) -> None:
    record = asked(158581, 7010, category_id=16, question="what are three people sitting on?", answer="couch")
    images = touch(tmp_path / "frames", *frames("video7010"))
    (sample,) = samples(MsrvttQa(write(tmp_path / "test_qa.json", [record]), images))
    assert turns(sample)[1] == "couch" and shown(sample) == ["0002.jpg", "0004.jpg", "0006.jpg", "0008.jpg"]
    assert (sample.id, sample.task, score([sample])) == ("158581", "exact", 1)


COLUMNS = ["video_id", "start", "end", "question", *(f"answer{k}" for k in range(1, 6)), *(f"conf{k}" for k in "12345")]
ROW = ["AB-cd_3", "12", "31", "What is it, really?", "drill", "a drill", "drill", "hand, drill", "", *"11201"]


def ivqa(folder: Path, rows: list[list[str]], columns: list[str] = COLUMNS) -> IVqa:
    with (folder / "test.csv").open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    clips = [*frames("AB-cd_3_12_31"), *frames("AB-cd_3_0_31"), *frames("AB-cd_3_40_52", range(2))]
    return IVqa(str(folder / "test.csv"), touch(folder / "frames", *clips))


@pytest.mark.parametrize(
    ("row", "rule"),
    [
        ([*ROW[:1], "40", "52", *ROW[3:]], "video .*AB-cd_3_40_52 has 2 frames NUMBER.jpg, expected at least 4"),
        ([*ROW[:1], "40", "53", *ROW[3:]], "video .*AB-cd_3_40_53 not found"),
        ([*ROW[:1], "early", *ROW[2:]], "'start' is 'early', expected seconds"),
        ([*ROW[:2], "inf", *ROW[3:]], "'end' is 'inf', expected seconds"),
        ([*ROW[:3], " ", *ROW[4:]], "'question' is empty"),
        ([*ROW[:1], "0", *ROW[2:4], *[""] * 5], "the answer is empty"),
        (ROW[:8], "'answer5' is null, expected a text"),
        ([*ROW, "more"], "found 15 values, expected 14"),
        (ROW, "the id AB-cd_3_12_31 occurs twice"),
    ],
)
def test_ivqa_refuses(tmp_path: Path, row: list[str], rule: str) -> None:
    with pytest.raises(ValueError, match=rf"test.csv:3 \(video_id AB-cd_3\): {rule}"):
        ivqa(tmp_path, [ROW, row]).load()


def test_ivqa_of_another_shape(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"test.csv:2 \(video_id AB-cd_3\): has no 'answer1', expected a text"):
        ivqa(tmp_path, [ROW], ["video_id", "start", "end", "question", *"123456789x"]).load()
    source = ivqa(tmp_path, [ROW])
    Path(source.annotations).write_bytes(b"video_id,start\nab\xff,1\n")
    with pytest.raises(ValueError, match=r"test\.csv: found a byte that is not UTF-8 at offset 17"):
        source.load()
    Path(source.annotations).write_text('video_id,start\n"ab,1\n')
    with pytest.raises(ValueError, match=r"test\.csv:2: expected comma-separated values"):
        source.load()
