"""Checks after faults: each record consumed once, progress made, sinks that can be cut back."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import Any

from streamcl.protocols import Sink
from streamcl.sinks.redaction import RedactableSink, RedactionTarget
from streamcl.storage.files import Disk
from streamcl.testing.disk import FaultyDisk


def each_exactly_once(consumed: Sequence[str], expected: Sequence[str]) -> None:
    """Raise AssertionError with the ids that were lost, doubled, unknown or out of order.

    >>> each_exactly_once(["a", "c"], ["a", "b", "c"])
    Traceback (most recent call last):
    AssertionError: 1 of 3 ids lost: ['b']
    """
    times = Counter(consumed)
    lost = [name for name in expected if name not in times]
    doubled = [name for name, count in times.items() if count > 1]
    unknown = sorted(times.keys() - set(expected))
    for what, ids in (("lost", lost), ("consumed more than once", doubled), ("never in the stream", unknown)):
        if ids:
            raise AssertionError(f"{len(ids)} of {len(expected)} ids {what}: {ids[:5]}")
    for position, (got, wanted) in enumerate(zip(consumed, expected, strict=True)):
        if got != wanted:
            raise AssertionError(f"out of order at {position}: {got} where {wanted} was expected")


def in_child(run: Callable[[], object], *, seconds: float = 600.0) -> int:
    """Run in a forked process; return its exit code, or minus the number of the signal that ended it.

    A traceback goes to stderr with exit code 1; SystemExit keeps its code. Fork before threads are started:
    a lock that one of them holds is held in the child for ever.

    Raises:
        AssertionError: it had not ended after so many seconds, and was killed.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os._exit(_exit_code(run))
    return _exit_code_of(child, seconds)


def _exit_code_of(child: int, seconds: float) -> int:
    end = time.monotonic() + seconds
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise AssertionError(f"the forked process had not ended after {seconds:g} seconds")
        time.sleep(0.002)
    return os.waitstatus_to_exitcode(ended[1])


def until_done(run: Callable[[], object], *, limit: int = 1000, seconds: float = 600.0) -> int:
    """Run in child processes, again after each that was killed, until one ends; return how many were killed.

    Raise AssertionError where one fails otherwise or takes more than so many seconds, or where none has
    ended after `limit` (no progress).
    """
    for killed in range(limit):
        code = in_child(run, seconds=seconds)
        if code == 0:
            return killed
        if code > 0:
            raise AssertionError(f"the run ended with exit code {code} after {killed} kills")
    raise AssertionError(f"the run was killed {limit} times and never ended: it makes no progress")


def durable_calls(operation: Callable[[Disk], object]) -> list[str]:
    """Return the calls of the disk that an operation makes when nothing fails: at each a fault can be."""
    disk = FaultyDisk()
    operation(disk)
    return disk.calls


def check_sink(make: Callable[[], Sink], read: Callable[[], Sequence[Mapping[str, Any]]]) -> None:
    """Check the contract of a sink: what is flushed stays, what came after the position is given up.

    A sink that can redact does so in the midst of writing: it then names nothing of what was erased, and
    continues where it was.

    Args:
        make: opens the sink anew on the same place, as a resumed process does; the place is empty at first.
        read: returns the records that are there now, in order.

    Raises:
        AssertionError: the sink breaks the contract.
    """
    records = [{"step": step, "value": step * 0.5} for step in range(6)]
    with closing(make()) as sink:
        for record in records[:3]:
            sink.write("metrics", record)
        sink.flush()
        position = sink.state_dict()
        _demand(read(), records[:3], "after flush")
        sink.write("metrics", {"step": 3, "value": -1.0})
        sink.flush()
        with closing(make()) as resumed:
            resumed.load_state_dict(position)
            for record in records[3:]:
                resumed.write("metrics", record)
            resumed.flush()
            _demand(read(), records, "after resuming at the position of a checkpoint")
            if isinstance(resumed, RedactableSink):
                _check_redaction(resumed, read, records)


def _check_redaction(
    sink: RedactableSink, read: Callable[[], Sequence[Mapping[str, Any]]], before: list[dict[str, Any]]
) -> None:
    """Check that nothing names an erased sample and class, and that writing continues after it."""
    other = {"step": 7, "offset": 8, "id": "other", "label": "kept", "predicted": "gone"}
    sink.write("metrics", {"step": 6, "offset": 7, "id": "erased", "label": "gone", "predicted": None})
    sink.write("metrics", other)
    sink.flush()
    position = sink.state_dict()
    if not sink.redact(RedactionTarget({7}, {"erased"}, {"gone"})):
        raise AssertionError("redact says that no record changed, and one named an erased sample")
    sink.write("metrics", {**other, "id": "later", "predicted": "kept"})
    sink.flush()
    erased = {"step": 6, "offset": 7, "erased": True}
    redacted = [*before, erased, {**other, "predicted": None}]
    _demand(read(), [*redacted, {**other, "id": "later", "predicted": "kept"}], "after redacting")
    sink.load_state_dict(position)
    _demand(read(), redacted, "after redacting, at the position of an earlier checkpoint")


def _demand(found: Sequence[Mapping[str, Any]], expected: Sequence[Mapping[str, Any]], when: str) -> None:
    if [dict(record) for record in found] != [dict(record) for record in expected]:
        raise AssertionError(f"{when} the sink holds {list(found)}, expected {list(expected)}")


def _exit_code(run: Callable[[], object]) -> int:
    try:
        run()
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:  # the child must never return into the parent's stack
        traceback.print_exc()
        return 1
    return 0
