"""Docstrings of public code name their subject: "Return ...", "The ...", never "What ..."."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def public(tree: ast.Module) -> Iterator[ast.AST]:
    """Yield a module and its public classes, functions and methods; not the functions inside functions."""
    todo: list[ast.AST] = [tree]
    while todo:
        node = todo.pop()
        yield node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        todo += [
            each
            for each in ast.iter_child_nodes(node)
            if isinstance(each, Documented) and not each.name.startswith("_")
        ]


def docstrings(tree: ast.Module) -> Iterator[str]:
    """Yield the docstrings of public code, those under attributes and constants included."""
    for node in public(tree):
        alone = [each.value for each in ast.iter_child_nodes(node) if isinstance(each, ast.Expr)]
        yield from (
            each.value for each in alone if isinstance(each, ast.Constant) and isinstance(each.value, str)
        )


def modules() -> Iterator[tuple[Path, ast.Module]]:
    """Yield every module of the two packages with its syntax tree."""
    for root in ("streamcl", "streams"):
        for path in sorted((ROOT / root).rglob("*.py")):
            yield path.relative_to(ROOT), ast.parse(path.read_text())


def test_no_docstring_begins_with_what() -> None:
    found = [f"{path}: {text}" for path, tree in modules() for text in docstrings(tree)]
    assert not [each for each in found if each.partition(": ")[2].startswith("What ")]


@cache
def tensor_types() -> frozenset[str]:
    """Return the names of the types of tensors: torch's, numpy's, and aliases of either in the packages."""
    found = {"Tensor", "NDArray"}
    for _, tree in modules():
        for node in tree.body:
            target, value = alias_of(node)
            if target and value is not None and names_a_tensor(value, frozenset({"Tensor", "NDArray"})):
                found.add(target)
    return frozenset(found)


def alias_of(node: ast.stmt) -> tuple[str | None, ast.expr | None]:
    """Return the name and the value of `Name: TypeAlias = value` or `Name = value`, else None and None."""
    match node:
        case ast.AnnAssign(target=ast.Name(id=name), annotation=ast.Name(id="TypeAlias")):
            return name, node.value
        case ast.Assign(targets=[ast.Name(id=name)], value=ast.Subscript()) if name[0].isupper():
            return name, node.value
    return None, None


def names_a_tensor(annotation: ast.AST, types: frozenset[str]) -> bool:
    """Whether a value of this type holds tensors; a callable does not, whatever it takes and returns."""
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value).endswith("Callable"):
        return False
    name = getattr(annotation, "attr", getattr(annotation, "id", None))
    return name in types or any(names_a_tensor(each, types) for each in ast.iter_child_nodes(annotation))


def parameters(node: ast.FunctionDef) -> list[ast.arg]:
    """Return the parameters without the instance or the class."""
    named = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return [each for each in named if each.arg not in {"self", "cls"}]


def tensor_parameters(node: ast.FunctionDef) -> list[str]:
    types = tensor_types()
    return [
        each.arg for each in parameters(node) if each.annotation and names_a_tensor(each.annotation, types)
    ]


def says_shapes(text: str) -> bool:
    """Whether it has a shape such as [B, D], or says why there is none."""
    return bool(
        re.search(r"\[[^\]]*[A-Za-z0-9][^\]]*\]|scalar|any shape|by name|by parameter|state dict", text)
    )


def section(text: str, title: str) -> str:
    """Return a section of a docstring, "Args" for example, without its title; empty where there is none."""
    found = re.search(rf"^{title}:\n((?:    .*\n?|\n)*)", text, re.MULTILINE)
    return found.group(1) if found else ""


def entries(text: str) -> dict[str, str]:
    """Return the text of each parameter in the section Args, by name."""
    found = re.finditer(
        r"^    (\w+(?:, \w+)*): ((?:.*\n?)(?:^ {5,}.*\n?)*)", section(text, "Args"), re.MULTILINE
    )
    return {name: each.group(2) for each in found for name in each.group(1).split(", ")}


def faults(node: ast.FunctionDef) -> list[str]:
    """Return how the docstring of a public function falls short of what tensors need."""
    text = ast.get_docstring(node) or ""
    tensors, described = tensor_parameters(node), entries(text)
    if len(parameters(node)) > 1:
        found = [
            f"Args lacks the shape of {name}" for name in tensors if not says_shapes(described.get(name, ""))
        ]
    else:
        found = ["no shape of its tensor"] if tensors and not says_shapes(text) else []
    if node.returns is not None and names_a_tensor(node.returns, tensor_types()):
        found += [] if says_shapes(text.replace(section(text, "Args"), "")) else ["no shape of its result"]
    return found + ([f"does not name {each}" for each in raised(node) - mentioned(text)] if tensors else [])


def raised(node: ast.FunctionDef) -> set[str]:
    """Return the names of the errors that the function itself raises."""
    thrown = [each.exc for each in ast.walk(node) if isinstance(each, ast.Raise)]
    return {each.func.id for each in thrown if isinstance(each, ast.Call) and isinstance(each.func, ast.Name)}


def mentioned(text: str) -> set[str]:
    return set(re.findall(r"\w+", text))


def test_public_functions_of_tensors_say_their_shapes() -> None:
    found = [
        f"{path}:{node.lineno} {node.name}: {fault}"
        for path, tree in modules()
        for node in public(tree)
        if isinstance(node, ast.FunctionDef)
        for fault in faults(node)
    ]
    assert not found, "\n".join(found)


COMPLETE = '''
def f(x: Tensor, rows: Mapping[str, Floats], run: Callable[[Tensor], Tensor], n: int) -> tuple[Tensor, int]:
    """Return y [N, D] and a number.

    Args:
        x: float32 [N, D], features
            of samples.
        rows: by name.
        n: a number.

    Raises:
        ValueError: n is negative.
    """
    raise ValueError(n)
'''


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("", "", []),
        ("x: float32 [N, D]", "x: float32", ["Args lacks the shape of x"]),
        ("        rows: by name.\n", "", ["Args lacks the shape of rows"]),
        ("y [N, D]", "y", ["no shape of its result"]),
        ("ValueError: n", "n", ["does not name ValueError"]),
    ],
)
def test_each_fault_of_a_docstring_is_found(old: str, new: str, fault: list[str]) -> None:
    (node,) = ast.parse(COMPLETE.replace(old, new, 1)).body
    assert isinstance(node, ast.FunctionDef)
    assert faults(node) == fault


def test_docstrings_of_every_kind_are_seen() -> None:
    tree = ast.parse(
        '''
"""What m"""
A = 1
"""What a"""
class C:
    """What c"""
    field: int
    """What f"""
    def method(self):
        """What d"""
def _private():
    """What p"""
'''
    )
    assert sorted(docstrings(tree)) == ["What a", "What c", "What d", "What f", "What m"]
