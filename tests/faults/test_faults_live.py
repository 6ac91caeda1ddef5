"""Live sources under kills of the run and of the broker: ids learned are ids sent, and states are equal."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
from conditions import wait_for
from fault_runs import left, lines, start, streamcl, write_config
from fault_sources import CLASSES, picture
from PIL import Image

pytestmark = [pytest.mark.faults, pytest.mark.long]

RECORDS = 96
BATCH = {"size": 8, "max_wait": "1h"}  # so that the clock cuts nothing
STEPS = (  # from a record's arrival to the word to the broker that it may go; killed at the nth call of each
    ("LiveSource._hand_out", 2), ("RedisReader.replay", 1), ("JsonlSink.flush", 2), ("Checkpoints.save", 2),
    ("LiveSource.acknowledge", 1), ("RedisReader.acknowledge", 1), ("ArrivalLog.drop_before", 1),
)  # fmt: skip
MORE_STEPS = (
    ("RedisReader.open", 1), ("StreamProcessor.begin", 1), ("RedisReader.poll", 2),
    ("RedisReader.advance", 2), ("ArrivalLog.append", 1), ("LiveSource.load_state_dict", 1),
    ("LiveSource._pass_on", 1), ("Checkpoints._fill", 1), ("StreamProcessor.finish", 1),
)  # fmt: skip


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture(CLASSES[number % 4], number)).save(buffer, "PNG")
    return buffer.getvalue()


class OverRedis:
    """Pictures in a stream "cam" of each database of a server, and configurations that learn from one."""

    reader = "RedisReader"

    def __init__(self, folder: Path, server, **args) -> None:
        self.folder, self.server, self.args = folder, server, args

    def send(self, numbers, database: int = 0) -> None:
        with self.server.database(database) as client:
            for number in numbers:
                fields = {"image": png(number), "label": CLASSES[number % 4], "subject": f"p{number % 5}"}
                client.xadd("cam", fields, id=f"{number + 1}-0")

    def clear(self, database: int) -> None:
        with self.server.database(database) as client:
            client.flushdb()

    def ids(self, numbers) -> list[str]:
        return [f"cam/{number + 1}-0" for number in numbers]

    def config(self, database: int = 0, **changes) -> None:
        args = {"keys": "cam", "url": f"{self.server.url}?db={database}", **self.args}
        write(self.folder, database, {"name": "redis", "args": args}, **changes)


class OverFolder:
    """The same pictures as files of a folder, in the order of their times."""

    reader = "ListingReader"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def send(self, numbers, database: int = 0) -> None:
        for number in numbers:
            path = self.folder / f"pictures-{database}" / CLASSES[number % 4] / f"{number:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(number))
            os.utime(path, (1000 + number, 1000 + number))

    def ids(self, numbers) -> list[str]:
        return [f"{CLASSES[number % 4]}/{number:03}.png" for number in numbers]

    def config(self, database: int = 0, **changes) -> None:
        args = {"root": f"pictures-{database}", "interval": 0.02, "name": "cam"}
        write(self.folder, database, {"name": "folder", "args": args}, **changes)


def write(folder: Path, database: int, source, **changes) -> None:
    options = {"batch": BATCH, "checkpoint": {"every_samples": 16}, "max_samples": RECORDS, **changes}
    name = f"stream-{database}.yaml"
    write_config(folder, name, learner="ridge", source=source, run_dir=f"run-{database}", **options)


def run(folder: Path, database: int, *options, **kill) -> tuple[int | None, str]:
    """One process; how it ended and the last point it came by."""
    note = folder / "record"
    note.unlink(missing_ok=True)
    hooks = (("fault_runs:kill_at", {"note": str(note), **kill}),) if kill else ()
    done = streamcl("run", f"stream-{database}.yaml", *options, folder=folder, hooks=hooks)
    assert done.code in (0, -signal.SIGKILL), done.err
    return done.code, note.read_text().split("\n")[-2] if note.exists() else ""


def learned_ids(folder: Path, database: int) -> list[str]:
    return [each["id"] for each in lines(folder / f"run-{database}", "predictions")]


@pytest.mark.parametrize(
    ("trim", "steps"), [(True, STEPS), pytest.param(False, STEPS + MORE_STEPS, marks=pytest.mark.slow)]
)
def test_killed_at_every_step_between_arrival_and_acknowledgement(tmp_path, redis_server, trim, steps):
    """L1. The undisturbed run reads the same entries in another database."""
    stream = OverRedis(tmp_path, redis_server, trim=trim)
    for database in (0, 1):
        stream.send(range(RECORDS), database)
        stream.config(database, checkpoint={"every_samples": 8})
    assert run(tmp_path, 0) == (0, "")
    killed = []
    for point, times in steps:
        code, last = run(tmp_path, 1, point=point, times=times)
        if code == 0:  # the run was too far: another one begins
            (tmp_path / "run-1").rename(tmp_path / f"ended-{len(killed)}")
            stream.clear(1)
            stream.send(range(RECORDS), 1)
            code, last = run(tmp_path, 1, point=point, times=times)
        killed.append(last)
    assert killed == [point for point, _ in steps]
    assert run(tmp_path, 1)[0] == 0
    for ended in (*tmp_path.glob("ended-*"), tmp_path / "run-1"):
        assert [each["id"] for each in lines(ended, "predictions")] == stream.ids(range(RECORDS))
        assert left(ended) == left(tmp_path / "run-0")
    # Of the undisturbed run: of the other all may be read, and so no more be polled, before a checkpoint.
    with redis_server.database(0) as client:
        assert (client.xlen("cam") < RECORDS) == trim
    if not trim:
        with redis_server.database(1) as client:
            assert client.xlen("cam") == RECORDS


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["redis", "folder"])
def test_two_hundred_kills_at_random_calls(tmp_path, request, kind):
    """L1, wherever it is."""
    stream = (
        OverFolder(tmp_path)
        if kind == "folder"
        else OverRedis(tmp_path, request.getfixturevalue("redis_server"))
    )
    for database in (0, 1):
        stream.send(range(RECORDS), database)
        stream.config(database, checkpoint={"every_samples": 8})
    assert run(tmp_path, 0) == (0, "")
    whole, rng, killed, ends = left(tmp_path / "run-0"), random.Random(0), [], 0
    while len(killed) < 200:
        code, last = run(tmp_path, 1, number=rng.randint(1, 130))
        if code:
            killed.append(last)
            continue
        assert left(tmp_path / "run-1") == whole
        (tmp_path / "run-1").rename(tmp_path / f"ended-{ends}")
        ends += 1
    assert run(tmp_path, 1)[0] == 0
    assert left(tmp_path / "run-1") == whole
    assert learned_ids(tmp_path, 1) == stream.ids(range(RECORDS))
    assert len(set(killed)) >= 20
    assert any(each.startswith(stream.reader) for each in killed)


def test_a_broker_that_is_killed_while_it_is_read(tmp_path, redis_server):
    """L2: half of the entries come before, the others after it is back."""
    stream = OverRedis(tmp_path, redis_server)
    for database in (0, 1):
        stream.config(database, flush="100ms")
        stream.send(range(RECORDS if database == 0 else RECORDS // 2), database)
    assert run(tmp_path, 0) == (0, "")
    process = start("run", "stream-1.yaml", folder=tmp_path)
    wait_for(lambda: len(learned_ids(tmp_path, 1)) == RECORDS // 2)
    redis_server.kill()
    time.sleep(0.5)
    redis_server.start()
    stream.send(range(RECORDS // 2, RECORDS), 1)
    done = process.wait()
    assert done.code == 0, done.err
    assert done.err.count("is away") == 1
    assert learned_ids(tmp_path, 1) == stream.ids(range(RECORDS))
    assert left(tmp_path / "run-1") == left(tmp_path / "run-0")


def test_a_stream_that_was_trimmed_between_a_kill_and_the_next_start(tmp_path, redis_server):
    """L5: exit code 3, and the message names the gap."""
    stream = OverRedis(tmp_path, redis_server)
    stream.config()
    stream.send(range(RECORDS))
    assert run(tmp_path, 0, point="Checkpoints.save", times=4)[0] == -signal.SIGKILL
    redis_server.client.xtrim("cam", maxlen=10, approximate=False)
    done = streamcl("run", "stream-0.yaml", folder=tmp_path)
    assert done.code == 3
    assert "a gap in the stream 'cam'" in done.err
    assert "the first that is left is 87-0" in done.err


@pytest.mark.parametrize(
    "point",
    [
        pytest.param("Ledger.submit", marks=pytest.mark.slow),
        "Ledger.start",
        pytest.param("StreamProcessor.commit", marks=pytest.mark.slow),
        "LiveSource.acknowledge",
    ],
)
def test_a_request_of_the_broker_is_carried_out_once(tmp_path, redis_server, point):
    """Killed before and after it is in the ledger, and before its place is acknowledged."""
    stream = OverRedis(tmp_path, redis_server, requests="forget")
    half = RECORDS // 2
    for database in (0, 1):
        stream.config(database, max_samples=half)
        stream.send(range(half), database)
        assert run(tmp_path, database)[0] == 0
        with redis_server.database(database) as client:
            client.xadd("forget", {"data": "no request"}, id="1-0")
            client.xadd("forget", {"data": json.dumps({"subject": "p3", "id": "r1"})}, id="2-0")
        stream.send(range(half, RECORDS), database)
        stream.config(database)
    assert run(tmp_path, 0)[0] == 0
    assert run(tmp_path, 1, point=point, times=1 + (point == "StreamProcessor.commit"))[0] == -signal.SIGKILL
    assert run(tmp_path, 1)[0] == 0
    assert left(tmp_path / "run-1").state == left(tmp_path / "run-0").state
    for database in (0, 1):
        folder = tmp_path / f"run-{database}"
        (event,) = [each for each in lines(folder, "events") if each["kind"] == "forget"]
        assert (event["request"], event["outcome"]) == ("r1", "done")
        assert len(list((folder / "receipts").glob("*.json"))) == 1
