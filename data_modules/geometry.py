"""Boxes and points are told in the coordinates of what the net is shown, or training is refused."""

from __future__ import annotations

from collections.abc import Mapping

from data_modules.evaluation import EvaluationSet
from data_modules.processor import SampleProcessor
from data_modules.sources.source import Source


def check_frames(
    processor: SampleProcessor, train: Mapping[str, Source], sets: Mapping[str, Mapping[str, EvaluationSet]]
) -> None:
    """Whether each source tells its coordinates in the frame in which the processor shows images.

    Args:
        processor: says how it fits images: `image.frame`, `image.fit`, and `image.random` of what training shows.
        train: sources to train on, by name.
        sets: split -> evaluation sets by name.

    Raises:
        ValueError: names the first source that tells other coordinates.
    """
    for name, source in train.items():
        _check(processor, f"data.train.{name}", source)
        if source.frame is not None and processor.image.random:
            raise ValueError(
                f"data.train.{name}: found boxes in texts, of which training shows random parts or mirror images,"
                " expected an image policy without random_area and random_flip"
            )
    for split, named in sets.items():
        for name, each in named.items():
            _check(processor, f"data.{split}.{name}", each.source)


def _check(processor: SampleProcessor, name: str, source: Source) -> None:
    if source.frame is None:
        return
    fit, frame = processor.image.fit, processor.image.frame
    told = f"{name}: found boxes told as shares of the {source.frame}"
    if frame is None:
        raise ValueError(f"{told}, of which image.fit: {fit} shows a part, expected fit: pad or squash")
    if frame != source.frame:
        raise ValueError(f"{told}, expected frame: {frame}, which is what image.fit: {fit} shows")
