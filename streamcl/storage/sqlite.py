"""The SQLite files of ledger, lineage and statistics: opened safely, inspected, errors translated."""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from streamcl.errors import ForgettingError
from streamcl.storage.files import DISK

Execute: TypeAlias = Callable[..., sqlite3.Cursor]

SQLITE_FORMAT = 1
"""The `user_version` of a file; another one is refused."""

LEDGER_SCHEMA = (
    "CREATE TABLE facts (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID",
    """CREATE TABLE requests (
        position INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        key BLOB NOT NULL UNIQUE,
        digest BLOB NOT NULL,
        body TEXT,
        status TEXT NOT NULL,
        reason TEXT,
        received REAL NOT NULL,
        finished REAL
    )""",
    """CREATE TABLE tombstones (
        digest BLOB PRIMARY KEY,
        position INTEGER NOT NULL REFERENCES requests(position)
    ) WITHOUT ROWID""",
)


class SqliteFile:
    """One connection with a write-ahead log and full synchronisation: what is committed survives power loss.

    Every method raises ForgettingError where the file is damaged, busy for too long, or cannot be written.
    """

    def __init__(self, path: Path, patience: float, schema: Sequence[str] = LEDGER_SCHEMA) -> None:
        self.path = path
        self._schema = schema
        with self._translated_errors():
            self._make_readable()
            self._connection = sqlite3.connect(path, timeout=patience, isolation_level=None)
            try:
                self.salt = self._open()
            except BaseException:
                self._connection.close()
                raise

    def query(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """Return the rows of a query."""
        with self._translated_errors():
            return self._connection.execute(sql, values).fetchall()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Execute]:
        """Run a block in one transaction: at the end all of it is durable, or nothing was changed."""
        with self._translated_errors():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection.execute
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def empty_journal(self) -> bool:
        """Merge the journal into the file and empty it; return False where another process reads it."""
        return not self.query("PRAGMA wal_checkpoint(TRUNCATE)")[0][0]

    def version(self) -> int:
        """Return a number that changes when another connection has written."""
        return int(self.query("PRAGMA data_version")[0][0])

    def digest(self, kind: str, value: str) -> bytes:
        """Return a hash of the value, salted by this file's own salt, 16 bytes."""
        return salted(self.salt, kind, value)

    def damage(self, what: object) -> ForgettingError:
        """Return the error to raise where the content is not what was written."""
        return ForgettingError(
            f"{self.path} is damaged: {what}",
            hint="restore it from a backup; without it what was forgotten may be learned again",
        )

    def close(self) -> None:
        """Close the file. Closing twice is harmless."""
        self._connection.close()

    def _make_readable(self) -> None:
        """Create the file readable to its owner under any umask; SQLite itself does not see to it."""
        if not self.path.exists():
            with contextlib.suppress(FileExistsError):
                DISK.create(self.path).close()
            DISK.fsync_folder(self.path.parent)

    def _open(self) -> bytes:
        for pragma in ("synchronous = FULL", "secure_delete = ON", "journal_mode = WAL"):
            self._connection.execute(f"PRAGMA {pragma}")
        with self.transaction() as run:
            if run("PRAGMA user_version").fetchone()[0] == 0:
                for statement in self._schema:
                    run(statement)
                run("INSERT INTO facts (name, value) VALUES ('salt', ?)", (secrets.token_bytes(32),))
                run(f"PRAGMA user_version = {SQLITE_FORMAT}")
        found = self.query("PRAGMA user_version")[0][0]
        if found != SQLITE_FORMAT:
            raise ForgettingError(f"{self.path} has format {found}, this streamcl reads {SQLITE_FORMAT}")
        if (damage := self.query("PRAGMA quick_check(1)")[0][0]) != "ok":
            raise self.damage(damage)
        salt = self.query("SELECT value FROM facts WHERE name = 'salt'")
        if len(salt) != 1:
            raise self.damage("it has no salt")
        return bytes(salt[0][0])

    @contextlib.contextmanager
    def _translated_errors(self) -> Iterator[None]:
        """Raise ForgettingError for the errors of SQLite and of the system."""
        try:
            yield
        except OSError as error:
            raise ForgettingError(f"{self.path} cannot be written: {error.strerror}") from error
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                hint = "another process has held it for long; try again"
                raise ForgettingError(f"{self.path} is busy: {error}", hint=hint) from error
            raise ForgettingError(f"{self.path} cannot be used: {error}") from error
        except sqlite3.Error as error:
            raise self.damage(error) from error


def salted(salt: bytes, kind: str, value: str) -> bytes:
    """Return the salted BLAKE2b hash of a value of that kind, 16 bytes."""
    text = f"{kind}:{value}".encode(errors="surrogatepass")
    return hashlib.blake2b(text, key=salt, digest_size=16).digest()
