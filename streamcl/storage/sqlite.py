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
from streamcl.storage.hash_secret import HashSecret
from streamcl.storage.private_files import KEYS_VARIABLE

Execute: TypeAlias = Callable[..., sqlite3.Cursor]

SQLITE_FORMAT = 3
"""The `user_version` of a file; another one is refused."""

PRAGMAS = (
    "trusted_schema = OFF",  # of a file that others may have changed
    "synchronous = FULL",
    "secure_delete = ON",
    "journal_mode = WAL",
)

KEY_CHECK = ("check", "")
"""Its hash is in the file, to tell whether a key is the file's."""

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

    def __init__(
        self,
        path: Path,
        timeout: float,
        schema: Sequence[str] = LEDGER_SCHEMA,
        *,
        secret: HashSecret | None = None,
    ) -> None:
        self.path = path
        self._schema, self._secret = schema, secret or HashSecret()
        with self._translated_errors():
            self._make_readable()
            self._connection = sqlite3.connect(path, timeout=timeout, isolation_level=None)
            try:
                self.key = self._open()
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
        """Return a hash of the value under this file's key, 16 bytes; nobody without it can test a value."""
        return keyed_hash(self.key, kind, value)

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
        for pragma in PRAGMAS:
            self._connection.execute(f"PRAGMA {pragma}")
        with self.transaction() as run:
            if run("PRAGMA user_version").fetchone()[0] == 0:
                for statement in self._schema:
                    run(statement)
                salt = secrets.token_bytes(32)
                self._secret.make()
                check = keyed_hash(self._secret.key(salt), *KEY_CHECK)
                run("INSERT INTO facts (name, value) VALUES ('salt', ?), ('key check', ?)", (salt, check))
                run(f"PRAGMA user_version = {SQLITE_FORMAT}")
        found = self.query("PRAGMA user_version")[0][0]
        if found != SQLITE_FORMAT:
            raise ForgettingError(f"{self.path} has format {found}, this streamcl reads {SQLITE_FORMAT}")
        if found := self.query("SELECT type, name FROM sqlite_schema WHERE type IN ('trigger', 'view')"):
            kind, name = found[0]
            raise self.damage(f"it has a {kind}, {name!r:.60}, which streamcl has not made")
        if (damage := self.query("PRAGMA quick_check(1)")[0][0]) != "ok":
            raise self.damage(damage)
        facts = dict(self.query("SELECT name, value FROM facts"))
        if "salt" not in facts:
            raise self.damage("it has no salt")
        key = self._secret.key(bytes(facts["salt"]))
        if facts.get("key check") != keyed_hash(key, *KEY_CHECK):
            raise ForgettingError(
                f"{self.path} was written under another secret than {self._secret.path}",
                hint=f"name the folder that has it in {KEYS_VARIABLE}, or restore it from a backup",
            )
        return key

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


def read_rows(path: Path, sql: str, *values: Any) -> list[tuple[Any, ...]]:
    """Return the rows of a query on a file that nothing is written to; no rows where it cannot be read now.

    The secret of its hashes is not needed, and no journal is made beside it.
    """
    mode = "mode=ro" if path.with_name(f"{path.name}-wal").exists() else "mode=ro&immutable=1"
    try:
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?{mode}", uri=True)) as opened:
            return opened.execute(sql, values).fetchall()
    except sqlite3.Error:
        return []


def keyed_hash(key: bytes, kind: str, value: str) -> bytes:
    """Return the BLAKE2b hash of a value of that kind under a key, 16 bytes."""
    text = f"{kind}:{value}".encode(errors="surrogatepass")
    return hashlib.blake2b(text, key=key, digest_size=16).digest()
