"""Sinks: files that equal an uninterrupted run's, disks that fail, services that are slow or absent."""

from __future__ import annotations

import errno
import io
import json
import logging
import sys
import threading
from contextlib import closing, suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamcl import registry
from streamcl.config.load import config_from_dict
from streamcl.errors import CheckpointError, ConfigError, MissingExtra
from streamcl.factory.parts import build_fanout
from streamcl.sinks import mlflow as mlflow_sink
from streamcl.sinks import tensorboard as tensorboard_sink
from streamcl.sinks.best_effort import BestEffortSink
from streamcl.sinks.fanout import Fanout, build_sinks
from streamcl.sinks.jsonl import TOPICS, JsonlSink, logged_ids
from streamcl.sinks.mlflow import MLflowSink
from streamcl.sinks.redaction import RedactionTarget
from streamcl.sinks.tensorboard import TensorBoardSink
from streamcl.storage.files import Disk
from streamcl.testing import FaultyDisk

STEP = {"kind": "step", "step": 3, "offset": 192, "loss": 0.5, "classes": 4, "accuracy": None}


OPENED: list[JsonlSink] = []


@pytest.fixture(autouse=True)
def _no_file_stays_open():
    yield
    while OPENED:
        with suppress(OSError):
            OPENED.pop().close()


def jsonl(*arguments, **named) -> JsonlSink:
    OPENED.append(JsonlSink(*arguments, **named))
    return OPENED[-1]


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


class TestJsonl:
    def test_each_topic_has_its_file(self, tmp_path):
        sink = jsonl(tmp_path / "a run")
        sink.write("metrics", STEP)
        sink.write("predictions", {"step": 3, "label": "猫", "confidence": np.float32(0.5), "at": Path("x")})
        sink.flush()
        assert lines(tmp_path / "a run" / "metrics.jsonl") == [STEP]
        assert (tmp_path / "a run" / "predictions.jsonl").read_text(encoding="utf-8") == (
            '{"step": 3, "label": "猫", "confidence": 0.5, "at": "x"}\n'
        )
        assert not (tmp_path / "a run" / "events.jsonl").exists()

    @pytest.mark.parametrize(
        "value", [float("nan"), float("inf"), np.float32("nan"), [1.0, float("-inf")], {"a": float("nan")}]
    )
    def test_a_number_that_json_lacks_becomes_null(self, tmp_path, value):
        sink = jsonl(tmp_path)
        sink.write("metrics", {"loss": value, "name": "x", "array": np.array([1, 2])})
        sink.flush()
        text = (tmp_path / "metrics.jsonl").read_text()
        json.loads(text, parse_constant=pytest.fail)
        assert "null" in text
        assert json.loads(text)["array"] == [1, 2]

    def test_half_a_surrogate_pair_in_a_name_survives(self, tmp_path):
        sink = jsonl(tmp_path)
        sink.write("events", {"class": "\ud83d"})
        sink.flush()
        assert lines(tmp_path / "events.jsonl") == [{"class": "\ud83d"}]

    def test_what_is_no_json_value_is_refused(self, tmp_path):
        with pytest.raises(TypeError, match="object"):
            jsonl(tmp_path).write("events", {"x": object()})

    def test_an_unknown_topic_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match="unknown topic 'image'"):
            jsonl(tmp_path).write("image", {})

    @settings(max_examples=25, deadline=None)
    @given(
        st.lists(st.tuples(st.sampled_from(TOPICS), st.text(max_size=20)), max_size=20),
        st.integers(0, 20),
        st.integers(0, 20),
    )
    def test_resumed_files_equal_uninterrupted_ones(self, tmp_path_factory, records, commit, crash):
        whole, broken = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("broken")
        straight = jsonl(whole)
        for topic, text in records:
            straight.write(topic, {"text": text})
        straight.close()
        first = jsonl(broken)
        for topic, text in records[:commit]:
            first.write(topic, {"text": text})
        first.flush()
        state = json.loads(json.dumps(first.state_dict()))
        for topic, text in records[commit : commit + crash]:
            first.write(topic, {"text": text})
        first.flush()  # everything reached the disk, then the process died before its checkpoint
        second = jsonl(broken)
        second.load_state_dict(state)
        for topic, text in records[commit:]:
            second.write(topic, {"text": text})
        second.close()
        for topic in TOPICS:
            left = [f / f"{topic}.jsonl" for f in (whole, broken)]
            assert len({path.read_bytes() if path.exists() else b"" for path in left}) == 1

    def test_the_position_is_that_of_the_last_flush(self, tmp_path):
        sink = jsonl(tmp_path)
        sink.write("metrics", STEP)
        assert sink.state_dict()["metrics"] == 0
        sink.flush()
        flushed = sink.state_dict()
        assert flushed["metrics"] == 1
        sink.write(
            "metrics", {"long": "x" * 200_000}
        )  # past what is kept in memory, so it is written at once
        assert (tmp_path / "metrics.jsonl").stat().st_size > 200_000
        assert sink.state_dict() == flushed

    def test_loading_drops_what_was_waiting(self, tmp_path):
        sink = jsonl(tmp_path)
        sink.write("metrics", STEP)
        sink.load_state_dict({})
        sink.close()
        assert not (tmp_path / "metrics.jsonl").exists()

    def test_a_shortened_file_is_named_and_nothing_is_cut(self, tmp_path):
        sink = jsonl(tmp_path)
        for topic in ("events", "metrics"):
            sink.write(topic, STEP)
        sink.flush()
        state = {**sink.state_dict(), "metrics": 0, "events": 9999}
        with pytest.raises(CheckpointError, match=r"events\.jsonl"):
            jsonl(tmp_path).load_state_dict(state)
        assert lines(tmp_path / "metrics.jsonl") == [STEP]

    def test_nth_disk_fault_surfaces_and_nothing_is_lost_or_doubled(self, tmp_path):
        for fault in range(1, 100):
            disk = FailingDisk(fault)
            folder = tmp_path / str(fault)
            folder.mkdir()
            sink = jsonl(folder, disk=disk)
            for number in range(3):
                sink.write("metrics", {"n": number})
                sink.write("events", {"n": number})
                try:
                    sink.flush()
                except OSError as error:
                    assert error.errno == errno.ENOSPC  # noqa: PT017
                    written = folder / "events.jsonl"
                    whole = written.read_bytes().count(b"\n") if written.exists() else 0
                    assert sink.state_dict()["events"] <= whole
            sink.close()
            for topic in ("metrics", "events"):
                assert lines(folder / f"{topic}.jsonl") == [{"n": 0}, {"n": 1}, {"n": 2}]
            if not disk.failed:
                return
        pytest.fail("the faults never ran out")

    def test_redacting_takes_out_what_is_erased_and_writing_goes_on(self, tmp_path):
        sink = jsonl(tmp_path)
        sink.write("predictions", {"offset": 0, "id": "a", "label": "cat", "predicted": "dog"})
        sink.write("events", {"kind": "new_class", "classes": ["cat", "dog"]})
        sink.flush()
        position = sink.state_dict()
        sink.write("metrics", STEP)  # not flushed yet
        assert sink.redact(RedactionTarget({0}, {"a"}, {"dog"})) == 2
        assert sink.state_dict() | {"metrics": 0} == position
        sink.write("predictions", {"offset": 1, "id": "b"})
        sink.close()
        assert lines(tmp_path / "predictions.jsonl") == [
            {"offset": 0, "erased": True},
            {"offset": 1, "id": "b"},
        ]
        assert lines(tmp_path / "events.jsonl") == [{"kind": "new_class", "classes": ["cat"]}]
        assert lines(tmp_path / "metrics.jsonl") == [STEP]
        assert set(logged_ids(tmp_path)) == {(1, "b")}

    def test_an_erased_line_does_not_show_how_long_it_was(self, tmp_path):
        for name in ("a", "b" * 90):
            with closing(jsonl(tmp_path / name[0])) as sink:
                sink.write("predictions", {"step": 1, "offset": 0, "id": name, "label": name})
                sink.write("predictions", {"step": 1, "offset": 1, "id": "other"})
                sink.flush()
                position = sink.state_dict()
                sink.redact(RedactionTarget({0}, {name}, {name}))
                sink.write("predictions", {"step": 2, "offset": 2, "id": "lost in a crash"})
            with closing(jsonl(tmp_path / name[0])) as sink:
                sink.load_state_dict(position)
        both = [(tmp_path / name / "predictions.jsonl").read_bytes() for name in ("a", "b")]
        assert both[0] == both[1]
        assert both[0].splitlines()[0] == b'{"step": 1, "offset": 0, "erased": true}'
        assert both[0].count(b"\n") == 2

    def test_redacting_survives_a_fault_at_any_durable_call(self, tmp_path):
        def redact(folder, disk):
            sink = jsonl(folder, disk=disk)
            sink.redact(RedactionTarget({0}, set()))

        def written(folder):
            with closing(JsonlSink(folder)) as sink:
                for topic in ("predictions", "quarantine"):
                    sink.write(topic, {"offset": 0, "id": "a long name"})
            return folder

        disk = FaultyDisk()
        redact(written(tmp_path / "whole"), disk)
        for number in range(1, len(disk.calls) + 1):
            folder = written(tmp_path / str(number))
            with pytest.raises(OSError, match="Input/output error"):
                redact(folder, FaultyDisk(number, "eio"))
            whole = [{"offset": 0, "id": "a long name"}], [{"offset": 0, "erased": True}]
            assert all(lines(path) in whole for path in folder.glob("*.jsonl"))
            redact(folder, Disk())
            assert list(logged_ids(folder)) == []
        assert len(disk.calls) > 8

    def test_closing_lets_files_go_even_where_it_fails(self, tmp_path):
        sink = jsonl(tmp_path, disk=FailingDisk(1))
        sink.write("metrics", STEP)
        with pytest.raises(OSError, match="full"):
            sink.close()
        sink.close()


class FailingDisk(Disk):
    """The nth write or fsync fails, writes half-way."""

    def __init__(self, fault: int) -> None:
        self.left, self.failed = fault, False

    def _full(self) -> bool:
        self.left -= 1
        self.failed |= self.left == 0
        return self.left == 0

    def write(self, handle: io.FileIO, data: bytes | memoryview) -> int:
        if self._full():
            raise OSError(errno.ENOSPC, "disk full")
        return super().write(handle, data[: max(1, len(data) // 2)])

    def fsync(self, handle: io.FileIO) -> None:
        if self._full():
            raise OSError(errno.ENOSPC, "disk full")
        super().fsync(handle)


class Kept:
    """A sink that keeps what it is given; it waits at a gate, and raises what it is told to."""

    def __init__(self, gate: threading.Event | None = None, error: Exception | None = None) -> None:
        self.records, self.gate, self.error = [], gate, error
        self.flushes, self.closed, self.state = 0, False, {"at": 1}

    def write(self, topic, record):
        if self.gate is not None:
            self.gate.wait(120)
        if self.error is not None:
            raise self.error
        self.records.append((topic, record))

    def flush(self):
        self.flushes += 1

    def close(self):
        if self.error is not None:
            raise self.error
        self.closed = True

    def state_dict(self):
        if self.error is not None:
            raise self.error
        return dict(self.state)

    def load_state_dict(self, state):
        self.state = dict(state)


class TestLossy:
    def test_everything_arrives_in_order_where_there_is_time(self):
        kept = Kept()
        sink = BestEffortSink(kept, "kept")
        sink.load_state_dict({"at": 7})
        for number in range(100):
            sink.write("metrics", {"n": number})
        sink.flush()
        sink.close()
        assert [record["n"] for _, record in kept.records] == list(range(100))
        assert (kept.flushes, kept.closed, sink.dropped, sink.failed) == (1, True, 0, 0)
        assert sink.state_dict() == {"at": 7}

    def test_a_record_is_what_it_was_when_it_was_written(self):
        gate = threading.Event()
        kept, record = Kept(gate), {"n": 1}
        sink = BestEffortSink(kept, "kept")
        sink.write("metrics", record)
        record["n"] = 2
        gate.set()
        sink.close()
        assert kept.records == [("metrics", {"n": 1})]

    def test_a_stuck_sink_holds_nobody_up_and_warns_once_a_minute(self, caplog):
        gate, now = threading.Event(), [0.0]
        kept = Kept(gate)
        sink = BestEffortSink(kept, "stuck", size=10, close_timeout=0.05, clock=lambda: now[0])
        with caplog.at_level(logging.WARNING):
            for number in range(1000):
                sink.write("metrics", {"n": number})
            assert sink.dropped >= 989
            assert len(caplog.records) == 1
            now[0] = 61.0
            sink.write("metrics", {})
            assert len(caplog.records) == 2
            assert "sink stuck is too slow" in caplog.text
            now[0] = 122.0
            sink.close()
            assert "did not finish in time" in caplog.text
        gate.set()

    def test_redacting_waits_for_a_place_in_the_queue(self, tmp_path):
        inner = jsonl(tmp_path)
        sink = BestEffortSink(inner, "copy", size=1)
        for number in range(50):
            sink.write("predictions", {"offset": number, "id": "a"})
        sink.redact(RedactionTarget(range(50), set()))
        sink.close()
        assert sink.dropped + len(lines(tmp_path / "predictions.jsonl")) == 50
        assert list(logged_ids(tmp_path)) == []

    def test_a_failing_sink_is_counted_and_survived(self, caplog):
        sink = BestEffortSink(Kept(error=ConnectionError("refused")), "down")
        with caplog.at_level(logging.WARNING):
            for _ in range(20):
                sink.write("metrics", {})
            assert sink.state_dict() == {}
            sink.close()
        assert sink.failed == 22
        assert len(caplog.records) == 1
        assert "ConnectionError: refused" in caplog.text


class TestTensorBoard:
    def test_figures_and_events_can_be_read_back_and_images_cannot(self, tmp_path):
        pytest.importorskip("tensorboard")
        sink = TensorBoardSink(tmp_path)
        sink.write("metrics", STEP)
        sink.write("metrics", {"kind": "holdout", "step": 4, "parts": {"a": 0.5}, "loss": float("nan")})
        sink.write("events", {"kind": "shift", "step": 4, "offset": 256, "reason": "loss rose"})
        sink.write("predictions", {"step": 4, "id": "secret"})
        sink.flush()
        assert sink.state_dict() == {"step": 4}
        sink.load_state_dict({"step": 3})
        sink.close()
        events = read_events(tmp_path)
        values = {v.tag: (e.step, v.simple_value) for e in events for v in e.summary.value}
        assert values["step/loss"] == (3, 0.5)
        assert values["holdout/parts/a"] == (4, 0.5)
        assert set(values) == {"step/loss", "step/classes", "holdout/parts/a", "events/shift"}
        assert [e.step for e in events if e.HasField("session_log")] == [4]
        assert b"secret" not in b"".join(path.read_bytes() for path in tmp_path.iterdir())

    def test_torch_is_not_needed(self):
        assert "torch" not in Path(tensorboard_sink.__file__).read_text().replace("not torch", "")

    @pytest.mark.parametrize(("name", "make"), [("tensorboard", TensorBoardSink), ("mlflow", MLflowSink)])
    def test_a_missing_package_names_its_extra(self, tmp_path, monkeypatch, name, make):
        for module in [m for m in sys.modules if m == name or m.startswith(f"{name}.")]:
            monkeypatch.delitem(sys.modules, module)
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(MissingExtra) as caught:
            make(tmp_path) if name == "tensorboard" else make()
        assert f"streamcl[{name}]" in caught.value.hint


def read_events(folder: Path) -> list:
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    (path,) = folder.iterdir()
    return list(LegacyEventFileLoader(str(path)).Load())


class Server:
    """What MLflowSink asks of an MLflow client."""

    def __init__(self) -> None:
        self.metrics, self.tags, self.runs, self.ended = [], {}, 0, []

    def get_experiment_by_name(self, name):
        return SimpleNamespace(experiment_id="7") if self.runs else None

    def create_experiment(self, name):
        return "7"

    def create_run(self, experiment, run_name=None):
        self.runs += 1
        return SimpleNamespace(info=SimpleNamespace(run_id=f"run{self.runs}"))

    def log_metric(self, run, name, value, step):
        self.metrics.append((run, name, value, step))

    def set_tag(self, run, name, value):
        self.tags[name] = value

    def set_terminated(self, run):
        self.ended.append(run)


class TestMLflow:
    def test_figures_and_events_and_nothing_else(self):
        server = Server()
        sink = MLflowSink(client=server)
        assert server.runs == 0
        sink.write("metrics", {**STEP, "loss": float("inf")})
        sink.write("metrics", {"kind": "holdout", "step": 4, "parts": {"<a>": 0.5}})
        sink.write("events", {"kind": "shift", "step": 4, "offset": 256})
        sink.write("predictions", {"step": 4, "id": "secret"})
        sink.flush()
        sink.close()
        assert server.metrics == [("run1", "step/classes", 4.0, 3), ("run1", "holdout/parts/_a_", 0.5, 4)]
        assert server.tags == {"event.00000004.shift": "shift at offset 256: no reason given"}
        assert (server.runs, server.ended) == (1, ["run1"])

    def test_a_resumed_run_is_the_same_run_on_the_server(self):
        server = Server()
        first, second = MLflowSink(client=server), MLflowSink(client=server)
        first.write("metrics", STEP)
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        second.write("metrics", STEP)
        assert {run for run, *_ in server.metrics} == {"run1"}

    def test_closing_before_the_first_record_asks_nothing(self):
        server = Server()
        MLflowSink(client=server).close()
        assert server.ended == []


class TestBuild:
    def test_json_lines_first_and_copies_behind_a_queue(self, tmp_path):
        pytest.importorskip("tensorboard")
        both = build_sinks(tmp_path, {"tensorboard": {}})
        assert list(both.sinks) == ["jsonl", "tensorboard"]
        assert isinstance(both.sinks["tensorboard"], BestEffortSink)
        both.write("metrics", STEP)
        both.flush()
        both.load_state_dict(json.loads(json.dumps(both.state_dict())))
        both.close()
        assert lines(tmp_path / "metrics.jsonl") == [STEP]
        assert list((tmp_path / "tensorboard").iterdir())

    def test_a_sink_may_come_and_go_between_two_processes(self, tmp_path):
        first = Fanout({"jsonl": jsonl(tmp_path), "gone": Kept()})
        state = first.state_dict()
        fresh = Kept()
        Fanout({"jsonl": jsonl(tmp_path), "new": fresh}).load_state_dict(state)
        assert fresh.state == {}

    def test_all_are_closed_though_one_fails(self):
        last = Kept()
        with pytest.raises(OSError, match="disk"):
            Fanout({"a": Kept(error=OSError("disk")), "b": last}).close()
        assert last.closed

    @pytest.mark.parametrize(
        ("name", "arguments", "hint"),
        [
            ("tensorbord", {}, "did you mean 'tensorboard'"),
            ("x", {}, "known: "),
            ("mlflow", {"server": 1}, "it takes: uri, experiment"),
        ],
    )
    def test_a_wrong_name_or_argument_is_a_configuration_error(self, tmp_path, name, arguments, hint):
        with pytest.raises(ConfigError) as caught:
            build_sinks(tmp_path, {name: arguments})
        assert hint in caught.value.hint

    def test_mlflow_is_named_after_the_run(self, tmp_path, monkeypatch):
        made = []
        monkeypatch.setattr(mlflow_sink, "MLflowSink", lambda **options: made.append(options))
        registry.SINKS.find("mlflow")(tmp_path, uri="http://x")
        assert (made[0]["tracking_uri"], made[0]["run_name"]) == ("http://x", tmp_path.name)

    def test_mlflow_goes_where_the_configuration_says(self, tmp_path, monkeypatch):
        made = []
        monkeypatch.setattr(mlflow_sink, "MLflowSink", lambda **options: made.append(options) or Kept())
        named = {"name": "mlflow", "uri": "http://x", "experiment": "icons"}
        config = config_from_dict({"source": "demo", "sinks": [named]})
        build_fanout(config, tmp_path).close()
        assert (made[0]["tracking_uri"], made[0]["experiment"]) == ("http://x", "icons")

    def test_plugins_are_entry_points(self, tmp_path, monkeypatch):
        kept = Kept()
        point = SimpleNamespace(name="mine", value="x:y", load=lambda: lambda folder, level: kept)
        monkeypatch.setattr(
            registry, "entry_points", lambda group: [point] if group == "streamcl.sinks" else []
        )
        both = build_sinks(tmp_path, {"mine": {"level": 3}})
        both.write("events", STEP)
        both.close()
        assert kept.records == [("events", STEP)]


def test_an_event_before_an_erased_record_stays():
    target = RedactionTarget({40}, {"washer-1"})
    corrected = {"kind": "label", "step": 5, "offset": 40, "id": "bolt-6", "outcome": "corrected"}
    assert target.redact(corrected) is None
    assert target.redact({**corrected, "id": "washer-1"}) == {"step": 5, "offset": 40, "erased": True}
    assert target.redact({"step": 5, "offset": 40, "id": "unknown"}) is not None
