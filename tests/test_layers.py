"""Dependencies point one way; every module is looked at, so a new one must be given its place."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOUNS = {
    *("events", "protocols", "errors", "yaml_file", "yaml_scalars", "document"),
    *("config", "config_models", "config_overrides", "config_problems", "config_differences"),
}
PARTS = {
    *(
        "backbone",
        "torchvision_ops",
        "weights",
        "lora",
        "adapters",
        "adapted_product",
        "low_pass",
        "peft_export",
        "importance",
        "buffer",
        "heads",
        "shift",
    ),
    *(
        "metrics",
        "checkpoint",
        "checkpoint_files",
        "state",
        "ledger",
        "files",
        "sinks",
        "gallery",
        "evaluation",
        "randomness",
        "compute",
        "allocator",
    ),
    *("run_lock", "ledger_file", "ranks"),
}
EDGES = {
    "audit",
    "__init__",
    "__main__",
    "build",
    "composition",
    "bench",
    "runs",
    "run",
    "run_directory",
    "run_resuming",
    "run_settings",
    "learned",
    "several",
    "cli",
    "report",
    "testing",
    "doctor",
    "classifier",
    "summary",
}
MAY_IMPORT = {
    **dict.fromkeys(NOUNS, NOUNS),
    **{part: NOUNS | {"files", "__init__"} for part in PARTS},
    "casting": set(),
    "backbone": NOUNS | {"casting", "weights", "torchvision_ops", "__init__"},
    "lora": NOUNS | {"adapted_product", "casting", "low_pass"},
    "adapters": NOUNS | {"lora", "low_pass"},
    "adapted_product": {"low_pass"},
    "low_pass": {"casting"},
    "peft_export": NOUNS | {"files", "adapters", "lora", "weights", "__init__"},
    "ledger": NOUNS | {"files", "ledger_file"},
    "checkpoint": NOUNS | {"files", "checkpoint_files", "__init__"},
    "checkpoint_files": NOUNS | {"state", "__init__"},
    "learners": NOUNS | PARTS,
    "forgetting": NOUNS | PARTS | {"__init__"},
    "processor": NOUNS | {"evaluation", "randomness", "forgetting"},
    **dict.fromkeys(EDGES),
}


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def place(path: Path) -> str:
    """The module's, or its sub-package's, name directly under the top package."""
    return path.relative_to(ROOT).parts[1].removesuffix(".py")


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def targets(path: Path, package: str) -> set[str]:
    names = {name.split(".")[1] for name in imported(path) if name.startswith(f"{package}.")}
    return names | ({"__init__"} if package in imported(path) and package == "streamcl" else set())


@pytest.mark.parametrize("path", modules("streamcl"), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    assert place(path) in MAY_IMPORT, f"{path.name} has no place in the layers yet"
    allowed = MAY_IMPORT[place(path)]
    if allowed is not None:
        known = {place(p) for p in modules("streamcl")}
        assert targets(path, "streamcl") & known <= allowed | {place(path)}


@pytest.mark.parametrize("path", modules("streamcl"), ids=lambda p: str(p.relative_to(ROOT)))
def test_only_the_composition_root_and_the_command_line_know_concrete_sources(path: Path) -> None:
    if place(path) not in {"build", "composition", "cli"}:
        assert not [name for name in imported(path) if name.split(".")[0] == "streams"]


@pytest.mark.parametrize("path", modules("streams"), ids=lambda p: str(p.relative_to(ROOT)))
def test_streams_know_only_the_nouns(path: Path) -> None:
    assert targets(path, "streamcl") & {place(p) for p in modules("streamcl")} <= {
        "events",
        "protocols",
        "errors",
    }


@pytest.mark.parametrize(
    ("library", "home"),
    [
        ("timm", "streamcl/backbone"),
        ("river.drift", "streamcl/shift"),
        ("river.metrics", "streamcl/metrics"),
        ("sqlite3", "streamcl/ledger_file.py"),
        ("onnx", "streamcl/weights"),
        ("matplotlib", "streamcl/report"),
        ("click", "streamcl/cli"),
        ("pooch", "streams"),
    ],
)
def test_one_library_one_module(library: str, home: str) -> None:
    for path in [*modules("streamcl"), *modules("streams")]:
        users = {name for name in imported(path) if name == library or name.startswith(f"{library}.")}
        if users and home not in str(path.relative_to(ROOT)):
            pytest.fail(f"{path.relative_to(ROOT)} imports {sorted(users)}")
