"""A data set of one's own in a scenario's order: the labels decide it, images are read when they are due."""

import numpy as np
import pytest

from streamcl.errors import ConfigError
from streamcl.testing.source_checks import check_source
from streams.user.scenario_dataset import scenario_dataset


class Pictures:
    classes = ("ant", "bee", "cat", "dog")

    def __init__(self, count=40, *, holdout=None, bad=()):
        self.count, self.bad, self.reads = count, set(bad), 0
        if holdout:
            self.holdout = Pictures(holdout)

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.reads += 1
        image = np.full((4, 4, 3), index, np.uint8)
        if index in self.bad:
            return {"image": "no image", "label": index % 4}
        return {"image": image, "label": index % 4, "domain": "day" if index < self.count // 2 else "night"}


def classes_in(source):
    return [{sample.label for sample in batch.samples} for batch in source]


def test_disjoint_parts_of_a_data_set_of_ones_own():
    source = scenario_dataset(lambda: Pictures(holdout=8), ("disjoint", {"parts": 2}), batch_size=20)
    first, second = classes_in(source)
    assert len(first) == len(second) == 2
    assert not first & second
    assert source.info.shifts == (20,)
    assert [part.end_offset for part in source.info.holdout] == [20, 40]
    assert sum(len(part.samples) for part in source.info.holdout) == 8


def test_domains_come_one_after_the_other():
    source = scenario_dataset(Pictures, ("domain_incremental", {}), batch_size=20)
    assert [{sample.domain for sample in batch.samples} for batch in source] == [{"day"}, {"night"}]


def test_it_owes_what_every_source_owes():
    check_source(lambda: scenario_dataset(lambda: Pictures(30), ("iid", {}), batch_size=7))


def test_a_bad_record_keeps_its_place_and_is_refused():
    (batch,) = scenario_dataset(lambda: Pictures(10, bad=[3]), ("iid", {}), batch_size=10)
    assert len(batch.samples) == 9
    assert len(batch.rejected) == 1


def test_an_iterator_brings_its_own_order():
    with pytest.raises(ConfigError, match="brings its own order"):
        scenario_dataset(lambda: iter([]), ("iid", {}))
