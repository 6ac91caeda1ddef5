"""Oddities of records that are said once: spellings of one class, labels missing, ids repeated."""

import unicodedata

import numpy as np
import pytest
from streams_data import write_picture

from streamcl.errors import ConfigError
from streamcl.events import ForgetRequest
from streamcl.testing.source_checks import first_events, samples_of
from streams.build import named_source
from streams.user.scenario_dataset import scenario_dataset
from streams.user.source import IterableSource

IMAGE = np.zeros((4, 4, 3), np.uint8)
CAFE = "café"
NFD = unicodedata.normalize("NFD", CAFE)


def labels(made, **options):
    events = first_events(IterableSource(lambda: made, name="s", batch_size=4, **options))
    return [sample.label for sample in samples_of(events)]


def test_spellings_of_one_class_are_one_class_and_said_once(caplog):
    given = ["cat", "cat ", "\tcat\u00a0", CAFE, NFD, "Cat"]
    assert labels([(IMAGE, label) for label in given]) == ["cat", "cat", "cat", CAFE, CAFE, "Cat"]
    (said,) = caplog.messages
    assert said.startswith("s: the label 'cat ' is read as 'cat'")


def test_names_of_integer_labels_have_one_spelling(caplog):
    class Named(list):
        classes = ("cat", "cat ", NFD)

    made = Named((IMAGE, k) for k in (0, 1, 2))
    assert labels(made) == ["cat", "cat", CAFE]
    assert IterableSource(lambda: made).info.classes == ("cat", CAFE)


def test_subjects_and_domains_have_one_spelling_in_records_and_in_requests():
    record = {"image": IMAGE, "label": "a", "subject": f"{NFD} ", "domain": NFD}
    (event,) = first_events(IterableSource(lambda: [record]))
    assert (event.samples[0].subject, event.samples[0].domain) == (CAFE, CAFE)
    assert ForgetRequest(label=f" {NFD}").label == CAFE
    assert ForgetRequest(subject=NFD, domain=f"{NFD} ").selection == {"subject": CAFE, "domain": CAFE}
    assert ForgetRequest(ids=(f"{NFD} ",)).ids == (f"{NFD} ",), "an id is as the stream gave it"


def test_folders_of_one_class_are_one_class(tmp_path):
    for number, name in enumerate([CAFE, NFD, "cat", "cat "]):
        write_picture(tmp_path / name / f"{number}.png", number)
        write_picture(tmp_path / name / f"{number}b.png", number)
    assert named_source("image_folder", {"root": str(tmp_path)}).info.classes == (CAFE, "cat")


@pytest.mark.parametrize("count", [10, 600])
def test_that_most_labels_are_missing_is_said_once(caplog, count):
    assert labels([(IMAGE, "a" if k % 3 == 0 else None) for k in range(count)]).count(None) > count / 2
    first = min(count, 256)
    missing = sum(k % 3 > 0 for k in range(first))
    assert caplog.messages == [
        f"s: {missing} of the first {first} records have no label; they are predicted, and learned only if "
        "labels come for them"
    ]
    caplog.clear()
    labels([(IMAGE, "a" if k % 3 else None) for k in range(count)])
    assert not caplog.messages


def test_that_most_labels_of_a_data_set_are_missing_is_said_at_the_start(caplog):
    made = [(IMAGE, "a" if k % 3 == 0 else None) for k in range(9)]
    scenario_dataset(lambda: made, ("iid", {}), name="mine")
    assert caplog.messages == ["mine: 6 of 9 records have no label; they are predicted and never learned"]


def test_a_repeated_id_is_said_at_once_and_both_records_are_learned(caplog):
    source = IterableSource(lambda: [(IMAGE, "a", f"k{k % 3}") for k in range(9)], name="s", batch_size=4)
    events = iter(source)
    assert [sample.id for sample in next(events).samples] == ["k0", "k1", "k2", "k0"]
    assert caplog.messages == [
        "s: the records at offsets 0 and 3 have the same id 'k0': both are learned, and a request covers "
        "both, with the pictures of both; this is said once"
    ]
    assert len(samples_of(events)) == 5
    assert len(caplog.messages) == 1


def test_records_that_are_read_again_after_a_restart_are_no_repetition(caplog):
    def make():
        return IterableSource(
            lambda: iter([(IMAGE, "a", f"k{k}") for k in range(9)]), deterministic=True, batch_size=4
        )

    first = make()
    next(iter(first))
    second = make()
    second.load_state_dict(first.state_dict())
    assert len(samples_of(first_events(second))) == 5
    assert not caplog.messages


def test_a_data_set_with_a_repeated_id_is_refused_with_the_id():
    with pytest.raises(ConfigError, match="mine: 3 images have the same id 'k0'"):
        scenario_dataset(lambda: [(IMAGE, "a", f"k{k % 3}") for k in range(9)], ("iid", {}), name="mine")
