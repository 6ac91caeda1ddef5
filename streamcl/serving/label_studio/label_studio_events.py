"""Label Studio's events: annotations that are created, updated or deleted, one or many at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from streamcl.errors import BadRecord
from streamcl.serving.label_studio.label_studio import LabellingTask
from streamcl.serving.schemas import ForeignMessage

LABELLING = frozenset({"ANNOTATION_CREATED", "ANNOTATIONS_CREATED", "ANNOTATION_UPDATED"})
DELETING = frozenset({"ANNOTATION_DELETED", "ANNOTATIONS_DELETED"})


class ChoiceValue(ForeignMessage):
    """The choices of an annotation's part."""

    choices: tuple[str, ...] = ()


class AnnotationPart(ForeignMessage):
    """One part of an annotation; only choices count."""

    type: str = ""
    from_name: str = ""
    value: ChoiceValue = ChoiceValue()


class Annotation(ForeignMessage):
    """The choices of a person for a task, which `task` numbers; one that is deleted may be a number only."""

    id: int | None = None
    task: int | None = None
    result: tuple[AnnotationPart, ...] = ()
    was_cancelled: bool = False


class AnnotationEvent(ForeignMessage):
    """An event of a project, sent to a webhook. annotations: those that are deleted."""

    action: str
    task: LabellingTask | tuple[LabellingTask, ...] | None = None
    annotation: Annotation | tuple[Annotation, ...] | None = None
    annotations: tuple[Annotation, ...] = ()

    @property
    def given(self) -> tuple[Annotation, ...]:
        """The annotations, whatever the action."""
        if isinstance(self.annotation, tuple):
            return self.annotation + self.annotations
        return self.annotations if self.annotation is None else (self.annotation, *self.annotations)

    @property
    def tasks(self) -> tuple[LabellingTask, ...]:
        """The tasks, of which there may be fewer."""
        if isinstance(self.task, tuple):
            return self.task
        return () if self.task is None else (self.task,)


class EventOutcome(ForeignMessage):
    """How an event was answered: labels are in the stream, or are taken back, or it says nothing to us.

    "labelled" also where of several annotations of a record one was deleted, and another one gives its label.
    """

    status: Literal["labelled", "withdrawn", "ignored"]
    record: str | None = None
    label: str | None = None
    records: int = 0


@dataclass(frozen=True, slots=True)
class AnnotationChange:
    """An annotation, by its number, and the label that it gives its record; None where it gives none.

    record: None where the annotation is deleted.
    """

    number: int | None
    record: str | None = None
    label: str | None = None


def changes_of(event: AnnotationEvent, control: str | None) -> Iterator[AnnotationChange]:
    """Yield what an event says of annotations. Raise BadRecord where it cannot be read.

    control: the name of the choices, needed where an annotation has several.
    """
    if event.action in DELETING:
        yield from (AnnotationChange(each.id) for each in event.given)
    for place, each in enumerate(event.given if event.action in LABELLING else ()):
        yield AnnotationChange(each.id, _task_of(each, place, event).record, _label_of(each, control))


def _task_of(annotation: Annotation, place: int, event: AnnotationEvent) -> LabellingTask:
    """Return an annotation's task: the one of that number, else the one at the same place."""
    named = [task for task in event.tasks if annotation.task is not None and task.id == annotation.task]
    if not named and len(event.tasks) == len(event.given):
        named = [event.tasks[place]]
    if not named:
        raise BadRecord("the event has no task", hint="the webhook sends its payload")
    return named[0]


def _label_of(annotation: Annotation, control: str | None) -> str | None:
    if annotation.was_cancelled:
        return None
    chosen = [
        choice
        for each in annotation.result
        if each.type == "choices" and control in {None, each.from_name}
        for choice in each.value.choices
    ]
    if len(chosen) > 1:
        raise BadRecord(f"an annotation has {len(chosen)} choices; a record has one label")
    return chosen[0] if chosen and chosen[0] else None
