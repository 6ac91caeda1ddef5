"""Files that somebody has changed on purpose, clocks that jump, and the chain of another run."""

import shutil
import sqlite3

import pytest
from forgetting_fakes import Opened
from signed_runs import KEYS, key_source, make_run, receipts

from streamcl.errors import ForgettingError
from streamcl.events import ForgetRequest
from streamcl.forgetting.receipts.verify import verify_receipt
from streamcl.storage.signing import PublicKeys, SigningKey
from streamcl.testing import ScriptedSource, record_id

KEEP_A_COPY = """CREATE TRIGGER copy AFTER DELETE ON samples BEGIN
    INSERT INTO relabelled (number, offset, id, learned, segment, content)
    VALUES (OLD.offset + 100, OLD.offset, OLD.id, 0, 0, '');
END"""
LOSE_TOMBSTONES = "CREATE TRIGGER lose BEFORE INSERT ON tombstones BEGIN SELECT RAISE(IGNORE); END"
A_VIEW = "CREATE VIEW requests_2 AS SELECT * FROM requests"


@pytest.mark.parametrize(
    ("file", "statement"),
    [("lineage.sqlite", KEEP_A_COPY), ("ledger.sqlite", LOSE_TOMBSTONES), ("ledger.sqlite", A_VIEW)],
)
def test_a_file_with_code_of_somebody_else_is_refused(tmp_path, file, statement):
    """A trigger would run within an erasure: it can keep what is deleted, or drop a tombstone."""
    with Opened(tmp_path, ScriptedSource([4] * 3)) as run:
        run.run()
    with sqlite3.connect(tmp_path / file) as connection:
        connection.execute(statement)
    connection.close()
    with pytest.raises(ForgettingError, match="which streamcl has not made"):
        Opened(tmp_path, ScriptedSource([4] * 3))


def test_the_whole_chain_of_another_run_is_refused(tmp_path):
    """Same stream, same requests, same key: but the hashes of names are those of another ledger."""
    ours, other = make_run(tmp_path / "ours"), make_run(tmp_path / "other")
    for path in receipts(ours):
        verify_receipt(path, KEYS)
    shutil.rmtree(ours / "receipts")
    shutil.copytree(other / "receipts", ours / "receipts")
    with pytest.raises(ForgettingError, match="is the receipt of another run"):
        verify_receipt(receipts(ours)[0], KEYS)


@pytest.mark.parametrize("now", [900.0, 1e12])
def test_a_clock_that_jumps_leaves_receipts_that_can_be_verified(tmp_path, now):
    """A receipt is never dated before the key that signs it was made."""
    key = SigningKey.generate(name="ACME", valid_from=1500.0)
    schedule = [ForgetRequest(ids=[record_id(k)], offset=8 + 4 * k, id=f"r{k}") for k in (0, 1)]
    times = iter([2000.0, *[now] * 100])
    with Opened(
        tmp_path,
        ScriptedSource([4] * 6),
        schedule=schedule,
        signing_key=key_source(key),
        clock=lambda: next(times),
    ) as run:
        run.run()
    for number in (0, 1):
        verify_receipt(tmp_path / "receipts" / f"r{number}.json", PublicKeys.of([key.public]))
