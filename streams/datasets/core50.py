"""CORe50 (arXiv 1705.03550): 50 hand-held objects of 10 categories, filmed in 11 sessions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from streams.datasets.layout import FolderLayout, folders, image_files
from streams.replay.collection import Collection, groups_of

CATEGORIES = (
    *("plug_adapter", "mobile_phone", "scissors", "light_bulb", "can"),
    *("glasses", "ball", "marker", "cup", "remote_control"),
)
OBJECTS = tuple(f"{category}{number}" for category in CATEGORIES for number in range(1, 6))
SESSIONS = tuple(f"s{number}" for number in range(1, 12))
TEST_SESSIONS = frozenset({3, 7, 10})  # the authors' split; the other eight are for training
_LAYOUT = FolderLayout(
    "CORe50's core50_128x128/s1..s11/o1..o50/C_ss_oo_fff.png",
    "`streamcl fetch core50` downloads it (4 GB); give the folder that it names as root",
    ("core50_128x128",),
)


class Frame(NamedTuple):
    """One frame's place in the data set; sorts by session, object, time."""

    session: int
    object: int
    frame: int
    path: Path


def core50(
    root: str | Path, level: Literal["object", "category"] = "object"
) -> tuple[Collection, Collection]:
    """Read train (sessions 1, 2, 4, 5, 6, 8, 9, 11) and test (3, 7, 10), by session, object, then time.

    Classes are the 50 objects in their numeric order, or the 10 categories; sessions are the domains and
    objects ("o1" .. "o50") the subjects. So the order as_is is the film as it was shot, domain_incremental
    is NI, disjoint is NC and new_instances_and_classes is NIC.
    """
    base = _LAYOUT.find_root(root)
    frames = sorted(_frames(base))
    if not frames:
        raise _LAYOUT.refuse(base)
    objects = np.array([frame.object - 1 for frame in frames], np.int64)
    both = Collection(
        name="core50",
        images=[frame.path for frame in frames],
        labels=objects if level == "object" else objects // 5,
        classes=OBJECTS if level == "object" else CATEGORIES,
        ids=tuple(frame.path.relative_to(base).as_posix() for frame in frames),
        domains=groups_of([f"s{frame.session}" for frame in frames], SESSIONS),
        subjects=groups_of([f"o{frame.object}" for frame in frames], [f"o{n}" for n in range(1, 51)]),
    )
    return both.split(np.flatnonzero([frame.session in TEST_SESSIONS for frame in frames]))


def _frames(base: Path) -> Iterator[Frame]:
    for session in folders(base):
        for thing in folders(session):
            known = re.fullmatch(r"s([1-9]|1[01])/o([1-9]|[1-4]\d|50)", f"{session.name}/{thing.name}")
            for path in image_files(thing) if known else ():
                number = re.search(r"(\d+)$", path.stem)
                if number:
                    yield Frame(int(session.name[1:]), int(thing.name[1:]), int(number[1]), path)
