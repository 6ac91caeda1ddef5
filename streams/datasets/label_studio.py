"""Reads exports of Label Studio, JSON and JSON-MIN: tasks with an image and choices, as labelled records."""

from __future__ import annotations

import base64
import binascii
import glob
import json
import logging
import urllib.request
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, unquote_to_bytes, urlsplit

from streamcl.errors import BadRecord, ConfigError, SourceError
from streams.datasets.label_studio_min import complete_tasks, is_min
from streams.datasets.layout import path_below
from streams.user.records import RecordPolicy
from streams.user.source import IterableSource

logger = logging.getLogger(__name__)

Disagreement = Literal["refuse", "majority", "latest"]

DOWNLOAD_TIMEOUT = 30.0  # seconds that a server may be silent
_EXPORT = 'export the project as "JSON" or "JSON-MIN"'


@dataclass(frozen=True, slots=True)
class _Fields:
    """Where the parts of a record are: see `label_studio`."""

    image: str
    choices: str | None
    subject: str | None
    domain: str | None
    disagreement: Disagreement


@dataclass(frozen=True, slots=True)
class _Task:
    """A task without its annotations. label: None where nobody has labelled it; or why it has none."""

    id: str
    image: str
    label: str | BadRecord | None
    facts: Mapping[str, Any]


def label_studio(
    path: str | Sequence[str],
    root: str | None = None,
    *,
    image: str = "image",
    choices: str | None = None,
    subject: str | None = None,
    domain: str | None = None,
    disagreement: Disagreement = "refuse",
    unlabelled: Literal["keep", "skip"] = "keep",
    download: bool = False,
    name: str = "label_studio",
    batch_size: int = 64,
    policy: RecordPolicy | None = None,
) -> IterableSource:
    """Return a source of the tasks in exports as JSON or JSON-MIN, in their order.

    Cancelled and empty annotations are left out, and so are predictions. Where a task has annotations that
    are marked as ground truth, only these count. A task that is in several files is read from the last one.

    Args:
        path: of an export, with wildcards, or a list of such.
        root: the folder of the images, that of the (first) export where it is None. "/data/upload/1/a.jpg"
            is upload/1/a.jpg below it, "/data/local-files/?d=b/c.jpg" is b/c.jpg.
        image: the key of the task's data with the image: a path, a data URI, or a URL.
        choices: the name of the choices in the labelling interface; needed where it has several, and in
            JSON-MIN where it is not "choice".
        subject, domain: keys of the task's data with the subject and the domain of the record.
        disagreement: of several annotations with different labels: a bad record ("refuse"), the label of
            more than half of them, else a bad record ("majority"), or the one updated last ("latest").
        unlabelled: tasks without a label are kept as unlabelled records, or skipped.
        download: whether images at http and https URLs are read from there.
        name: of the stream.
        batch_size: records in a batch.
        policy: limits, and what is done with bad records.

    Raises:
        ConfigError: there is no such file, or the keys are not those of the export.
        SourceError: a file is no export.
    """
    files = _files([path] if isinstance(path, str) else path)
    fields = _Fields(image, choices, subject, domain, disagreement)
    tasks = _tasks(files, fields)
    if unlabelled == "skip":
        tasks = [task for task in tasks if task.label is not None]
    base = Path(root) if root is not None else files[0].parent
    if not base.is_dir():
        raise ConfigError(f"{base} is not a folder", hint="root is the folder of the images")
    rules = policy or RecordPolicy()
    records = LabelledTasks(tasks, base.resolve(), rules.max_file_bytes if download else 0)
    return IterableSource(lambda: records, name=name, batch_size=batch_size, policy=rules)


class LabelledTasks:
    """The records of tasks by index; an image is read when its record is."""

    def __init__(self, tasks: Sequence[_Task], root: Path, max_download: int) -> None:
        self._tasks, self._root, self._max_download = tasks, root, max_download

    def __len__(self) -> int:
        return len(self._tasks)

    def __getitem__(self, index: int) -> Any:
        task = self._tasks[index]
        if isinstance(task.label, BadRecord):
            return task.label
        try:
            image = self._image(task.image)
        except BadRecord as bad:
            return BadRecord(f"{task.id}: {bad}", hint=bad.hint)
        return {"image": image, "label": task.label, "id": task.id, **task.facts}

    def _image(self, place: str) -> bytes | Path:
        """Return the image's bytes or its file. Raise BadRecord where it is out of reach."""
        scheme = urlsplit(place).scheme.lower()
        if scheme == "data":
            return _data_uri(place)
        if scheme in {"http", "https"}:
            return self._downloaded(place)
        if scheme not in {"", "file"}:
            raise BadRecord(f"{scheme}:// is not read", hint="copy the images, and give their folder as root")
        return path_below(self._root, _relative(place, self._root))

    def _downloaded(self, url: str) -> bytes:
        shown = urlsplit(url)._replace(query="", netloc=urlsplit(url).hostname or "").geturl()[:200]
        if not self._max_download:
            raise BadRecord(f"{shown} is on the web", hint="download: true reads it from there")
        try:
            with urllib.request.urlopen(url, timeout=DOWNLOAD_TIMEOUT) as answer:
                data: bytes = answer.read(self._max_download + 1)
                length = answer.headers.get("Content-Length")
        except (OSError, ValueError) as error:
            raise BadRecord(f"{shown} cannot be read: {error}") from error
        if length and len(data) < min(int(length), self._max_download):
            raise BadRecord(f"{shown} is cut off: {len(data)} of {length} bytes came")
        return data


def _files(patterns: Sequence[str]) -> list[Path]:
    found = [Path(each) for pattern in patterns for each in sorted(glob.glob(pattern)) or [pattern]]  # noqa: PTH207
    if absent := [path for path in found if not path.is_file()]:
        raise ConfigError(f"there is no export {str(absent[0])!r}", hint=_EXPORT)
    if not found:
        raise ConfigError("no export is named", hint=_EXPORT)
    return found


def _tasks(files: Sequence[Path], fields: _Fields) -> list[_Task]:
    """Return the tasks of all files, each from the last one that has it."""
    found = dict[str, _Task]()
    repeated = 0
    for path in files:
        for task in _read(path, fields):
            repeated += found.pop(task.id, None) is not None
            found[task.id] = task
    if repeated:
        logger.info("%d tasks are in several exports; each is read from the last one", repeated)
    return list(found.values())


def _read(path: Path, fields: _Fields) -> Iterable[_Task]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise SourceError(f"{path.name} is not JSON: {error}", hint=_EXPORT) from error
    if not isinstance(raw, list) or not all(isinstance(each, dict) for each in raw):
        raise SourceError(f"{path.name} is not a list of tasks", hint=_EXPORT)
    if is_min(raw):
        raw = complete_tasks(path.name, raw, fields.choices)
    for number, task in enumerate(raw):
        if not isinstance(task.get("data"), dict) or "id" not in task:
            raise SourceError(f"{path.name}: entry {number} has no id and data", hint=_EXPORT)
    if raw and not any(fields.image in task["data"] for task in raw):
        keys = ", ".join(sorted({key for task in raw for key in task["data"]}))[:200]
        raise ConfigError(
            f"{path.name}: no task has {fields.image!r} among its data: {keys}",
            hint="name its key: image: ...",
        )
    control = _control(path, raw, fields.choices)
    return [_task(task, fields, control) for task in raw]


def _control(path: Path, tasks: Sequence[Mapping[str, Any]], named: str | None) -> str | None:
    """Return the name of the choices. Raise ConfigError where it is not among them, or one of several."""
    results = [each for task in tasks for annotation in _annotations(task) for each in annotation["result"]]
    names = sorted({str(each.get("from_name")) for each in results if each.get("type") == "choices"})
    if named is None and len(names) > 1:
        raise ConfigError(
            f"{path.name} has several choices: {', '.join(names)}", hint="name one: choices: ..."
        )
    if named is not None and names and named not in names:
        raise ConfigError(f"{path.name} has no choices {named!r}", hint=f"it has {', '.join(names)}")
    if results and not names:
        kinds = ", ".join(sorted({str(each.get("type")) for each in results}))
        raise ConfigError(
            f"{path.name} has no choices, but {kinds}", hint="a record has one label: use <Choices>"
        )
    return named or (names[0] if names else None)


def _annotations(task: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the annotations that count: neither cancelled nor empty, ground truth alone if any."""
    found: list[Mapping[str, Any]] = [
        each
        for each in task.get("annotations") or ()
        if isinstance(each, dict) and not each.get("was_cancelled") and each.get("result")
    ]
    return [each for each in found if each.get("ground_truth")] or found


def _task(task: Mapping[str, Any], fields: _Fields, control: str | None) -> _Task:
    data, label = task["data"], f"task-{task['id']}"
    facts = {"subject": fields.subject, "domain": fields.domain}
    known = {fact: data.get(key) for fact, key in facts.items() if key is not None}
    image = data.get(fields.image)
    found: str | BadRecord | None
    if not isinstance(image, str) or not image:
        found = BadRecord(f"{label} has no {fields.image!r} among its data")
    else:
        try:
            found = _label(task, control, fields.disagreement)
        except BadRecord as bad:
            found = BadRecord(f"{label}: {bad}", hint=bad.hint)
    return _Task(label, str(image), found, known)


def _label(task: Mapping[str, Any], control: str | None, disagreement: Disagreement) -> str | None:
    """Return the label on which a task's annotations agree; None without any. Raise BadRecord."""
    annotations = sorted(
        _annotations(task), key=lambda each: str(each.get("updated_at") or each.get("created_at"))
    )
    labels = [label for each in annotations if (label := _choice(each, control)) is not None]
    if len(set(labels)) <= 1 or disagreement == "latest":
        return labels[-1] if labels else None
    counts = Counter(labels)
    most, count = counts.most_common(1)[0]
    if disagreement == "majority" and 2 * count > len(labels):
        return most
    said = ", ".join(f"{label} ({number})" for label, number in counts.most_common())
    raise BadRecord(f"its annotations disagree: {said}", hint="disagreement: majority, or latest")


def _choice(annotation: Mapping[str, Any], control: str | None) -> str | None:
    """Return the one choice of an annotation; None where it has none. Raise BadRecord for several."""
    chosen = [
        str(choice)
        for each in annotation["result"]
        if each.get("type") == "choices" and each.get("from_name") == control
        for choice in each.get("value", {}).get("choices", ())
    ]
    if len(chosen) > 1:
        raise BadRecord(f"an annotation has {len(chosen)} choices; a record has one label")
    return chosen[0] if chosen else None


def _relative(place: str, root: Path) -> str:
    """Return where an image lies below the root; see `label_studio`."""
    parts = urlsplit(place)
    path = unquote(parts.path)
    if path.rstrip("/") == "/data/local-files" and "d" in (query := parse_qs(parts.query)):
        return query["d"][0].lstrip("/")
    if path.startswith("/data/"):
        return path.removeprefix("/data/")
    if parts.scheme == "file":
        return path
    return place if (root / place).exists() else path


def _data_uri(place: str) -> bytes:
    head, comma, body = place.partition(",")
    try:
        if head.endswith(";base64"):
            return base64.b64decode(body, validate=True)
    except binascii.Error as error:
        raise BadRecord(f"its data URI is no base64: {error}") from error
    if not comma:
        raise BadRecord("its data URI has no data")
    return unquote_to_bytes(body)
