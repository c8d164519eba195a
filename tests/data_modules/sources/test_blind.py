from __future__ import annotations

from dataclasses import replace

import pytest

from data_modules.sources import Blind
from data_modules.sources.source import Wrapped
from tests.data_modules.files import Numbers, generator


def test_texts_stay_and_every_image_is_that_of_another_file() -> None:
    own = Numbers(12, mixed=True)
    blind = Blind(own)
    blind.load()
    assert (own.loads, len(blind), blind.length(3)) == (1, 12, own.length(3))
    for index in range(len(own)):
        seen, exchanged = own.sample(index, generator(7)), blind.sample(index, generator(7))
        assert replace(exchanged, images=seen.images) == seen, "drawn alike"
        assert len(exchanged.images) == len(seen.images)
        assert not seen.images or exchanged.images != seen.images
    assert blind.sample(4, generator(7)) == blind.sample(4, generator(7))


def test_one_picture_alone_cannot_be_exchanged() -> None:
    with pytest.raises(ValueError, match=r"sample n0: found no other sample with 1 different images to exchange"):
        Blind(Numbers(2)).sample(0, generator())


def test_an_exchanged_image_is_not_told_by_the_source() -> None:
    class Keyed(Numbers):
        def image_key(self, index: int) -> int | None:
            return index

    assert Wrapped.image_key(Blind(Keyed(4)), 3) == 3 and Blind(Keyed(4)).image_key(3) is None
