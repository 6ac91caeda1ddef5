"""Takes for a run that is served what people send: records, where its source takes them, and labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from streamcl.config.options.run import RunConfig
from streamcl.config.options.spool import SpoolOptions
from streamcl.errors import StreamclError
from streamcl.factory.spool import INBOX
from streams.live.spool.push_channel import PushedRecord, PushReceipt, push


class NotAccepted(StreamclError):
    """Something was sent that this run does not take."""


@dataclass(frozen=True, slots=True)
class Inbox:
    """Where the process that learns a run takes what people send; used by another process.

    records: the folder of the spool into which records are pushed; None where they come from elsewhere.
    labels: that of the spool of labels; None where they come with their records.
    """

    records: Path | None = None
    labels: Path | None = None

    def add_records(self, records: Sequence[PushedRecord]) -> PushReceipt:
        """Put records into the stream; on return they survive a crash.

        Raise NotAccepted where the run takes none, BadRecord where one cannot be read, SpoolFull or
        SourceError where it cannot be done now. None is taken then.
        """
        if self.records is None:
            raise NotAccepted(
                "the records of this run come from its source; source: {name: push} takes them here"
            )
        return push(self.records, records)

    def add_labels(self, labels: Mapping[str, str | None]) -> None:
        """Put the classes of earlier records into the stream, by their ids; see `add_records`.

        None takes back the label of a record.
        """
        if self.labels is None:
            raise NotAccepted(
                "the labels of this run come with its records; a block labels: lets them come later"
            )
        push(self.labels, [_label_record(name, label) for name, label in labels.items()])


def _label_record(name: str, label: str | None) -> PushedRecord:
    given = {"withdraw": True} if label is None else {"label": label}
    return {"label_of": name, **given}


def inbox_of(config: RunConfig, folder: Path) -> Inbox:
    """Return where a run takes what people send. folder: of the run."""
    source = config.source
    records = folder / (source.spool or SpoolOptions()).path if source.name == "push" else None
    return Inbox(records, None if config.labels is None else records or folder / INBOX)
