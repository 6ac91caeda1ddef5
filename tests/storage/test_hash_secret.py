"""The secret of hashes: made once, read by its owner alone, and missed where it is lost or another one."""

import os
import sqlite3
import subprocess
import sys

import pytest

from streamcl.errors import ConfigError, ForgettingError
from streamcl.forgetting.ledger.ledger import Ledger
from streamcl.storage.hash_secret import HashSecret
from streamcl.storage.sqlite import SqliteFile


def make(folder):
    HashSecret(folder).make()
    return HashSecret(folder).key(b"salt")


def test_it_is_made_once_and_for_its_owner_alone(tmp_path):
    keys = tmp_path / "keys"
    first = make(keys)
    assert make(keys) == first
    assert len(first) == 32
    assert (keys.stat().st_mode & 0o777, (keys / "hash-secret").stat().st_mode & 0o777) == (0o700, 0o600)
    assert HashSecret(keys).key(b"other salt") != first
    assert make(tmp_path / "other") != first


MAKE_WHEN_TOLD = """
import sys
from pathlib import Path
from streamcl.storage.hash_secret import HashSecret
print("ready", flush=True)
sys.stdin.readline()
secret = HashSecret(Path(sys.argv[1]))
secret.make()
print(secret.key(b"salt").hex())
"""


def test_processes_that_start_together_share_one(tmp_path):
    command, pipe = [sys.executable, "-c", MAKE_WHEN_TOLD, str(tmp_path / "keys")], subprocess.PIPE
    started = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(4)]
    assert {process.stdout.readline() for process in started} == {"ready\n"}
    for process in started:
        process.stdin.write("now\n")
        process.stdin.flush()
    assert len({process.communicate(timeout=300)[0] for process in started}) == 1
    assert [process.returncode for process in started] == [0] * 4
    assert [path.name for path in (tmp_path / "keys").iterdir()] == ["hash-secret"]


@pytest.mark.parametrize("data", [b"", b"xyz", b"00" * 31, b"\xff" * 64])
def test_a_damaged_one_is_refused(tmp_path, data):
    make(tmp_path / "keys")
    (tmp_path / "keys" / "hash-secret").write_bytes(data)
    with pytest.raises(ConfigError, match="holds no secret"):
        HashSecret(tmp_path / "keys").key(b"salt")


def test_one_that_others_can_read_is_refused(tmp_path):
    make(tmp_path / "keys")
    (tmp_path / "keys" / "hash-secret").chmod(0o640)
    with pytest.raises(ConfigError, match="can be read or changed by others"):
        HashSecret(tmp_path / "keys").key(b"salt")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written_is_said_with_the_way_out(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match="cannot be written") as error:
        make(tmp_path / "keys")
    assert "STREAMCL_KEYS" in error.value.hint


def test_a_file_opens_only_with_the_secret_that_it_was_made_under(tmp_path):
    path, secret = tmp_path / "file.sqlite", HashSecret(tmp_path / "keys")
    first = SqliteFile(path, 1.0, secret=secret)
    digest = first.digest("sample", "a")
    first.close()
    again = SqliteFile(path, 1.0, secret=HashSecret(tmp_path / "keys"))
    assert again.digest("sample", "a") == digest
    again.close()
    with pytest.raises(ConfigError, match="is missing, without which nobody can tell what"):
        SqliteFile(path, 1.0, secret=HashSecret(tmp_path / "lost"))
    assert not (tmp_path / "lost").exists()
    HashSecret(tmp_path / "new").make()
    with pytest.raises(ForgettingError, match="written under another secret"):
        SqliteFile(path, 1.0, secret=HashSecret(tmp_path / "new"))


def test_a_run_is_refused_without_its_secret_and_goes_on_with_it(tmp_path, monkeypatch):
    monkeypatch.setenv("STREAMCL_KEYS", str(tmp_path / "keys"))
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        ledger.submit({"id": "r1"})
        ledger.add_tombstones("r1", "sample", ["a"])
    kept = (tmp_path / "keys" / "hash-secret").rename(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="is missing") as error:
        Ledger(tmp_path / "ledger.sqlite")
    assert "STREAMCL_KEYS" in error.value.hint
    kept.rename(tmp_path / "keys" / "hash-secret")
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        assert ledger.is_tombstoned("sample", "a")


def test_what_the_file_holds_is_not_the_key(tmp_path):
    file = SqliteFile(tmp_path / "file.sqlite", 1.0, secret=HashSecret(tmp_path / "keys"))
    key = file.key
    file.close()
    assert key not in (tmp_path / "file.sqlite").read_bytes()
    with sqlite3.connect(tmp_path / "file.sqlite") as content:
        assert key not in {bytes(value) for (value,) in content.execute("SELECT value FROM facts")}
