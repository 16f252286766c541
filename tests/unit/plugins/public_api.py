"""Writes `public_api.txt`: every public name of `quire.api`, with signatures and fields, without bodies."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import quire.api

SNAPSHOT = Path(__file__).with_name("public_api.txt")
SPELLED_OUT = ("HOOKS", "EXTENSION_POINTS", "HOOK_API_VERSION")
"""Constants whose value is part of the contract, beside type aliases."""


def render() -> str:
    """The surface, module by module."""
    folder = Path(quire.api.__file__).parent
    lines: list[str] = []
    for path in sorted(folder.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found = [*_passed_on(tree), *_module(tree)]
        if found:
            lines += [f"[{path.stem}]", *found, ""]
    return "\n".join(lines)


def _passed_on(tree: ast.Module) -> Iterator[str]:
    """Names of other modules that this one lists in `__all__`: they are public here too."""
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names if alias.name in _listed(tree)]
            if names:
                yield f"from {node.module} import {', '.join(names)}"


def _listed(tree: ast.Module) -> list[str]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return [str(name) for name in ast.literal_eval(node.value)]
    return []


def _module(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from _class(node)
        elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield _signature(node)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            yield from _assignment(node)


def _class(node: ast.ClassDef) -> Iterator[str]:
    marks = [ast.unparse(mark) for mark in node.decorator_list]
    bases = ", ".join(ast.unparse(base) for base in node.bases)
    yield " ".join([*(f"@{mark}" for mark in marks), f"class {node.name}({bases})"])
    for entry in node.body:
        if isinstance(entry, ast.FunctionDef) and _is_public(entry.name):
            yield f"    {_signature(entry)}"
        elif isinstance(entry, ast.AnnAssign) and _is_public(ast.unparse(entry.target)):
            yield f"    {ast.unparse(_without_descriptions(entry))}"


def _signature(node: ast.FunctionDef) -> str:
    marks = "".join(f"@{ast.unparse(mark)} " for mark in node.decorator_list)
    returned = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{marks}def {node.name}({ast.unparse(node.args)}){returned}"


def _assignment(node: ast.Assign | ast.AnnAssign) -> Iterator[str]:
    target = ast.unparse(node.target if isinstance(node, ast.AnnAssign) else node.targets[0])
    if target.startswith("_"):
        return
    is_alias = isinstance(node.value, ast.Subscript | ast.BinOp)
    annotation = f": {ast.unparse(node.annotation)}" if isinstance(node, ast.AnnAssign) else ""
    value = ast.unparse(node.value) if node.value and (is_alias or target in SPELLED_OUT) else "..."
    yield f"{target}{annotation} = {value}"


def _without_descriptions(node: ast.AnnAssign) -> ast.AnnAssign:
    for call in ast.walk(node):
        if isinstance(call, ast.Call):
            call.keywords = [keyword for keyword in call.keywords if keyword.arg != "description"]
    return node


def _is_public(name: str) -> bool:
    return not name.startswith("_") or name == "__call__" or name == "__getattr__"


if __name__ == "__main__":
    SNAPSHOT.write_text(render(), encoding="utf-8")
    print(f"wrote {SNAPSHOT}")
