"""`Any` in signatures: where a parameter or a result is annotated with nothing else, nobody checks what is passed."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from tests.test_layers import FILES, ROOT

MOST = 60
"""Of parameters and results in all; `dict[str, Any]` (JSON) is not counted."""


def untyped(source: str) -> Iterator[str]:
    """Line, function and parameter of every bare `Any` in the signatures of a file."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            given = node.args
            named = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
            annotations = {each.arg: each.annotation for each in named if each} | {"return": node.returns}
            for name, annotation in annotations.items():
                if isinstance(annotation, ast.Name) and annotation.id == "Any":
                    yield f"{node.lineno}: {node.name}, {name}"


def test_few_signatures_say_any() -> None:
    found = [f"{path.relative_to(ROOT)}:{line}" for path in FILES for line in untyped(path.read_text(encoding="utf-8"))]
    assert len(found) <= MOST, f"found {len(found)}, expected at most {MOST}:\n" + "\n".join(found)


def test_one_is_seen() -> None:
    source = "class A:\n    def f(self, a: Any, *b: Any, c: dict[str, Any] = {}, **d: int) -> Any: ...\n"
    assert list(untyped(source)) == ["2: f, a", "2: f, b", "2: f, return"]
