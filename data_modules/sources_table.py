"""What a stage shows of its sources, as a table."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table

from data_modules.mixture_sampler import MixtureSampler
from data_modules.sources.source import Source


def sources_table(train: Mapping[str, Source], order: MixtureSampler, steps: int, shown: Mapping[str, float]) -> Table:
    """Samples and share of each source, how often it is shown, and what of its records was left out or changed.

    Args:
        train: the sources, loaded.
        order: of their samples.
        steps: optimizer steps of the stage.
        shown: how often each source is shown.
    """
    table = Table("source", title=f"training data, {steps} steps of {order.batch}")
    changes = sorted({change for source in train.values() for change, count in source.changed.items() if count})
    for heading in ("samples", "share", "epochs", "left out", *changes):
        table.add_column(heading, justify="right")
    for name, epochs in shown.items():
        skipped = len(getattr(train[name], "skipped", ()))
        changed = [f"{train[name].changed.get(change, 0):,}" for change in changes]
        counts = (f"{len(train[name]):,}", f"{order.counts[name] / len(order):.1%}", f"{epochs:.2f}", f"{skipped:,}")
        table.add_row(name, *counts, *changed)
    return table
