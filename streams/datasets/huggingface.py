"""Data sets of the Hugging Face hub, or on this machine as its package `datasets` reads them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from streamcl.errors import ConfigError, MissingExtra, SourceError, nearest
from streams.datasets.huggingface_rows import Columns, StreamedRows, collection_of
from streams.replay.collection import Collection
from streams.user.records import RecordPolicy
from streams.user.source import IterableSource

logger = logging.getLogger(__name__)

DataFiles: TypeAlias = str | Sequence[str] | Mapping[str, str | Sequence[str]]

SAVED = ("state.json", "dataset_dict.json")
"""Files of which a folder has one that `save_to_disk` wrote."""


def huggingface(
    path: str,
    *,
    split: str = "train",
    test: str | None = None,
    image: str | None = None,
    label: str | None = None,
    ids: str | None = None,
    subject: str | None = None,
    domain: str | None = None,
    config: str | None = None,
    data_dir: str | None = None,
    data_files: DataFiles | None = None,
    revision: str | None = None,
    streaming: bool = False,
    batch_size: int = 64,
    policy: RecordPolicy | None = None,
) -> Collection | tuple[Collection, Collection] | IterableSource:
    """Return the images of a split, those of a second one that is held out, or a source that streams a split.

    The names of a label column of classes are the classes; -1 and null are no label. A record's id is
    "<data set>/<split>/<position>", unless `ids` names a column. Without streaming the split lies on this
    machine: it is read by index, each image at access, and a scenario can put it in order.

    Args:
        path: the data set's name on the hub; a folder that `save_to_disk` wrote; a folder of files; or the
            format of files ("imagefolder", "parquet") that `data_dir` or `data_files` name.
        split: that is streamed, "train" or "train[:10%]".
        test: that is held out.
        image: the column of the images; None: the only one of images.
        label: the column of the labels; None: the only one of classes.
        ids: the column of the records' ids.
        subject, domain: columns of the subject and the domain.
        config: the data set's configuration, `name` of `datasets.load_dataset`.
        data_dir, data_files, revision: as in `datasets.load_dataset`.
        streaming: records come from the hub as they are read, in their order, and are not kept.
        batch_size: records in a batch, where they are streamed.
        policy: limits, and what is done with bad records, where they are streamed.

    Raises:
        MissingExtra: the package `datasets` is not installed.
        ConfigError: there is no such data set, split or column.
        SourceError: the data set is out of reach, or damaged.
    """
    wanted = Columns(image, label, ids, subject, domain)
    options = {"name": config, "data_dir": data_dir, "data_files": data_files, "revision": revision}
    name = Path(path).resolve().name if Path(path).exists() else path
    if not streaming:
        return _sides(path, (split, test), options, name, wanted)
    if test is not None:
        raise ConfigError("held-out images are read by index", hint="leave test or streaming out")
    dataset = _load(path, split, {**options, "streaming": True})
    return IterableSource(
        lambda: StreamedRows(dataset, name, wanted),
        name=name,
        batch_size=batch_size,
        policy=policy or RecordPolicy(),
    )


def _sides(
    path: str, splits: tuple[str, str | None], options: Mapping[str, Any], name: str, wanted: Columns
) -> Collection | tuple[Collection, Collection]:
    """Return the collection of the first split, and that of the second where it is named."""
    split, test = splits
    train = collection_of(_load(path, split, options), f"{name}/{split}", wanted)
    if test is None:
        return train
    held_out = collection_of(_load(path, test, options), f"{name}/{test}", wanted, train.classes)
    return replace(train, classes=held_out.classes), held_out


def _load(path: str, split: str, options: Mapping[str, Any]) -> Any:
    """Return a split; of several saved ones, that one."""
    try:
        import datasets
    except ImportError as error:
        hint = 'pip install "streamcl[huggingface]"'
        raise MissingExtra("the source huggingface needs the package datasets", hint=hint) from error
    folder = Path(path).expanduser()
    if not folder.exists():
        logger.info("%s: what is not on this machine comes from the hub of Hugging Face", path)
    with _loading(path, datasets.exceptions.DatasetsError):
        if not any((folder / name).is_file() for name in SAVED):
            return datasets.load_dataset(path, split=split, **options)
        saved = datasets.load_from_disk(str(folder))
    if not isinstance(saved, dict):
        return saved
    if split not in saved:
        raise ConfigError(f"{path} has no split {split!r}", hint=nearest(split, list(saved)))
    return saved[split]


@contextmanager
def _loading(path: str, kind: type[Exception]) -> Iterator[None]:
    """Raise errors of streamcl for those of `datasets`, of which `kind` is one, and of the network."""
    hub = logging.getLogger("huggingface_hub")
    level = hub.level
    hub.setLevel(logging.ERROR)  # it would log each of its retries
    try:
        yield
    except ConnectionError as error:
        hint = (
            "connect to a network; or call save_to_disk(FOLDER) on the data set where there is one, copy the "
            "folder, and give it as path"
        )
        raise SourceError(f"{path} is not on this machine, and out of reach: {error}", hint=hint) from error
    except (FileNotFoundError, ValueError) as error:
        raise ConfigError(f"the data set {path} cannot be loaded: {error}") from error
    except (OSError, kind) as error:
        raise SourceError(f"the data set {path} cannot be read: {error}") from error
    finally:
        hub.setLevel(level)
