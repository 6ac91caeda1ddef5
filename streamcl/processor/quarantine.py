"""Records that the source refused: counted, written down, and no more of them than are allowed."""

from __future__ import annotations

from streamcl.errors import SourceError
from streamcl.events import Batch
from streamcl.processor.event_log import EventLog
from streamcl.processor.progress import Progress


class Quarantine:
    """Counts what is set aside. limit: records in the whole run before SourceError is raised, if any."""

    def __init__(self, progress: Progress, journal: EventLog, limit: int | None) -> None:
        self._progress, self._journal, self._limit = progress, journal, limit

    def take(self, batch: Batch) -> None:
        """Take what was refused in the place of samples of this batch."""
        named = [refused for refused in batch.refused if refused.id]  # a forgotten record has no id any more
        self._progress.quarantined += len(named)
        self._progress.dropped += len(batch.refused) - len(named)
        self._journal.write_refused(named)
        if self._limit is not None and self._progress.quarantined > self._limit:
            last = f": {named[-1].reason}" if named else ""
            raise SourceError(
                f"{self._progress.quarantined} records were set aside up to offset {batch.end}, "
                f"{self._limit} are allowed; the last{last}",
                hint="quarantine.jsonl names them; source.policy.max_quarantined sets the limit",
            )
