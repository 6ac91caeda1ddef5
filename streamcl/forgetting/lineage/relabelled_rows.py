"""The former rows of samples whose labels came later, or were corrected, so that the lineage can go back."""

from __future__ import annotations

from collections import deque

from streamcl.storage.sqlite import Execute

SAMPLE_COLUMNS = """id TEXT NOT NULL,
    label TEXT,
    subject BLOB,
    domain BLOB,
    learned INTEGER NOT NULL,
    segment INTEGER NOT NULL,
    content BLOB NOT NULL,
    features BLOB"""
"""Of a row of the lineage after its offset; a replaced row is copied with all of them."""
COLUMN_NAMES = ", ".join(each.split()[0] for each in SAMPLE_COLUMNS.split(","))
RELABELLED = f"""CREATE TABLE relabelled (
    number INTEGER PRIMARY KEY,
    offset INTEGER NOT NULL,
    {SAMPLE_COLUMNS}
)"""


class RelabelledRows:
    """Rows of the lineage as they were before they were replaced, as far back as a restart may go.

    number: how many rows have been replaced since the beginning of the stream.

    Args:
        keep: how many checkpoints a run keeps.
    """

    def __init__(self, keep: int) -> None:
        self.number = 0
        # The newest checkpoint may not be durable yet, and the one before it may be damaged.
        self._committed = deque[int](maxlen=keep + 2)

    def save(self, run: Execute, number: int, offset: int) -> None:
        """Save the row at an offset, which is replaced next, under its number."""
        run("INSERT OR REPLACE INTO relabelled SELECT ?, * FROM samples WHERE offset = ?", (number, offset))

    def restore(self, run: Execute, number: int) -> None:
        """Restore every row that was replaced after the first `number`."""
        run(  # of a row that was replaced twice, the first replacement counts
            f"INSERT OR REPLACE INTO samples (offset, {COLUMN_NAMES}) "
            f"SELECT offset, {COLUMN_NAMES} FROM relabelled "
            "WHERE number IN (SELECT MIN(number) FROM relabelled WHERE number > ? GROUP BY offset)",
            (number,),
        )
        run("DELETE FROM relabelled WHERE number > ?", (number,))
        self.number = number
        self._committed.clear()

    def commit(self, run: Execute) -> None:
        """Note a commit, and delete the rows of which no checkpoint that a restart may use knows."""
        self._committed.append(self.number)
        if len(self._committed) == self._committed.maxlen:
            run("DELETE FROM relabelled WHERE number <= ?", (self._committed[0],))

    def erase(self, run: Execute) -> None:
        """Delete all rows, once no older checkpoint is left."""
        run("DELETE FROM relabelled")
