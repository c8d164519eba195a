"""What Lightning says on every run is left out."""

from __future__ import annotations

import logging
import warnings


def quieten() -> None:
    """Leave out what Lightning says on every run: devices found, tips, deprecations inside its own code."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*LeafSpec.*",
        ".*does not have many workers.*",
        ".*across ranks is zero.*",
        ".*litlogger.*",
        ".*in eval mode.*",
        ".*no `val_dataloader`.*",
    ):
        warnings.filterwarnings("ignore", message=message)
