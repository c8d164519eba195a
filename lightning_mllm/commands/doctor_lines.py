"""What `mllm doctor` says: lines of one of three levels, each with what was found and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import huggingface_hub.constants

from lightning_mllm.commands.memory import net_of
from lightning_mllm.commands.stage_data import ComposedStage, SampleSet
from lightning_mllm.processing.processor import Processor
from lightning_mllm.training.module import MultimodalModule

Level = Literal["green", "yellow", "red"]
LEVELS: tuple[Level, ...] = ("green", "yellow", "red")
"""red: the run would stop, or teach something else than is meant; yellow: it was not tried, or needs a look."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One check of one stage, or of one set of it."""

    check: str
    level: Level
    found: str
    remedy: str = ""
    stage: str = ""
    """Empty for what is the same for all stages."""


@dataclass(kw_only=True)
class Subject:
    """A stage that is looked at, and what several checks need of it; each part is made once."""

    stage: ComposedStage
    siblings: tuple[str, ...]
    """The stages of the experiment."""
    runs: Path
    """Where runs are kept."""
    device_memory: int | None = None
    """Bytes of the device that it is to run on; None asks this machine."""
    deadline: float = float("inf")
    """When the estimate of memory is no longer begun, by `time.monotonic`."""
    taken: dict[str, Any] = field(default_factory=dict)
    """Samples of each set, as the checks of a batch take them."""
    faulty: set[str] = field(default_factory=set)
    """Sets of which a picture could not be opened, which is told once."""

    @cached_property
    def module(self) -> MultimodalModule:
        """The net of the stage, not built; published language models, and their tokenizers, need no file.

        Raises:
            ValueError: Its settings do not fit one another, or something else that it names is not here.
        """
        found = self.stage.resolved
        return net_of({**found["model"], "init_args": {**found["model"]["init_args"], "stage": found["stage"]}})

    @cached_property
    def net(self) -> MultimodalModule:
        """The same, built without memory and frozen.

        Raises:
            ValueError: As `module`, or the freezing table does not fit it.
        """
        module = self.module
        module.build(None)
        return module

    @property
    def builds(self) -> bool:
        """Whether there is such a net; why not is told by the check of the freezing table."""
        try:
            return isinstance(self.net, MultimodalModule)
        except ValueError:
            return False

    @cached_property
    def sets(self) -> list[SampleSet]:
        """Those of the stage, the processor linked where there is one."""
        if self.processor is not None:
            self.stage.with_processor()
        return list(self.stage.sets())

    @cached_property
    def processor(self) -> Processor | None:
        """None where a tokenizer, or another file that it is made of, is not on this machine."""
        try:
            return self.stage.processor
        except ValueError:
            return None

    @cached_property
    def loaded(self) -> list[SampleSet]:
        """The sets whose annotations can be read; what is wrong with the others is told by the check of data."""
        return [each for each in self.sets if not (each.rows and self.processor is None) and _loads(each)]


def _loads(each: SampleSet) -> bool:
    try:
        each.load()
        return len(each) > 0
    except ValueError:
        return False


@contextmanager
def offline() -> Iterator[None]:
    """Nothing is downloaded meanwhile: what is not on this machine is told, at once."""

    def refused(*_: object, **__: object) -> None:
        raise OSError("not on this machine")

    with (
        patch.object(huggingface_hub.constants, "HF_HUB_OFFLINE", True),
        patch("urllib.request.urlopen", refused),
    ):
        yield


def some(total: int, count: int) -> Iterable[int]:
    """Up to `count` of `total` indices, evenly spread."""
    return sorted({k * total // count for k in range(count)}) if total > count else range(total)
