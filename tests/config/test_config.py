"""The configuration: strict types, faults and their places, overrides, round trips, resuming."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from streamcl.config.compatibility import differences, fingerprint
from streamcl.config.load import config_from_dict, dump_config, load_config, schema
from streamcl.errors import ConfigError
from streamcl.factory.check_names import check_names

MINIMAL = "source: {name: demo}\n"


def write(folder: Path, text: str, name: str = "stream.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def problems(folder: Path, text: str, *overrides: str) -> list[str]:
    """Every problem, without the file's folder."""
    path = write(folder, text)
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides, environment={})
    assert caught.value.exit_code == 2
    assert str(caught.value) == "\n".join(caught.value.problems)
    return [line.removeprefix(f"{folder}/") for line in caught.value.problems]


def test_defaults_are_the_documented_ones(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, MINIMAL, "my stream.yaml"))
    assert config.name == "my-stream"
    assert (config.seed, config.batch.size, config.max_samples, config.run_dir) == (0, None, None, None)
    assert config.source.name == "demo"
    assert config.source.policy.max_file_bytes == 64 * 2**20
    assert config.learner.name == "ridge_lora"
    assert config.learner.lora.learning_rate == 3e-3
    assert config.shift.name == "relative_rise"
    assert config.checkpoint is not None
    assert config.checkpoint.every_samples == 2000


def test_a_bare_name_stands_for_its_block(tmp_path: Path) -> None:
    short = "source: demo\nscenario: iid\nlearner: online_lora\nshift: none\nsinks: [tensorboard]\n"
    long = (
        "source: {name: demo}\nscenario: {name: iid}\nlearner: {name: online_lora}\nshift: {name: none}\n"
        "sinks: [{name: tensorboard}]\n"
    )
    assert load_config(write(tmp_path, short)) == load_config(write(tmp_path, long))


def test_a_block_without_a_name_is_the_default_one() -> None:
    data = {"source": "demo", "learner": {"lora": {"rank": 8}}, "shift": {"loss_threshold": 7.0}}
    config = config_from_dict(data)
    assert (config.learner.name, config.learner.lora.rank, config.shift.loss_threshold) == (
        "ridge_lora",
        8,
        7.0,
    )


def test_parts_of_ones_own() -> None:
    data = {
        "source": {"class": "my.module:stream", "args": {"k": [1, {"x": None}]}},
        "shift": {"class": "my.module:Detector.make"},
        "sinks": [{"class": "my.sinks:Csv", "args": {"a": 1}}, {"plugin": "kafka"}],
    }
    config = config_from_dict(data)
    assert config.source.class_ == "my.module:stream"
    assert config.shift.class_ == "my.module:Detector.make"
    assert config.sinks[1].plugin == "kafka"


BAD = """\
sed: 3
source:
  name: demo
  args: {root: ${DATA}}
  policy: {on_bad_record: quarantin, max_side: "3"}
batch: 0
learner:
  name: ridge_lroa
shift: {name: plateau, window: 1, mean_treshold: 3}
backbone: {weights: pretraind, depth: 3}
sinks:
  - tensorbord
  - {name: mlflow, url: x}
precision: 16
device: cud
"""


def test_all_faults_at_once_with_exact_places_and_nearest_names(tmp_path: Path) -> None:
    assert problems(tmp_path, BAD) == [
        "stream.yaml:1:1: unknown key 'sed'; did you mean 'seed'?",
        "stream.yaml:4:16: the environment has no DATA; set it, or write ${DATA:-default}",
        "stream.yaml:5:12: source.policy.on_bad_record: unknown value; found the text 'quarantin'; "
        "did you mean 'quarantine'?",
        "stream.yaml:5:38: source.policy.max_side: must be a valid integer; found the text '3'",
        "stream.yaml:6:1: batch.size: must be greater than or equal to 1; found 0",
        "stream.yaml:8:3: learner.name: unknown name 'ridge_lroa'; did you mean 'ridge_lora'?",
        "stream.yaml:9:24: shift.window: must be greater than or equal to 2; found 1",
        "stream.yaml:9:35: unknown key 'mean_treshold' in shift; did you mean 'mean_threshold'?",
        "stream.yaml:10:12: backbone.weights: unknown value; found the text 'pretraind'; "
        "did you mean 'pretrained'?",
        "stream.yaml:12:5: sinks.0: unknown name 'tensorbord'; did you mean 'tensorboard'?",
        "stream.yaml:13:20: unknown key 'url' in sinks.1; did you mean 'uri'?",
        "stream.yaml:14:1: precision: unknown value; found 16; expected one of: auto, 32-true, bf16-mixed",
        "stream.yaml:15:1: device: unknown value; found the text 'cud'; did you mean 'cuda'?",
    ]


@pytest.mark.parametrize(
    ("option", "place", "words"),
    [
        ("learner: {name: online_lora, learning_rate: 0}", "2:30", "must be greater than 0; found 0"),
        (
            "learner: {name: online_lora, learning_rate: -1e-4}",
            "2:30",
            "must be greater than 0; found -0.0001",
        ),
        ("learner: {name: online_lora, learning_rate: .nan}", "2:30", "must be a finite number; found nan"),
        ("learner: {name: online_lora, learning_rate: 1e999}", "2:30", "must be a finite number; found inf"),
        ("learner: {name: online_lora, learning_rate: true}", "2:30", "must be a valid number; found true"),
        ("learner: {name: online_lora, rank: 0}", "2:30", "must be greater than or equal to 1; found 0"),
        ("learner: {name: online_lora, rank: 4.0}", "2:30", "must be a valid integer; found 4"),
        ("learner: {name: ridge, blocks: [1, 1]}", "2:24", "1 is listed twice"),
        ("learner: {name: ridge, blocks: [1, x]}", "2:36", "must be a valid integer; found the text 'x'"),
        ("learner: 3", "2:1", "must be a mapping with a 'name'; found 3"),
        ("batch: 0", "2:1", "must be greater than or equal to 1"),
        (
            "batch: on",
            "2:1",
            "must be a number of records, or a block with size and max_wait",
        ),
        ("shift: {name: plateau, window: 1}", "2:24", "must be greater than or equal to 2"),
        ("evaluate: {at_stream_end: yes}", "2:12", "must be true or false; found the text 'yes'"),
        ("evaluate: []", "2:1", "must be a mapping; found a list"),
        ("seed: -1", "2:1", "must be greater than or equal to 0"),
        ("name: ../x", "2:1", "unknown value; found the text '../x'"),
        ("on: 1", "2:1", "unknown key 'on'"),
        ("checkpoint: {every_samples: 1e3}", "2:14", "must be a valid integer"),
        ("scenario: {name: domain_incremental, order: [a, 3]}", "2:49", "must be a valid string; found 3"),
        ("scenario: {parts: 3}", "2:1", "must be a mapping with a 'name'"),
        ("backbone: {args: {x: {y: [1, .inf]}}}", "2:30", "must be a finite number"),
        ("sinks: tensorboard", "2:1", "must be a valid list"),
        ("learner: {name: ridge_lora, ridge: {trace_rigde: 1}}", "2:37", "did you mean 'trace_ridge'?"),
        ("backbone: {depth: 3}\nlearner: {ridge: {blocks: [1, 5]}}", "3:31", "block 5 does not exist"),
        ("backbone: {depth: 3}\nlearner: {lora: {first_block: 3}}", "3:18", "keeps blocks 0 to 2"),
    ],
)
def test_impossible_values(tmp_path: Path, option: str, place: str, words: str) -> None:
    (line,) = problems(tmp_path, MINIMAL + option)
    assert line.startswith(f"stream.yaml:{place}: ")
    assert words in line


@pytest.mark.parametrize("text", ["", "3", "[1]", "# nothing\n", "source:", "{}"])
def test_a_file_without_options(tmp_path: Path, text: str) -> None:
    assert problems(tmp_path, text)[0].startswith("stream.yaml:")


def test_a_source_is_a_name_or_a_class(tmp_path: Path) -> None:
    both = problems(tmp_path, "source: {name: demo, class: 'a.b:c'}")
    neither = problems(tmp_path, "source: {args: {}}")
    assert both == neither == ["stream.yaml:1:1: source: needs exactly one of 'name' and 'class'"]
    assert "source.class" in problems(tmp_path, "source: {class: a.b.c}")[0]


def test_a_flood_of_unknown_keys_is_refused_quickly(tmp_path: Path) -> None:
    flood = MINIMAL + "".join(f"sources{i}: 1\n" for i in range(9000)) + "? " + "seed" * 100_000 + "\n: 1\n"
    start = time.process_time()
    found = problems(tmp_path, flood)
    assert time.process_time() - start < 30  # 0.3 s; looking every key's nearest name up takes minutes
    assert max(map(len, found)) < 400
    assert found[-1].endswith("and 8901 more problems")


def test_a_long_key_is_cut_in_its_message(tmp_path: Path) -> None:
    (line,) = problems(tmp_path, MINIMAL + "? " + "seed" * 100_000 + "\n: 1\n")
    assert "seedseeds...'" in line
    assert len(line) < 400


def test_a_shared_value_is_written_out_twice(tmp_path: Path) -> None:
    shared = [1]
    config = config_from_dict({"source": {"name": "demo", "args": {"a": shared, "b": shared}}})
    assert load_config(write(tmp_path, dump_config(config))) == config


def test_syntax_faults_stop_the_rest(tmp_path: Path) -> None:
    assert problems(tmp_path, "source: demo\nlearner:\n\trank: 3") == [
        "stream.yaml:3:1: a tab; YAML is indented with spaces"
    ]


def test_an_unread_value_is_told_once(tmp_path: Path) -> None:
    text = "source: demo\nlearner: {name: !x y}\nbatch: !!python/object:a.b {}\nsed: 1"
    found = problems(tmp_path, text)
    assert [line.split(":")[1] for line in found] == ["2", "3", "4"]


def test_overrides(tmp_path: Path) -> None:
    path = write(tmp_path, "source: demo\nlearner: online_lora\nsinks: [tensorboard, mlflow]\n")
    config = load_config(
        path,
        [
            "learner.rank=8",
            "learner.learning_rate=1e-3",
            "sinks.1.uri=file:/x",
            "sinks.2={class: 'a.b:c'}",
            "backbone.args.img={size: [1, 2]}",
            "checkpoint=null",
            "max_samples=${N}",
            "report.title=a=b",
        ],
        environment={"N": "7"},
    )
    assert (config.learner.name, config.learner.rank, config.learner.learning_rate) == (
        "online_lora",
        8,
        1e-3,
    )
    assert config.sinks[1].uri == "file:/x"
    assert config.sinks[2].class_ == "a.b:c"
    assert config.backbone.args == {"img": {"size": [1, 2]}}
    assert (config.checkpoint, config.max_samples, config.report.title) == (None, 7, "a=b")


def test_override_faults_name_the_override(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        "source: demo\nseed: x\nbatch: x\n",
        "learner.lora.rnk=3",
        "seed=y",
        "max_samples=[",
        "x",
        "a..b=1",
        "sinks=[1]",
        "sinks.5.uri=x",
        "report.title=!x y",
        "threads=${NONE}",
    )
    assert found[0].startswith("stream.yaml:3:1: batch: must be")
    assert [line.split(": ", 1)[0] for line in found[1:]] == [
        "--set learner.lora.rnk=3",
        "--set seed=y",
        "--set max_samples=[",
        "--set x",
        "--set a..b=1",
        "--set sinks=[1]",
        "--set sinks.5.uri=x",
        "--set report.title=!x y",
        "--set threads=${NONE}",
    ]
    assert found[1].endswith("unknown key 'rnk' in learner.lora; did you mean 'rank'?")


def test_dicts_are_as_strict_as_files() -> None:
    with pytest.raises(ConfigError) as caught:
        config_from_dict(
            {"source": "demo", "sed": 1, "seed": True, "max_samples": 3.0, "report": {"title": object()}}
        )
    assert caught.value.problems == (
        "max_samples: must be a valid integer; found 3",
        "report.title: must be a valid string; found a object",
        "seed: must be a valid integer; found true",
        "unknown key 'sed'; did you mean 'seed'?",
    )
    with pytest.raises(ConfigError, match="args"):
        config_from_dict({"source": {"name": "demo", "args": {"x": object()}}})


def test_the_callers_mapping_is_left_alone() -> None:
    data: dict[str, Any] = {"source": {"name": "demo", "args": {"x": [1]}}}
    config = config_from_dict(data)
    data["source"]["args"]["x"].append(2)
    assert config.source.args == {"x": [1]}
    assert set(data) == {"source"}


def test_later_stages_can_refuse_with_a_place(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, "source: demo\nlearner:\n  lora: {rank: 400}\n"), ["seed=3"])
    error = config.refuse("learner.lora.rank", "rank 400 exceeds the width 384")
    assert error.problems == (
        f"{tmp_path}/stream.yaml:3:10: learner.lora.rank: rank 400 exceeds the width 384",
    )
    assert str(config.refuse("seed", "bad")) == "--set seed=3: seed: bad"
    assert str(config.refuse("shift.window", "bad")).startswith(f"{tmp_path}/stream.yaml:1:1: ")


SCHEMA = schema()
EXAMPLES: list[dict[str, Any]] = [
    {"source": "demo"},
    {"source": {"name": "npz", "args": {"path": "${HOME}"}}, "scenario": "si_blurry", "max_samples": None},
    {"source": {"class": "a.b:c", "name": None}, "scenario": {"name": "disjoint", "parts": 3, "seed": 1}},
    {"source": "demo", "learner": {"name": "online_lora", "rank": 2, "learning_rate": 1}, "shift": "plateau"},
    {"source": "demo", "learner": {"name": "ridge", "blocks": [1, 2], "projection": 100}, "checkpoint": None},
    {
        "source": "demo",
        "learner": {"lora": {"first_block": 7}},
        "shift": {"name": "river", "detector": "ADWIN"},
    },
    {"source": "demo", "sinks": ["tensorboard", {"name": "mlflow", "uri": "http://x"}, {"plugin": "p"}]},
    {"source": "demo", "shift": {"class": "a:b"}, "backbone": {"weights": "hf-hub:timm/vit", "depth": 11}},
    {"source": "demo", "scenario": {"name": "domain_incremental", "order": ["a", "on", "1e-4"]}},
    {
        "source": "demo",
        "backbone": {"weights": "w/x.safetensors"},
        "device": "cuda:1",
        "precision": "32-true",
    },
]
EVERYTHING = st.fixed_dictionaries(
    {
        "source": st.fixed_dictionaries(
            {"name": st.text(min_size=1, max_size=20)},
            optional={
                "args": st.dictionaries(
                    st.text(max_size=8),
                    st.recursive(
                        st.none()
                        | st.booleans()
                        | st.integers(-(10**30), 10**30)
                        | st.floats(allow_nan=False, allow_infinity=False)
                        | st.text(max_size=12)
                        | st.sampled_from(
                            ["1e-4", "on", "null", "${X}", "$${X}", "~", "0x1", "9" * 70, "a: b", "#"]
                        ),
                        lambda inner: (
                            st.lists(inner, max_size=2)
                            | st.dictionaries(st.text(max_size=4), inner, max_size=2)
                        ),
                        max_leaves=4,
                    ),
                    max_size=3,
                )
            },
        )
    },
    optional={
        "seed": st.integers(0, 2**63 - 1),
        "max_samples": st.none() | st.integers(1, 10**15),
        "checkpoint": st.none() | st.fixed_dictionaries({"every_samples": st.integers(1, 10**6)}),
        "learner": st.sampled_from(["ridge_lora", "ridge", "online_lora"])
        | st.fixed_dictionaries(
            {"name": st.just("online_lora"), "learning_rate": st.floats(0, 10, exclude_min=True)},
            optional={"mask_absent": st.booleans(), "rank": st.integers(1, 1024)},
        ),
        "shift": st.sampled_from(["plateau", "relative_rise", "none"]),
        "report": st.fixed_dictionaries({"title": st.none() | st.text(max_size=20)}),
        "sinks": st.lists(st.sampled_from(["tensorboard", "mlflow", {"class": "a:b"}]), max_size=2),
        "threads": st.none() | st.integers(1, 1024),
    },
)


@pytest.mark.parametrize("data", EXAMPLES, ids=str)
def test_examples_survive_a_dump(data: dict[str, Any], tmp_path: Path) -> None:
    config = config_from_dict(data)
    assert load_config(write(tmp_path, dump_config(config)), environment={}) == config


def test_a_new_option_leaves_the_fingerprint_of_runs_without_it() -> None:
    """Where a default changes, runs of before are refused: say so in the changelog, and change this.

    A new option is None where it is off, or may change on resuming: then it is not in the fingerprint.
    """
    backbone = {"name": "vit_small_patch14_dinov2", "weights": "none"}
    config = config_from_dict({"source": "demo_digits", "backbone": backbone})
    assert fingerprint(config) == "4a2a8258c9e27de1367004dc304e9d1b1c223fc84489eb1c3806fd9ffc77668c"


@pytest.mark.long
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)
@example({"source": {"name": "\x85", "args": {"\u2028": "\n\r \ufeff", "\uf8f0": "${\uf8f1}"}}})
@example({"source": {"name": "0", "args": {"${": None, "$${X}": "${X}"}}})
@given(EVERYTHING)
def test_dump_and_load_round_trip(tmp_path: Path, data: dict[str, Any]) -> None:
    config = config_from_dict(data)
    again = load_config(write(tmp_path, dump_config(config)), environment={"X": "leaked"})
    assert again == config
    assert fingerprint(again) == fingerprint(config)
    assert differences(config, again) == []


WORDS = st.sampled_from(
    [
        "source",
        "demo",
        "learner",
        "name",
        "ridge_lora",
        "ridge",
        "blocks",
        "sinks",
        "shift",
        "window",
        "3",
        "1e-4",
    ]
)
MARKS = st.sampled_from([*"[]{}'\"|\né\t", ": ", ":\n  ", "- ", ", ", "# ", "&a ", "*a", "!!x ", "${X}"])


def problems_or_none(path: Path, *overrides: str) -> tuple[str, ...]:
    try:
        load_config(path, overrides, environment={})
    except ConfigError as error:
        return error.problems
    return ()


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    deadline=None,
    max_examples=300,
)
@given(
    st.lists(WORDS | MARKS, max_size=25).map("".join) | st.text(max_size=30),
    st.lists(st.text(max_size=12), max_size=2),
)
def test_random_text_raises_config_errors_only(tmp_path: Path, text: str, overrides: list[str]) -> None:
    path = write(tmp_path, "source: demo\n" + text)
    for line in problems_or_none(path, *overrides):
        assert line.startswith((f"{path}:", "--set "))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)
@given(st.binary(max_size=50))
def test_random_bytes_raise_config_errors_only(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "raw.yaml"
    path.write_bytes(raw)
    with pytest.raises(ConfigError):
        load_config(path)


def walk(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
        for value in node.values():
            yield from walk(value)
    elif isinstance(node, list):
        for item in node:
            yield from walk(item)


def test_the_schema_explains_every_option() -> None:
    described = schema()
    assert described["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert described["title"]
    assert described["description"]
    for model in [described, *described["$defs"].values()]:
        for name, option in model.get("properties", {}).items():
            assert option.get("description"), name


@pytest.mark.parametrize("data", EXAMPLES, ids=str)
def test_the_schema_accepts_what_loads(data: dict[str, Any]) -> None:
    validator = pytest.importorskip("jsonschema").Draft202012Validator(SCHEMA)
    full = config_from_dict(data).model_dump(by_alias=True)
    assert [error.message for error in validator.iter_errors(data)] == []
    assert [error.message for error in validator.iter_errors(full)] == []


def test_the_schema_accepts_variables_and_refuses_faults() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    validator = jsonschema.Draft202012Validator(SCHEMA)
    assert validator.is_valid(
        {"source": "demo", "seed": "${SEED}", "precision": "${P:-auto}", "max_samples": "${N}"}
    )
    for bad in (
        {},
        {"source": "demo", "sed": 1},
        {"source": "demo", "seed": -1},
        {"source": "demo", "seed": "x"},
        {"source": {"name": "demo", "class": "a:b"}},
        {"source": "demo", "learner": {"name": "ridge_lroa"}},
        {"source": "demo", "learner": {"name": "ridge", "rank": 3}},
    ):
        assert not validator.is_valid(bad), bad


@settings(deadline=None)
@given(st.lists(EVERYTHING, min_size=1, max_size=3))
def test_the_schema_accepts_whatever_loads(several: list[dict[str, Any]]) -> None:
    validator = pytest.importorskip("jsonschema").Draft202012Validator(SCHEMA)
    for data in several:
        config_from_dict(data)
        validator.validate(data)


def test_a_run_keeps_the_hard_buffer_it_was_saved_with_and_is_refused_without_it(tmp_path: Path) -> None:
    """Runs before the default was 0 had 4 without naming it; their saved configurations name it."""
    old = config_from_dict({"source": "demo", "learner": {"name": "online_lora", "hard_buffer_size": 4}})
    assert load_config(write(tmp_path, dump_config(old))).learner.hard_buffer_size == 4
    (found,) = differences(old, config_from_dict({"source": "demo", "learner": "online_lora"}))
    assert str(found) == "learner.hard_buffer_size: 4 -> 0 (refuse)"


def test_differences_are_classed_for_a_resume() -> None:
    old = {"source": {"name": "demo", "policy": {"retries": 1}}, "learner": {"lora": {"rank": 4}}}
    new = {
        "source": {"name": "demo", "prefetch": 0, "policy": {"retries": 2, "max_side": 10}},
        "max_samples": 5,
        "checkpoint": None,
        "sinks": ["tensorboard"],
        "report": {"samples": 1},
        "evaluate": {"every_samples": 5},
        "learner": {"lora": {"rank": 8, "learning_rate": 1e-3}},
        "shift": "plateau",
        "scenario": "iid",
        "seed": 1,
        "batch": 32,
    }
    found = {item.path: item.severity for item in differences(config_from_dict(old), config_from_dict(new))}
    assert {path for path, severity in found.items() if severity == "refuse"} == {
        "seed",
        "batch.size",
        "scenario.name",
        "shift.name",
        "shift.window",
        "learner.lora.rank",
    }
    assert {path for path, severity in found.items() if severity == "warn"} == {
        "source.policy.max_side",
        "learner.lora.learning_rate",
        "shift.loss_threshold",
        "shift.feature_threshold",
        "shift.label_threshold",
        "shift.mean_threshold",
        "shift.variance_threshold",
    }
    assert {
        "source.prefetch",
        "source.policy.retries",
        "max_samples",
        "checkpoint.every_samples",
        "sinks",
        "report.samples",
    } <= {path for path, severity in found.items() if severity == "safe"}


@given(EVERYTHING, EVERYTHING)
def test_a_fingerprint_changes_exactly_when_a_resume_is_refused(
    left: dict[str, Any], right: dict[str, Any]
) -> None:
    right = {**right, "source": left["source"]}
    old, new = config_from_dict(left), config_from_dict(right)
    refused = any(item.severity == "refuse" for item in differences(old, new))
    assert (fingerprint(old) == fingerprint(new)) == (not refused)
    assert {item.path for item in differences(old, new)} == {item.path for item in differences(new, old)}


def test_a_bad_file_is_refused_with_few_modules_in_little_memory_and_without_torch(tmp_path: Path) -> None:
    path = write(tmp_path, BAD)
    script = (
        "import sys; from pathlib import Path\n"
        "from streamcl.config.load import load_config; from streamcl.errors import ConfigError\n"
        "try: load_config(sys.argv[1])\n"
        "except ConfigError as error: assert len(error.problems) > 10\n"
        "else: raise SystemExit('accepted')\n"
        "assert not {'torch', 'timm', 'streams'} & set(sys.modules)\n"
        # Not ru_maxrss: it begins with what the process that forked this one had.
        "status = Path('/proc/self/status').read_text()\n"
        "print(len(sys.modules), int(status.split('VmHWM:')[1].split()[0]) // 1024)\n"
    )
    command = [sys.executable, "-c", script, path]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    modules, megabytes = map(int, printed.split())
    assert modules < 600  # 385; importing them is most of the time, and torch alone brings 1,100
    assert megabytes < 200


def named(tmp_path, **changes):
    """The problems of a configuration whose parts are named as `changes` says."""
    (tmp_path / "parts_of_mine.py").write_text(
        "def stream(records=3): ...\nclass Detector:\n    def __init__(self, window=3): ...\n"
    )
    base = {"source": {"class": "parts_of_mine:stream"}, "backbone": {"weights": "none"}}
    try:
        check_names(config_from_dict(base | changes))
    except ConfigError as error:
        return error.problems
    return ()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"source": {"class": "parts_of_mine:straem"}}, ("source: ", "did you mean 'stream'?")),
        ({"source": {"class": "parts_of_mine:stream", "args": {"record": 3}}}, ("did you mean 'records'?",)),
        ({"source": {"name": "image_foldr"}}, ("no source 'image_foldr'", "did you mean 'image_folder'?")),
        ({"source": {"name": "image_folder", "args": {"roo": "x"}}}, ("did you mean 'root'?",)),
        ({"source": {"name": "image_folder"}}, ("needs the argument 'root'",)),
        ({"shift": {"class": "parts_of_mine:Detektor"}}, ("shift: ", "did you mean 'Detector'?")),
        ({"shift": {"class": "parts_of_mine:Detector", "args": {"windw": 3}}}, ("did you mean 'window'?",)),
        ({"backbone": {"name": "vit_smal_patch14_dinov2"}}, ("backbone.name", "did you mean 'vit_small")),
        ({"backbone": {"weights": "file:absent.pth"}}, ("backbone.weights: absent.pth does not exist",)),
        ({"backbone": {"weights": "fetch:wieghts"}}, ("backbone.weights", "did you mean 'weights'?")),
    ],
)
def test_names_that_do_not_exist_are_found_with_the_nearest(tmp_path, monkeypatch, changes, words):
    monkeypatch.chdir(tmp_path)
    (problem,) = named(tmp_path, **changes)
    assert all(word in problem for word in words), problem


def test_every_name_that_does_not_exist_is_found_at_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    backbone = {"name": "vit_smal_patch14_dinov2", "weights": "file:absent.pth"}
    assert len(named(tmp_path, source={"name": "imge_folder"}, backbone=backbone)) == 3
    assert named(tmp_path) == ()
