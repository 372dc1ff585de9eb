"""The stub of the core says what the extension has, and the reverse."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import sublet.core
from sublet.core import _native

STUB = ast.parse(Path(sublet.core.__file__).with_name("_native.pyi").read_text(encoding="utf-8"))
CLASSES = {node.name: node for node in STUB.body if isinstance(node, ast.ClassDef)}
METHODS = [
    (name, item)
    for name, node in CLASSES.items()
    for item in node.body
    if isinstance(item, ast.FunctionDef) and item.name != "__init__"
]


def stub_names() -> set[str]:
    names = set(CLASSES)
    for node in STUB.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
        elif isinstance(node, ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.ImportFrom):
            names.update(alias.asname for alias in node.names if alias.asname)
    return names


def public(owner: ModuleType | type) -> set[str]:
    return {name for name in vars(owner) if not name.startswith("_")}


def test_the_module_has_what_the_stub_names_and_no_more() -> None:
    assert public(_native) == stub_names()


def test_the_package_reexports_all() -> None:
    assert set(sublet.core.__all__) == stub_names()


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_a_class_has_what_the_stub_names_and_no_more(name: str) -> None:
    named = set()
    for item in CLASSES[name].body:
        if isinstance(item, ast.FunctionDef):
            named.add(item.name)
        elif isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            named.add(item.target.id)
    assert public(getattr(_native, name)) == named - {"__init__"}


def stub_parameters(function: ast.FunctionDef) -> list[str]:
    names = [argument.arg for argument in [*function.args.args, *function.args.kwonlyargs]]
    return names + ([f"**{function.args.kwarg.arg}"] if function.args.kwarg else [])


def real_parameters(function: Any) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    return [f"**{one.name}" if one.kind is one.VAR_KEYWORD else one.name for one in parameters]


@pytest.mark.parametrize(("owner", "method"), METHODS, ids=lambda one: getattr(one, "name", one))
def test_signatures_agree(owner: str, method: ast.FunctionDef) -> None:
    real = inspect.getattr_static(getattr(_native, owner), method.name)
    if any(isinstance(one, ast.Name) and one.id == "property" for one in method.decorator_list):
        assert inspect.isdatadescriptor(real)
    else:
        assert real_parameters(real) == stub_parameters(method)
