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


@cache
def modules() -> list[tuple[Path, ast.Module]]:
    """Return every module of the two packages with its syntax tree."""
    paths = [path for root in ("streamcl", "streams") for path in sorted((ROOT / root).rglob("*.py"))]
    return [(path.relative_to(ROOT), ast.parse(path.read_text())) for path in paths]


@pytest.fixture(scope="module", autouse=True)
def trees_of_this_file_alone() -> Iterator[None]:
    """Let go of the syntax trees: as a million objects they would slow every test that follows."""
    yield
    modules.cache_clear()


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


def names_a_tensor(annotation: ast.AST | None, types: frozenset[str]) -> bool:
    """Whether a value of this type holds tensors; a callable does not, whatever it takes and returns."""
    if annotation is None:
        return False
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


def shapes(text: str) -> int:
    """Return how many shapes such as [B, D] a text has, and how many words that stand for one."""
    return len(
        re.findall(r"\[[^\]]*[A-Za-z0-9][^\]]*\]|scalar|any shape|by name|by parameter|state dict", text)
    )


def says_shapes(text: str) -> bool:
    return shapes(text) > 0


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
    tensors, returns_tensor = tensor_parameters(node), names_a_tensor(node.returns, tensor_types())
    if len(parameters(node)) > 1 or section(text, "Args"):
        found = faults_of_args(node, text) if tensors else []
        found += ["no shape of its result"] * (returns_tensor and not shapes(without_args(text)))
    else:  # one sentence says both, each with its shape: "Return y [N, C] of x [N, D]"
        missing = bool(tensors) + returns_tensor - shapes(text)
        found = ["no shape of its tensor or its result"] * (missing > 0)
    if tensors and returns_a_value(node) and not re.search(r"\b(Return|return|Yield)s?\b", text):
        found.append("does not say what it returns")
    return found + ([f"does not name {each}" for each in raised(node) - mentioned(text)] if tensors else [])


def faults_of_args(node: ast.FunctionDef, text: str) -> list[str]:
    """Return which parameters the section Args leaves out, and which tensors it gives no shape."""
    described, tensors = entries(text), tensor_parameters(node)
    unnamed = [each.arg for each in parameters(node) if each.arg not in described]
    return [f"Args lacks {name}" for name in unnamed] + [
        f"Args lacks the shape of {name}"
        for name in tensors
        if name in described and not says_shapes(described[name])
    ]


def without_args(text: str) -> str:
    return text.replace(section(text, "Args"), "")


def returns_a_value(node: ast.FunctionDef) -> bool:
    return node.returns is not None and ast.unparse(node.returns) != "None"


def class_faults(node: ast.ClassDef) -> list[str]:
    """Return what a public class leaves unsaid of the tensors among its arguments and fields."""
    text = ast.get_docstring(node) or ""
    found: list[str] = []
    for method in (each for each in node.body if isinstance(each, ast.FunctionDef)):
        own = ast.get_docstring(method)
        if method.name == "__init__" and tensor_parameters(method):
            found += faults_of_args(method, own or text)
        elif method.name == "__call__" and tensor_parameters(method):
            found += faults(method)
    fields = [each.target for each in node.body if isinstance(each, ast.AnnAssign) and holds_tensors(each)]
    alone = [each.value for each in node.body if isinstance(each, ast.Expr)]
    said = "".join(str(each.value) for each in alone if isinstance(each, ast.Constant))
    if shapes(said) < len(fields):
        found.append(f"fewer shapes than tensors: {', '.join(map(ast.unparse, fields))}")
    return found


def holds_tensors(field: ast.AnnAssign) -> bool:
    return not ast.unparse(field.target).startswith("_") and names_a_tensor(field.annotation, tensor_types())


def raised(node: ast.FunctionDef) -> set[str]:
    """Return the names of the errors that the function itself raises."""
    thrown = [each.exc for each in ast.walk(node) if isinstance(each, ast.Raise)]
    return {each.func.id for each in thrown if isinstance(each, ast.Call) and isinstance(each.func, ast.Name)}


def mentioned(text: str) -> set[str]:
    return set(re.findall(r"\w+", text))


def test_public_code_says_the_shapes_of_its_tensors() -> None:
    found = [
        f"{path}:{node.lineno} {node.name}: {fault}"
        for path, tree in modules()
        for node in public(tree)
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        for fault in (faults(node) if isinstance(node, ast.FunctionDef) else class_faults(node))
    ]
    assert not found, "\n".join(found)


def described_in_prose(node: ast.ClassDef | ast.FunctionDef) -> list[str]:
    """Return the parameters of a class or function that its docstring describes outside the section Args."""
    methods = [each for each in node.body if isinstance(each, ast.FunctionDef) and each.name == "__init__"]
    signature = node if isinstance(node, ast.FunctionDef) else next(iter(methods), None)
    text = without_args(ast.get_docstring(node) or "")
    names = [each.arg for each in parameters(signature)] if signature else []
    return [each for each in names if re.search(rf"(^|[.;] ){each}(, \w+)*: ", text, re.MULTILINE)]


def test_many_parameters_are_described_in_a_section() -> None:
    found = {
        f"{path}:{node.lineno} {node.name}": names
        for path, tree in modules()
        for node in public(tree)
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        if len(names := described_in_prose(node)) > 2
    }
    assert found == {}, "describe them in the section Args"


def test_parameters_described_in_prose_are_found() -> None:
    code = (
        'def f(a, b, c, d):\n    """Do it.\n\n    a: one. b: two.\n\n    Args:\n        c: three.\n    """\n'
    )
    (node,) = ast.parse(code).body
    assert isinstance(node, ast.FunctionDef)
    assert described_in_prose(node) == ["a", "b"]


COMPLETE = '''
def f(x: Tensor, rows: Mapping[str, Floats], run: Callable[[Tensor], Tensor], n: int) -> tuple[Tensor, int]:
    """Return y [N, D] and a number.

    Args:
        x: float32 [N, D], features
            of samples.
        rows: by name.
        run: makes y.
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
        ("        rows: by name.\n", "", ["Args lacks rows"]),
        ("        run: makes y.\n", "", ["Args lacks run"]),
        ("Return y", "The y", ["does not say what it returns"]),
        ("y [N, D]", "y", ["no shape of its result"]),
        ("ValueError: n", "n", ["does not name ValueError"]),
    ],
)
def test_each_fault_of_a_docstring_is_found(old: str, new: str, fault: list[str]) -> None:
    (node,) = ast.parse(COMPLETE.replace(old, new, 1)).body
    assert isinstance(node, ast.FunctionDef)
    assert faults(node) == fault


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("Return y [N, C] of x [N, D].", []),
        ("Return y [N, C].", ["no shape of its tensor or its result"]),
        ("Return y [N, C].\n\n    Args:\n        x: [N, D].\n", []),
    ],
)
def test_one_sentence_is_enough_for_one_parameter(text: str, fault: list[str]) -> None:
    (node,) = ast.parse(f'def f(x: Tensor) -> Tensor:\n    """{text}"""\n').body
    assert isinstance(node, ast.FunctionDef)
    assert faults(node) == fault


MADE_OF_TENSORS = '''
class C:
    """Holds y [N, C].

    Args:
        x: float32 [N, D].
        n: a number.
    """
    y: Tensor
    z: Tensor
    """Sums [D]."""
    def __init__(self, x: Tensor, n: int) -> None:
        self.y = x
'''


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("", "", []),
        ("float32 [N, D]", "features", ["Args lacks the shape of x"]),
        ("        n: a number.\n", "", ["Args lacks n"]),
    ],
)
def test_a_class_says_the_shapes_of_its_arguments_and_fields(old: str, new: str, fault: list[str]) -> None:
    (node,) = ast.parse(MADE_OF_TENSORS.replace(old, new, 1)).body
    assert isinstance(node, ast.ClassDef)
    assert class_faults(node) == fault


def test_fields_without_shapes_are_found() -> None:
    (node,) = ast.parse(MADE_OF_TENSORS.replace("y [N, C]", "y").replace("Sums [D]", "Sums")).body
    assert isinstance(node, ast.ClassDef)
    assert class_faults(node) == ["fewer shapes than tensors: y, z"]


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
