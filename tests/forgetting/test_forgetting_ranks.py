"""Forgetting on two ranks: the second keeps what the first keeps of a batch, records and labels."""

from collections import deque

from forgetting_fakes import Opened
from pictures import make_batch

from streamcl.events import Batch, ForgetRequest, RejectedRecord
from streamcl.forgetting.distributed import ReplicatedForgetting
from streamcl.requests.label import Label
from streamcl.testing import ScriptedSource, record_id


class Recorder:
    """The first rank's end of a group, which records what it broadcasts."""

    def __init__(self):
        self.values = deque()

    def broadcast_object(self, value):
        self.values.append(value)
        return value


class Listener(Recorder):
    """Another rank's end, on which that arrives."""

    def __init__(self, first):
        self.values = first.values

    def broadcast_object(self, value):
        return self.values.popleft()


def test_every_rank_drops_the_records_and_labels_that_the_first_drops(tmp_path):
    request = ForgetRequest(ids=(record_id(1), record_id(6)), offset=8, id="r1")
    with Opened(tmp_path, ScriptedSource([4] * 3), schedule=[request]) as run:
        run.run()
        group = Recorder()
        first = ReplicatedForgetting(run.forgetting, (), group)
        second = ReplicatedForgetting(None, (), Listener(group))
        ordinary, other = make_batch(12, ["even", "odd"]).samples
        erased = make_batch(0, ["odd"] * 2).samples[1]
        labels = (Label(record_id(3), "odd"), Label(record_id(6), "even"), Label(record_id(1), None))
        bad = RejectedRecord(14, "bad", "torn")
        for batch in (
            Batch(12, (ordinary, other), labels=labels),
            Batch(12, (ordinary, other), labels=labels[:1]),
            Batch(12, (ordinary, erased.__class__(record_id(1), erased.image, "odd")), (bad,), labels),
            Batch(12, (), labels=labels[1:]),
        ):
            kept = first.filter(batch)
            found = second.filter(batch)
            assert found.labels == kept.labels == tuple(each for each in batch.labels if each == labels[0])
            assert [each.id for each in found.samples] == [each.id for each in kept.samples]
            assert found.rejected == kept.rejected
            assert record_id(1) not in {each.id for each in kept.samples}
