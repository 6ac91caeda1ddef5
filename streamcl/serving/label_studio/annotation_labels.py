"""Puts the labels of Label Studio's annotations into the stream, and takes back those that are deleted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from streamcl.forgetting.annotations import ANNOTATIONS, Annotations
from streamcl.serving.bodies import checked
from streamcl.serving.label_studio.label_studio_events import AnnotationChange, EventOutcome
from streamcl.serving.schemas import MAX_LABELS, LabelOfRecord
from streamcl.serving.service import ServingService


def take_annotations(service: ServingService, changes: Sequence[AnnotationChange]) -> EventOutcome:
    """Put the labels into the stream; they are durable on return. A failed call may be repeated.

    Where one of a record's annotations is gone, the newest one that is left gives the label. Raise what
    `ServingService.add_labels` raises.
    """
    stated = {
        each.record: each.label for each in changes if each.record is not None and each.label is not None
    }
    path = service.folder / ANNOTATIONS
    if not service.takes_labels or not (stated or path.exists()):
        return _sent(service, stated)
    noted = [
        (each.number, each.record, each.label)
        for each in changes
        if each.number is not None and each.record is not None and each.label is not None
    ]
    gone = {each.number for each in changes if each.number is not None and each.label is None}
    with Annotations(path) as known:
        known.note(noted)  # before the labels: where these are not taken, a deletion takes nothing back
        outcome = _sent(service, {**stated, **known.labels_without(gone)})
        known.remove(gone)
    return outcome


def _sent(service: ServingService, labels: Mapping[str, str | None]) -> EventOutcome:
    if not labels:
        return EventOutcome(status="ignored")
    given = [
        checked(
            LabelOfRecord, {"id": name, "withdraw": True} if label is None else {"id": name, "label": label}
        )
        for name, label in labels.items()
    ]
    for start in range(0, len(given), MAX_LABELS):
        service.add_labels(given[start : start + MAX_LABELS])
    (name, label), *others = labels.items()
    one = {} if others else {"record": name, "label": label}
    is_label = any(each is not None for each in labels.values())
    return EventOutcome(status="labelled" if is_label else "withdrawn", records=len(labels), **one)
