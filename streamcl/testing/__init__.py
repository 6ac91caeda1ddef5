"""Fakes and oracles to test your own sources, sinks and loops with, under kills, errors and losses of power.

Shipped and without torch. A stream is a script in which a crash is an item:

    source = ScriptedSource([8, 8, Crash("kill"), 8], memory=tmp_path / "crashes")

A run of it is repeated in forked processes until it ends, and must have consumed every record once, in order:

    killed = until_done(lambda: my_run(source, run_directory))
    assert killed == 1
    each_exactly_once(ids_consumed(run_directory), [record_id(k) for k in range(24)])

Whatever writes through `streamcl.storage.files` takes a `disk`; give it one that fails at its Nth call,
for every N:

    for n, _ in enumerate(durable_calls(write), start=1):
        with contextlib.suppress(OSError):
            write(FaultyDisk(n, "enospc"))
        assert content() in (old, new)

With "drop_unsynced" the disk raises PowerLoss, after taking back what no sync made durable; with "kill" the
process dies, so run it by `in_child`. `check_source`, `check_learner`, `check_detector` and `check_sink`
demand the contracts of `streamcl.protocols`, `check_live_reader` that of `streamcl.sources.live_reader`.
"""

from streamcl.testing.detector_checks import check_detector
from streamcl.testing.disk import Fault, FaultyDisk, PowerLoss
from streamcl.testing.learner_checks import check_learner
from streamcl.testing.live_reader_checks import check_live_reader
from streamcl.testing.oracles import check_sink, durable_calls, each_exactly_once, in_child, until_done
from streamcl.testing.source_checks import check_source
from streamcl.testing.stream import (
    Bad,
    Crash,
    FakeLearner,
    Jump,
    Raise,
    ScriptedCrash,
    ScriptedSource,
    Stall,
    record_id,
)

__all__ = [
    "Bad",
    "Crash",
    "FakeLearner",
    "Fault",
    "FaultyDisk",
    "Jump",
    "PowerLoss",
    "Raise",
    "ScriptedCrash",
    "ScriptedSource",
    "Stall",
    "check_detector",
    "check_learner",
    "check_live_reader",
    "check_sink",
    "check_source",
    "durable_calls",
    "each_exactly_once",
    "in_child",
    "record_id",
    "until_done",
]
