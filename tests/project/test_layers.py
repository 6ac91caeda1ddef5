"""Dependencies point one way: each folder has a list of those that it may import, and no circle exists."""

import ast
import functools
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

NOUNS = {"errors", "events", "protocols", "registry", "requests", "sources"}
"""What everybody may import: the folders `requests` and `sources`, and the modules at the root."""

MAY_IMPORT = {
    **dict.fromkeys(NOUNS, NOUNS),
    "config": NOUNS | {"storage"},
    "storage": NOUNS,
    "distributed": NOUNS | {"config", "storage", "nn"},
    "nn": NOUNS | {"storage"},
    "memory": NOUNS,
    "heads": NOUNS,
    "capabilities": NOUNS | {"nn", "heads"},
    "shift": NOUNS,
    "evaluation": NOUNS,
    "sinks": NOUNS | {"storage"},
    "learners": NOUNS | {"config", "distributed", "nn", "memory", "heads", "capabilities"},
    "forgetting": NOUNS | {"storage", "distributed", "nn", "heads", "sinks", "capabilities"},
    "processor": NOUNS | {"storage", "evaluation", "memory"},
    "factory": NOUNS
    | {"config", "storage", "distributed", "nn", "capabilities", "shift", "sinks"}
    | {"learners", "forgetting", "memory"},
    "report": NOUNS | {"storage", "evaluation", "forgetting"},
    "runs": NOUNS
    | {"config", "capabilities", "storage", "distributed", "learners", "nn", "evaluation", "sinks"}
    | {"memory", "forgetting", "processor", "factory", "report"},
    "audit": NOUNS
    | {"config", "storage", "distributed", "nn", "heads", "capabilities", "learners", "forgetting"}
    | {"factory", "runs"},
    "benchmark": NOUNS
    | {"config", "storage", "heads", "evaluation", "learners", "factory", "runs", "report"},
    "advice": NOUNS | {"config", "nn", "heads", "evaluation", "learners", "factory"},
    "integrations": NOUNS | {"config", "factory"},
    "testing": NOUNS | {"sinks", "storage"},
    "serving": NOUNS | {"config", "storage", "forgetting", "factory", "runs", "report"},
    "cli": NOUNS
    | {"config", "storage", "distributed", "forgetting", "factory", "runs", "audit", "benchmark", "report"}
    | {"serving", "advice"},
    "__init__": NOUNS
    | {"config", "nn", "shift", "learners", "processor", "runs", "report", "integrations"}
    | {"serving"},
    "__main__": {"cli"},
}
"""What a module or folder directly under `streamcl` may import; each may read `streamcl.__version__`."""

MODULES_AT_THE_ROOT = 6
MAX_LINES = 300
IMPORTS_STREAMS = {"factory", "cli"}
STREAMS_MAY_IMPORT = NOUNS | {"storage"}


@functools.cache
def modules(package: str) -> tuple[Path, ...]:
    return tuple(sorted((ROOT / package).rglob("*.py")))


def place(path: Path) -> str:
    """The module's, or its sub-package's, name directly under the top package."""
    return path.relative_to(ROOT).parts[1].removesuffix(".py")


@functools.cache
def imported(path: Path) -> frozenset[str]:
    """The names that a module imports, at its top or later; each module is parsed once for all rules."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(found)


@functools.cache
def places() -> frozenset[str]:
    return frozenset(place(each) for each in modules("streamcl"))


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def targets(path: Path) -> set[str]:
    """The places in `streamcl` that a module imports."""
    names = {name.split(".")[1] for name in imported(path) if name.startswith("streamcl.")}
    return (names & places()) - {place(path), "__init__"}


def circle(graph: dict[str, set[str]]) -> list[str]:
    """A path that leads back to where it began; empty where there is none."""
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        for target in sorted(graph.get(node, ())):
            if found := visit(target, [*path, node]):
                return found
        done.add(node)
        return []

    return next((found for node in sorted(graph) if (found := visit(node, []))), [])


def test_every_folder_has_a_place_in_the_layers() -> None:
    assert places() - MAY_IMPORT.keys() == set()


@pytest.mark.parametrize("folder", sorted(MAY_IMPORT))
def test_a_module_imports_only_what_its_folder_may(folder: str) -> None:
    beyond = {
        named(path): targets(path) - MAY_IMPORT[folder]
        for path in modules("streamcl")
        if place(path) == folder
    }
    assert {path: found for path, found in beyond.items() if found} == {}


def test_every_permission_is_used() -> None:
    used: dict[str, set[str]] = {name: set() for name in MAY_IMPORT}
    for path in modules("streamcl"):
        used[place(path)] |= targets(path)
    unused = {name: sorted(MAY_IMPORT[name] - NOUNS - used[name]) for name in MAY_IMPORT}
    assert not {name: extra for name, extra in unused.items() if extra}


def test_no_circle_among_packages() -> None:
    graph: dict[str, set[str]] = {}
    for path in modules("streamcl"):
        if place(path) != "__init__":  # lazy: it imports for type checkers only
            graph.setdefault(place(path), set()).update(targets(path))
    assert circle(graph) == []


def test_a_circle_is_found() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_the_root_holds_few_modules() -> None:
    assert len(list((ROOT / "streamcl").glob("*.py"))) <= MODULES_AT_THE_ROOT


@pytest.mark.parametrize("package", ["streamcl", "streams"])
def test_no_module_is_long(package: str) -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in modules(package)}
    assert {path: length for path, length in lengths.items() if length > MAX_LINES} == {}


@pytest.mark.parametrize("package", ["streamcl", "streams"])
def test_every_folder_says_what_it_is_for(package: str) -> None:
    for folder in {path.parent for path in modules(package)}:
        assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text())), folder


def test_only_the_factory_and_the_command_line_import_streams() -> None:
    users = [path for path in modules("streamcl") if place(path) not in IMPORTS_STREAMS]
    found = {
        named(path): {name for name in imported(path) if name.split(".")[0] == "streams"} for path in users
    }
    assert {path: names for path, names in found.items() if names} == {}


def test_streams_import_only_the_nouns() -> None:
    beyond = {named(path): targets(path) - STREAMS_MAY_IMPORT for path in modules("streams")}
    assert {path: found for path, found in beyond.items() if found} == {}


@pytest.mark.parametrize(
    ("library", "home"),
    [
        ("timm", "streamcl/nn"),
        ("river.drift", "streamcl/shift"),
        ("river.metrics", "streamcl/evaluation"),
        ("sqlite3", "streamcl/storage/sqlite.py"),
        ("cryptography.hazmat", "streamcl/storage/signing.py"),
        ("rfc3161_client", "streamcl/forgetting/receipts/timestamp.py"),
        ("rfc8785", "streamcl/storage"),
        ("onnx", "streamcl/nn/weights"),
        ("matplotlib", "streamcl/report"),
        ("click", "streamcl/cli"),
        ("pooch", "streams"),
    ],
)
def test_one_library_one_home(library: str, home: str) -> None:
    for path in [*modules("streamcl"), *modules("streams")]:
        users = {name for name in imported(path) if name == library or name.startswith(f"{library}.")}
        if users and home not in named(path):
            pytest.fail(f"{named(path)} imports {sorted(users)}")
