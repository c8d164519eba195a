from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from data_modules.sources import PlainCaptions, PrefixCaptions, VqaV2
from tests.data_modules.files import generator
from tests.data_modules.sources.test_caption_sets import web


def test_a_caption_is_cut_between_its_first_position_and_its_middle(tmp_path: Path) -> None:
    made = PrefixCaptions(web(tmp_path, [{"image": "b.jpg", "caption": "a b c d e f g"}], prompt="<image>"))
    made.load()
    counts: Counter[str] = Counter()
    random = generator()
    for _ in range(2000):
        request, answer = made.sample(0, random).turns
        beginning = request.text.removeprefix("<image>").strip()
        assert f"{beginning} {answer.text}".strip() == "a b c d e f g"
        counts[beginning] += 1
    assert set(counts) == {"", "a", "a b", "a b c"}
    assert all(abs(count - 500) < 80 for count in counts.values())


def test_nothing_else_changes(tmp_path: Path) -> None:
    source = web(tmp_path, [{"image": "b.jpg", "caption": "cats"}], prompt="<image>")
    made = PrefixCaptions(source)
    made.load()
    assert made.sample(0, generator()) == source.sample(0, generator()), "a caption of one word is not cut"
    assert made.captions and (len(made), made.length(0), made.has_image(0)) == (1, source.length(0), True)
    assert made.sample(0, generator(1)) == made.sample(0, generator(1))


def test_only_captions_have_prefixes() -> None:
    for kind in (PrefixCaptions, PlainCaptions):
        with pytest.raises(ValueError, match="source: found VqaV2, expected a source of captions"):
            kind(VqaV2("q.json", "a.json", "images"))


def test_plain_captions(tmp_path: Path) -> None:
    given = ['A "Big" Dog: runs (fast)!', "It's ice-cream, 5.", " ".join(f"w{k}" for k in range(60)), "..."]
    source = web(tmp_path, [{"image": "b.jpg", "caption": text} for text in given])
    made = PlainCaptions(source)
    made.load()
    assert [made.sample(k, generator()).turns[1].text for k in range(3)] == [
        "a big dog runs fast",
        "it's ice-cream, 5",
        " ".join(f"w{k}" for k in range(50)),
    ]
    own, plain = source.sample(0, generator()), made.sample(0, generator())
    assert plain.turns[0] == own.turns[0] and plain.references == own.references == (given[0],)
    retrieved = PlainCaptions(source, references=True).sample(0, generator())
    assert retrieved.references == ("a big dog runs fast",) and retrieved.turns == plain.turns
    with pytest.raises(ValueError, match=r"sample 'b.jpg': found the caption '...', expected a word in it"):
        made.sample(3, generator())
