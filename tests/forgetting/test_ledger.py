"""The ledger: nothing acknowledged is lost, nothing is applied twice, nothing of the person stays."""

import os
import signal
import sqlite3
import threading
from contextlib import closing

import pytest

from streamcl.errors import ForgettingError
from streamcl.forgetting.ledger import ledger as module
from streamcl.forgetting.ledger import request_fields
from streamcl.forgetting.ledger.ledger import LEDGER, Ledger
from streamcl.storage.sqlite import SqliteFile
from streamcl.testing import in_child

pytestmark = pytest.mark.faults

REQUEST = {"id": "r1", "key": "k1", "kind": "subject", "subject": "Ada Lovelace"}


@pytest.fixture
def path(tmp_path):
    return tmp_path / LEDGER


@pytest.fixture
def ledger(path):
    with Ledger(path, clock=lambda: 1000.0) as opened:
        yield opened


def plain(path):
    """A connection of another program, which commits each statement."""
    return closing(sqlite3.connect(path, isolation_level=None))


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def die_before(statement, times=1):
    """Kill the process when SQLite is about to run, for that time, a statement that begins so."""
    connect, seen = sqlite3.connect, []

    def traced(sql):
        seen.extend([sql] if sql.startswith(statement) else [])
        if len(seen) == times:
            die()

    def connected(*values, **options):
        connection = connect(*values, **options)
        connection.set_trace_callback(traced)
        return connection

    sqlite3.connect = connected


# -- requests ----------------------------------------------------------------------------------------------


def test_a_request_goes_its_way(ledger):
    entry = ledger.submit(REQUEST)
    assert (entry.position, entry.id, entry.status, entry.received) == (1, "r1", "received", 1000.0)
    assert entry.body == REQUEST
    assert ledger.start("r1").status == "started"
    assert ledger.pending() == [ledger.entry("r1")]
    ledger.finish("r1")
    assert ledger.entry("r1").finished == 1000.0
    assert ledger.pending() == []
    assert [each.status for each in ledger.entries()] == ["done"]


def test_the_same_key_is_the_same_request(ledger):
    first = ledger.submit(REQUEST)
    ledger.start("r1")
    ledger.finish("r1")
    ledger.scrub("r1")
    again = ledger.submit(dict(reversed(REQUEST.items())))
    assert (again.position, again.status) == (first.position, "done")
    assert ledger.pending() == []
    assert ledger.position == 1


@pytest.mark.parametrize("changed", [{"subject": "Bob"}, {"key": "k2"}, {"id": "r2"}])
def test_a_key_or_an_id_with_other_content_is_refused(ledger, changed):
    ledger.submit(REQUEST)
    with pytest.raises(ForgettingError, match="different content"):
        ledger.submit({**REQUEST, **changed})
    assert len(ledger.entries()) == 1


def test_without_a_key_the_id_is_the_key(ledger):
    assert ledger.submit({"id": "x"}).position == ledger.submit({"id": "x"}).position == 1
    assert ledger.submit({"id": "y"}).position > 1


@pytest.mark.parametrize(
    "malformed",
    [
        {}, {"id": ""}, {"id": 3}, {"id": "a\nb"}, {"id": "a" * 201}, {"id": "a", "key": ""},
        {"id": "a", "key": 5}, {"id": "a", "x": {1}}, {"id": "a", "x": float("nan")},
    ],
)  # fmt: skip
def test_the_malformed_is_refused_with_the_reason(ledger, malformed):
    with pytest.raises(ForgettingError, match=r"must be|JSON"):
        ledger.submit(malformed)
    assert ledger.entries() == []


def test_a_request_of_no_reasonable_size_is_refused(ledger, monkeypatch):
    monkeypatch.setattr(request_fields, "BODY_LIMIT", 100)
    with pytest.raises(ForgettingError, match="larger than the 100"):
        ledger.submit({"id": "a", "samples": "x" * 100})


@pytest.mark.parametrize(
    ("way", "wrong"),
    [
        (["finish"], "received and cannot become done"),
        (["start", "finish", "start"], "done and cannot become started"),
        (["start", "finish", "finish"], "done and cannot become done"),
        (["refuse", "start"], "refused and cannot become started"),
        (["start", "fail", "finish"], "failed and cannot become done"),
    ],
)
def test_no_step_is_left_out_or_taken_twice(ledger, way, wrong):
    ledger.submit(REQUEST)
    *before, last = [
        lambda verb=verb: getattr(ledger, verb)("r1", *(["why"] if verb in {"fail", "refuse"} else []))
        for verb in way
    ]
    for step in before:
        step()
    with pytest.raises(ForgettingError, match=wrong):
        last()


def test_a_failed_request_stays_with_its_reason_and_may_be_tried_again(ledger):
    ledger.submit(REQUEST)
    ledger.start("r1")
    assert ledger.fail("r1", "features gone").reason == "features gone"
    assert ledger.pending() == []
    assert ledger.start("r1").reason is None


def test_an_unknown_request_is_named(ledger):
    with pytest.raises(ForgettingError, match="no request 'nobody'"):
        ledger.start("nobody")


def test_position_is_that_of_the_newest_request(ledger):
    assert ledger.position == 0
    assert [ledger.submit({"id": name}).position for name in "ab"] == [1, ledger.position]


# -- kills -------------------------------------------------------------------------------------------------


def submit_and(path, after=lambda: None, before=None):
    if before is not None:
        die_before(before)
    Ledger(path).submit(REQUEST)
    after()


def test_killed_after_the_acknowledgement_it_is_there(path):
    assert in_child(lambda: submit_and(path, after=die)) == -signal.SIGKILL
    with Ledger(path) as ledger:
        assert [entry.body for entry in ledger.pending()] == [REQUEST]


@pytest.mark.parametrize(
    "statement", ["CREATE", "PRAGMA journal", "PRAGMA user_version =", "BEGIN", "INSERT INTO requests"]
)
def test_killed_before_the_acknowledgement_it_is_there_or_not_and_can_be_sent_again(path, statement):
    assert in_child(lambda: submit_and(path, before=statement)) == -signal.SIGKILL
    with Ledger(path) as ledger:
        assert ledger.entries() == []
        assert ledger.submit(REQUEST).position == 1


def test_killed_before_the_commit_nothing_is_there(path):
    Ledger(path).close()

    def submit_and_die():
        die_before("COMMIT", 2)  # the first is of opening the file
        Ledger(path).submit(REQUEST)

    assert in_child(submit_and_die) == -signal.SIGKILL
    with Ledger(path) as ledger:
        assert ledger.entries() == []


@pytest.mark.parametrize("verb", ["start", "finish"])
def test_killed_in_the_middle_it_is_pending_again(path, verb):
    def work():
        if verb == "finish":
            die_before("COMMIT", 4)  # after those of opening, submitting and starting
        ledger = Ledger(path)
        ledger.submit(REQUEST)
        ledger.start("r1")
        if verb == "finish":
            ledger.finish("r1")
            raise AssertionError("it was to be killed in its last transaction")
        die()

    assert in_child(work) == -signal.SIGKILL
    with Ledger(path) as ledger:
        assert [entry.status for entry in ledger.pending()] == ["started"]
        ledger.start("r1")
        ledger.finish("r1")


# -- several processes -------------------------------------------------------------------------------------


def test_a_request_from_another_process_reaches_the_live_run(path, ledger):
    assert ledger.pending() == []

    def other():
        with Ledger(path) as mine:
            mine.submit(REQUEST)
            mine.add_tombstones("r1", "subject", ["Ada Lovelace"])

    assert in_child(other) == 0
    assert [entry.id for entry in ledger.pending()] == ["r1"]
    assert ledger.is_tombstoned("subject", "Ada Lovelace")


def test_many_processes_open_and_submit_at_once(path):
    failures = []

    def work(number):
        if in_child(lambda: [Ledger(path).submit({"id": f"{number}-{k}"}) for k in range(5)]) != 0:
            failures.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with Ledger(path) as ledger:
        assert len(ledger.pending()) == 20
        assert [entry.position for entry in ledger.entries()] == list(range(1, 21))


def test_a_ledger_held_for_long_says_so(path, ledger):
    ledger.submit(REQUEST)
    with plain(path) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(ForgettingError, match="busy"):
            Ledger(path, timeout=0.05)


# -- privacy -----------------------------------------------------------------------------------------------


def bytes_of(path):
    return b"".join(each.read_bytes() for each in path.parent.iterdir())


@pytest.mark.parametrize("size", [1, 200, 20_000])
def test_after_scrub_no_byte_of_the_person_is_left(path, ledger, size):
    ledger.submit({**REQUEST, "key": "key of Ada Lovelace", "notes": "Countess " * size})
    ledger.submit({"id": "other", "notes": "keep"})
    ledger.add_tombstones("r1", "subject", ["Ada Lovelace"])
    ledger.start("r1")
    ledger.fail("r1", "Ada Lovelace was in use")
    ledger.start("r1")
    ledger.finish("r1")
    assert b"Countess" in bytes_of(path)
    ledger.scrub("r1")
    content = bytes_of(path)
    assert b"Ada" not in content
    assert b"Countess" not in content
    assert b"keep" in content
    assert ledger.entry("r1").body is None
    assert ledger.is_tombstoned("subject", "Ada Lovelace")


def test_an_unfinished_request_is_not_scrubbed(ledger):
    ledger.submit(REQUEST)
    with pytest.raises(ForgettingError, match="only a finished request"):
        ledger.scrub("r1")


def test_scrub_says_when_the_journal_could_not_be_emptied(path):
    with Ledger(path, timeout=0.05) as ledger, plain(path) as reader:
        ledger.submit(REQUEST)
        ledger.refuse("r1", "no such subject")
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM requests").fetchall()
        with pytest.raises(ForgettingError, match="journal still holds"):
            ledger.scrub("r1")
        reader.execute("ROLLBACK")
        ledger.scrub("r1")
        assert b"Ada" not in bytes_of(path)


# -- tombstones --------------------------------------------------------------------------------------------


def test_tombstones_are_by_kind_and_survive(path, ledger):
    ledger.submit(REQUEST)
    ledger.add_tombstones("r1", "class", ["cat", "chat", "\udcff"])
    ledger.add_tombstones("r1", "class", ["cat"])
    with Ledger(path) as again:
        for each in (ledger, again):
            assert each.is_tombstoned("class", "cat")
            assert each.is_tombstoned("class", "\udcff")
            assert not each.is_tombstoned("sample", "cat")
            assert not each.is_tombstoned("class", "ca")
    assert b"cat" not in bytes_of(path)


def test_two_ledgers_hash_differently(tmp_path):
    (tmp_path / "other").mkdir()
    with Ledger(tmp_path / LEDGER) as one, Ledger(tmp_path / "other" / LEDGER) as two:
        assert one.fingerprint("class", "cat") != two.fingerprint("class", "cat")


def test_past_the_limit_of_memory_the_file_is_asked(path, ledger, monkeypatch):
    ledger.submit(REQUEST)
    ledger.add_tombstones("r1", "sample", [str(k) for k in range(20)])
    monkeypatch.setattr(module, "MEMORY_LIMIT", 10)
    with Ledger(path) as small, Ledger(path) as other:
        other.add_tombstones("r1", "sample", ["from elsewhere"])
        assert small.is_tombstoned("sample", "from elsewhere")  # without a refresh, so the file is asked
        assert small.is_tombstoned("sample", "7")
        assert not small.is_tombstoned("sample", "20")
        small.add_tombstones("r1", "sample", ["20"])
        assert small.is_tombstoned("sample", "20")


# -- damage ------------------------------------------------------------------------------------------------


def test_what_is_not_a_ledger_is_said_to_be_damaged(path):
    path.write_bytes(b"not a database, and long enough to have a header of a hundred bytes" * 3)
    with pytest.raises(ForgettingError, match=r"ledger\.sqlite is damaged") as caught:
        Ledger(path)
    assert "backup" in caught.value.hint


def test_changed_bytes_are_found(path):
    with Ledger(path) as ledger:
        ledger.submit({"id": "r1", "subject": "Ada Lovelace"})
    content = path.read_bytes()
    assert content.count(b"Ada Lovelace") == 1
    path.write_bytes(content.replace(b"Ada Lovelace", b"Bob Lovelace"))
    with Ledger(path) as ledger, pytest.raises(ForgettingError, match="not what was submitted"):
        ledger.pending()


def test_damage_in_any_page_is_found_when_the_ledger_is_opened(path):
    with Ledger(path) as ledger:
        for number in range(50):
            ledger.submit({"id": str(number), "notes": "x" * 500})
        ledger.add_tombstones("1", "sample", map(str, range(300)))
    good = path.read_bytes()
    assert len(good) // 4096 > 10
    for page in range(1, len(good) // 4096):
        path.write_bytes(good[: page * 4096] + b"\xff" * 64 + good[page * 4096 + 64 :])
        with pytest.raises(ForgettingError, match="damaged"):
            Ledger(path)
    path.write_bytes(good)
    Ledger(path).close()


def test_a_ledger_without_salt_is_damaged(path):
    Ledger(path).close()
    with plain(path) as file:
        file.execute("DELETE FROM facts")
    with pytest.raises(ForgettingError, match="no salt"):
        Ledger(path)


def test_a_newer_format_is_refused(path):
    Ledger(path).close()
    with plain(path) as file:
        file.execute("PRAGMA user_version = 7")
    with pytest.raises(ForgettingError, match="format 7"):
        Ledger(path)


def test_a_missing_folder_is_said(tmp_path):
    with pytest.raises(ForgettingError, match="No such file"):
        Ledger(tmp_path / "missing" / LEDGER)


def test_an_odd_umask_does_not_lock_us_out(path):
    before = os.umask(0o777)
    try:
        with Ledger(path) as ledger:
            ledger.submit(REQUEST)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600


def test_what_is_durable_is_asked_of_sqlite(path):
    file = SqliteFile(path, 1.0)
    assert file.query("PRAGMA synchronous") == [(2,)]
    assert file.query("PRAGMA journal_mode") == [("wal",)]
    assert file.query("PRAGMA secure_delete") == [(1,)]
    file.close()


@pytest.mark.long
def test_what_a_request_costs_does_not_grow_with_those_that_are_over(tmp_path, monkeypatch):
    """Counted in rows read: of a ledger with 40 requests that are over, and of one with 400."""

    def rows_read(count):
        with Ledger(tmp_path / f"{count}.sqlite") as ledger:
            for number in range(count):
                ledger.submit(REQUEST | {"id": f"r{number}", "key": f"k{number}"})
                ledger.start(f"r{number}")
                ledger.add_tombstones(f"r{number}", "sample", [f"s{number}"])
            ledger.finish(*(f"r{number}" for number in range(count)))
            ledger.scrub(*ledger.unscrubbed())
            assert ledger.is_tombstoned("sample", "s1")
            query, rows = SqliteFile.query, []
            counted = lambda file, *args: rows.extend(found := query(file, *args)) or found  # noqa: E731
            monkeypatch.setattr(SqliteFile, "query", counted)
            ledger.submit(REQUEST | {"id": "new", "key": "new"})
            assert [entry.id for entry in ledger.pending()] == ["new"]
            ledger.start("new")
            ledger.add_tombstones("new", "sample", ["another"])
            assert ledger.is_tombstoned("sample", "another")
            ledger.finish("new")
            ledger.scrub("new")
            assert not ledger.pending()
            assert not ledger.failed()
        monkeypatch.undo()
        return len(rows)

    assert rows_read(40) == rows_read(400)
