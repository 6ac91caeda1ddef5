"""The labels of earlier records, among the items of a stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from streamcl.errors import BadRecord
from streamcl.requests.label import Label
from streams.user.labels import brief, text, to_label, to_text
from streams.user.records import RecordPolicy, reason_of, user_object

LABEL_OF = "label_of"
"""The key that makes of a mapping the label of the earlier record with this id."""


def label_in(item: Any) -> Label | None:
    """Return the label that an item is, with id and class as they came; None for anything else.

    >>> label_in({"label_of": "r0", "label": "cat"}), label_in({"image": b"", "label": "cat"})
    (Label(id='r0', label='cat', fault=None), None)
    """
    if type(item) is dict and LABEL_OF in item:
        return Label(item[LABEL_OF], item.get("label", ""))
    return item if issubclass(type(item), Label) else None  # isinstance would ask the user's object


def checked_label(
    item: Label,
    policy: RecordPolicy,
    class_names: Sequence[str] = (),
    accept: Callable[[str], None] = lambda _: None,
) -> Label:
    """Return the label with its record's id and its class's name as texts.

    One that cannot be used has its fault; where the policy says that it must end the run, BadRecord is
    raised. accept: is called with the class's name, and raises BadRecord where the class is not allowed.
    """
    if item.fault is not None:
        return Label(_shown(item.id), _shown(item.label), item.fault)
    try:
        with user_object():
            named = to_label(
                item.label, missing="quarantine", negative=policy.negative_label, class_names=class_names
            )
            label = Label(text(to_text(item.id, "id") or "", "id"), str(named))
            accept(label.label)
    except BadRecord as bad:
        if policy.on_bad_record == "fail":
            raise
        return Label(_shown(item.id), _shown(item.label), reason_of(bad))
    return label


def _shown(value: Any) -> str:
    """Return a text of what may be no text."""
    return value if isinstance(value, str) else brief(value)
