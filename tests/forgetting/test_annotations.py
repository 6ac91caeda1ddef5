"""The annotations of a labelling tool: which label a record has without some of them, and their erasure."""

from __future__ import annotations

import pytest

from streamcl.forgetting.annotations import (
    ANNOTATIONS,
    Annotations,
    annotated_records,
    count_annotations,
    erase_annotations,
    erase_returned_annotations,
)
from streamcl.requests.label import Label
from streamcl.sinks.redaction import RedactionTarget


@pytest.fixture
def known(tmp_path):
    with Annotations(tmp_path / ANNOTATIONS) as known:
        known.note([(1, "r1", "ant"), (2, "r2", "bee"), (3, "r1", "bee")])
        yield known


def test_the_newest_annotation_that_is_left_gives_the_label(known):
    assert known.labels_without([3]) == {"r1": "ant"}
    assert known.labels_without([1]) == {"r1": "bee"}
    assert known.labels_without([1, 2, 3, 4]) == {"r1": None, "r2": None}
    known.note([(1, "r1", "cat")])
    assert known.labels_without([3]) == {"r1": "cat"}
    known.remove([1, 4])
    assert known.labels_without([3]) == {"r1": None}
    assert known.labels_without([1]) == known.labels_without([]) == {}


def contents(folder):
    return b"".join(path.read_bytes() for path in folder.glob(f"{ANNOTATIONS}*"))


def test_erased_samples_and_classes_are_in_no_byte_of_the_file(tmp_path, known):
    known.note([(4, "erased-one", "ant"), (5, "r5", "erased-class")])
    assert b"erased-" in contents(tmp_path)
    target = RedactionTarget((), {"erased-one"}, {"erased-class"})
    assert count_annotations(tmp_path, target) == 2
    (place,) = erase_annotations(tmp_path, target, removed=2)
    assert (place.status, place.explanation) == ("erased", "2 were of it")
    assert b"erased-" not in contents(tmp_path)
    assert list(annotated_records(tmp_path)) == ["r1", "r2", "r1"]
    (place,) = erase_annotations(tmp_path, target, count_annotations(tmp_path, target))
    assert place.status == "not affected"


def test_what_comes_again_is_erased_and_no_other_label_of_its_class(tmp_path, known):
    known.note([(4, "back", "ant")])
    erase_returned_annotations(tmp_path, {"r2"}, {Label("back", "ant"), Label("r1", None)})
    assert known.records() == ["r1", "r1"]
    assert b"back" not in contents(tmp_path)


def test_a_run_without_annotations_has_no_file(tmp_path):
    target = RedactionTarget((), {"r1"})
    assert erase_annotations(tmp_path, target, count_annotations(tmp_path, target)) == ()
    erase_returned_annotations(tmp_path, {"r1"}, set())
    assert not list(tmp_path.iterdir())
