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
WITHDRAW = "withdraw"
"""The key beside it that, with the value true and without a label, takes back the label of that record."""
NO_LABEL = "the message has no label, and does not withdraw one"


def label_in(item: Any) -> Label | None:
    """Return the label that an item is, with id and class as they came; None for anything else.

    >>> label_in({"label_of": "r0", "label": "cat"}), label_in({"image": b"", "label": "cat"})
    (Label(id='r0', label='cat', fault=None), None)
    >>> label_in({"label_of": "r0", "withdraw": True})
    Label(id='r0', label=None, fault=None)
    """
    if type(item) is dict and LABEL_OF in item:
        return _label_in_mapping(item)
    return item if issubclass(type(item), Label) else None  # isinstance would ask the user's object


def _label_in_mapping(item: dict[str, Any]) -> Label:
    name, label, withdraw = item[LABEL_OF], item.get("label"), item.get(WITHDRAW)
    if withdraw is None or withdraw is False:
        return Label(name, "", NO_LABEL) if label is None else Label(name, label)
    is_true = withdraw is True or (type(withdraw) is str and withdraw == "true")  # a text in broker's fields
    if is_true and label is None:
        return Label(name, None)
    fault = "a label and its withdrawal at once" if is_true else f"withdraw is {brief(withdraw)}, not true"
    return Label(name, "", fault)


def checked_label(
    item: Label,
    policy: RecordPolicy,
    class_names: Sequence[str] = (),
    accept: Callable[[str], None] = lambda _: None,
) -> Label:
    """Return the label with its record's id and its class's name as texts; a withdrawal names no class.

    One that cannot be used has its fault; where the policy says that it must end the run, BadRecord is
    raised. accept: is called with the class's name, and raises BadRecord where the class is not allowed.
    """
    try:
        with user_object():
            return _checked(item, policy, class_names, accept)
    except BadRecord as bad:
        if policy.on_bad_record == "fail":
            raise
        return Label(_shown(item.id), _shown(item.label), reason_of(bad))


def _checked(
    item: Label, policy: RecordPolicy, class_names: Sequence[str], accept: Callable[[str], None]
) -> Label:
    if item.fault is not None:
        raise BadRecord(item.fault)
    named = to_label(
        item.label, missing="unlabelled", negative=policy.negative_label, class_names=class_names
    )
    label = Label(text(to_text(item.id, "id") or "", "id"), named)
    if named is not None:
        accept(named)
    return label


def _shown(value: Any) -> str:
    """Return a text of what may be no text."""
    return value if isinstance(value, str) else brief(value)
