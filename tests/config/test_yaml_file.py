"""The strict YAML reader: what it takes, what it refuses, and where it says the fault is."""

from __future__ import annotations

import math
import os
import time
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from streamcl.config.document import MAX_PROBLEMS, Document, config_error
from streamcl.config.yaml import FILE_LIMIT, parse_yaml, plain_value, read_yaml
from streamcl.errors import ConfigError

ENVIRONMENT = {"ROOT": "/data", "COUNT": "3", "EMPTY": ""}


def parse(text: str) -> Document:
    return parse_yaml(text, "f.yaml", ENVIRONMENT)


def lines(text: str) -> list[str]:
    return [str(problem) for problem in parse(text).problems]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        (".5", 0.5),
        ("-3", -3),
        ("010", 10),
        ("0x1F", 31),
        ("0o17", 15),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("No", "No"),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("'3'", "3"),
        ("!!str 3", "3"),
        ("!!float 3", 3.0),
        ("-.inf", -math.inf),
        ("|\n  3\n", "3\n"),
    ],
)
def test_scalars_are_yaml_1_2(text: str, value: object) -> None:
    document = parse(f"a: {text}")
    assert document.problems == []
    assert document.data == {"a": value}
    assert type(document.data["a"]) is type(value)


def test_on_is_a_key() -> None:
    assert parse("on: 1\nno: 2\ny: 3").data == {"on": 1, "no": 2, "y": 3}


def test_every_value_has_its_place() -> None:
    document = parse("a: 1\nb:\n  - x\n  - {c: 2, d: [3]}\n")
    places = {path: (place.line, place.column) for path, place in document.places.items()}
    assert places == {
        (): (1, 1),
        ("a",): (1, 1),
        ("b",): (2, 1),
        ("b", 0): (3, 5),
        ("b", 1): (4, 5),
        ("b", 1, "c"): (4, 6),
        ("b", 1, "d"): (4, 12),
        ("b", 1, "d", 0): (4, 16),
    }


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a:\n\tb: 1", "f.yaml:2:1: a tab; YAML is indented with spaces"),
        ("a: 1\nb: 2\na: 3", "f.yaml:3:1: duplicate key 'a'; first on line 1"),
        (
            "a: !!python/object/apply:os.system [x]",
            "f.yaml:1:4: tag '!!python/object/apply:os.system' refused",
        ),
        ("a: !!python/name:os.system", "f.yaml:1:4: tag '!!python/name:os.system' refused"),
        ("a: !mine {}", "f.yaml:1:4: tag '!mine' refused"),
        ("a: !!set {x}", "f.yaml:1:4: tag '!!set' refused"),
        ("a: !!int x", "f.yaml:1:4: 'x' is not a !!int"),
        ("a: !!int true", "f.yaml:1:4: 'true' is not a !!int"),
        ("a: *x", "f.yaml:1:4: found undefined alias"),
        ("a: &x [*x]", "f.yaml:1:4: nested deeper than 32 levels"),
        ("1: x", "f.yaml:1:1: key '1' is not text; quote it"),
        ("null: x", "f.yaml:1:1: key 'null' is not text; quote it"),
        ("? [a]\n: 1", "f.yaml:1:3: a key must be plain text"),
        ("a: 1\n--- \nb: 2", "f.yaml:2:1: expected a single document"),
        ("a: [1", "f.yaml:2:1: while parsing a flow sequence"),
        ("a: é\x00", "f.yaml:1:5: the character U+0000"),
        ("a: " + "9" * 65, "f.yaml:1:4: a number of 65 characters"),
        ("a: [" + "1," * 20_001 + "]", "f.yaml:1:40001: more than 20000 values"),
        ("a: " + "[" * 40 + "]" * 40, "f.yaml:1:36: nested deeper than 32 levels"),
    ],
)
def test_config_errors_say_where(text: str, problem: str) -> None:
    assert any(line.startswith(problem) for line in lines(text)), lines(text)


def test_all_faults_are_told_at_once_in_order() -> None:
    text = "a: ${NONE}\nb: !x 1\nc: 1\nc: 2\n2: 3\n"
    error = config_error(parse(text).problems[::-1])
    assert [line.split(":")[1] for line in error.problems] == ["1", "2", "4", "5"]
    assert error.exit_code == 2


def test_a_flood_of_problems_is_cut() -> None:
    error = config_error(parse("a: 1\n" * 5000).problems)
    assert len(error.problems) == MAX_PROBLEMS + 1
    assert "more problems" in error.problems[-1]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${COUNT}", 3),
        ("'${COUNT}'", "3"),
        ("${ROOT}/x", "/data/x"),
        ("[1, ${COUNT}, {b: ${ROOT}}]", [1, 3, {"b": "/data"}]),
        ("${NONE:-1e-3}", 1e-3),
        ("${NONE:-}", None),
        ("${EMPTY}", None),
        ("${EMPTY:-x}", "x"),
        ("$${COUNT}", "${COUNT}"),
        ("'$$${COUNT}'", "$${COUNT}"),
        ("$COUNT", "$COUNT"),
        ("${COUNT}${COUNT}", 33),
    ],
)
def test_variables(text: str, value: object) -> None:
    document = parse(f"a: {text}")
    assert document.problems == []
    assert document.data == {"a": value}


def test_a_missing_variable_is_told_with_its_place() -> None:
    assert lines("a:\n  b: ${NONE}") == [
        "f.yaml:2:6: the environment has no NONE; set it, or write ${NONE:-default}"
    ]
    assert "opens" in lines("a: 'x ${ y'")[0]


def test_an_alias_stands_for_its_value() -> None:
    document = parse("a: &x {b: [1, ${COUNT}]}\nc: *x")
    assert document.problems == []
    assert document.data == {"a": {"b": [1, 3]}, "c": {"b": [1, 3]}}
    assert document.data["a"] is not document.data["c"]


def test_characters_that_stand_in_for_braces_are_ordinary_text() -> None:
    assert parse("a: '\uf8f0 ${COUNT}'\n\uf8f1: 1").data == {"a": "\uf8f0 3", "\uf8f1": 1}


def test_environment_values_are_never_structure() -> None:
    assert parse_yaml("a: ${X}", "f", {"X": "[1, {b: 2}]\nc: 3"}).data == {"a": "[1, {b: 2}]\nc: 3"}


_MEG = 1 << 20
BOMBS = {
    "alias bomb": "a: &a [x,x]\n"
    + "".join(f"{n}: &{n} [*{m},*{m},*{m}]\n" for m, n in pairwise("abcdefghijklmnopqrstuvwx")),
    "brackets": "[" * _MEG,
    "braces": "{" * _MEG,
    "dashes": "- " * (_MEG // 2),
    "question marks": "? " * (_MEG // 2),
    "variables": "a: " + "${x:-" * (_MEG // 5),
    "dollars": "a: '" + "${" * (_MEG // 2) + "'",
    "open quote": 'a: "' + "x" * _MEG,
    "skipped nest": "a: 1\na: " + "{" * _MEG,
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_quickly(name: str) -> None:
    start = time.process_time()
    assert parse(BOMBS[name]).problems
    assert time.process_time() - start < 30  # under 1 s; what grows with the square takes minutes


@given(st.text(alphabet=st.sampled_from("ab:-[]{}#&*!|>'\"%@`,?${} \n\t0.e\uf8f0\x00é"), max_size=60))
def test_any_text_gives_a_document(text: str) -> None:
    document = parse(text)
    assert document.problems or () not in document.broken


@given(st.text(max_size=40))
def test_plain_scalars_have_plain_values(text: str) -> None:
    assert isinstance(plain_value(text), str | int | float | bool | None)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text("ab é\n:", max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(PLAIN)
def test_plain_data_survives(data: object) -> None:
    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: object) -> bool:
            return True

    assert parse_yaml(yaml.dump(data, Dumper=Dumper, default_style='"'), "f", {}).problems == []
    assert parse_yaml(yaml.dump(data, Dumper=Dumper, allow_unicode=True), "f", {}).data == data


def refused(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        read_yaml(path, {})
    assert len(caught.value.problems) == 1
    return caught.value.problems[0]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert refused(tmp_path / "none.yaml").endswith(
        "none.yaml:1:1: cannot be read: No such file or directory"
    )
    assert "not a regular file" in refused(tmp_path)
    assert "cannot be read" in refused(Path("a\0b"))
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    assert "not a regular file" in refused(fifo)


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "huge.yaml"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    assert f"{1 << 40} bytes; a configuration has at most {FILE_LIMIT}" in refused(path)


def test_bytes_that_are_not_utf8_are_told_by_position(tmp_path: Path) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes("a: é\n".encode() + b"b: \xe9\n")
    assert refused(path) == f"{path}:2:4: byte 0xe9 is not UTF-8; save the file as UTF-8"


def test_a_byte_order_mark_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "bom.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert read_yaml(path, {}).data == {"a": 1}
