"""What the import hook of jaxtyping checks with: shapes and dtypes of tensors, wherever a signature states them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype

_check = beartype(conf=BeartypeConf(is_pep484_tower=True))
_SHAPED = ("Float[", "Int[", "UInt8[", "Bool[", "Shaped[", "Num[", "Complex[")


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, checked on every call if any of its annotations is a tensor with a shape."""
    stated = (str(each) for each in getattr(function, "__annotations__", {}).values())
    return _check(function) if any(mark in each for each in stated for mark in _SHAPED) else function
