"""After an exact erasure the logits are, at 1e-9, those of a learner that never saw the samples.

So are confidences, as their calibration is fitted anew: logits are those of the softmax that gives them.

Cohorts are in `learners/test_cohort_adapters.py`, and the users of mixed privacy, whose logits have noise, by
their weights without it in `learners/test_mixed_privacy.py`.
"""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pictures import picture
from tiny_learners import hybrid, latent

from streamcl.events import Batch, ForgetRequest, HoldoutPart, RejectedRecord, Sample
from streamcl.forgetting.lineage.lineage_row import LineageRow
from streamcl.forgetting.methods.closed_form import ClosedFormRemoval
from streamcl.forgetting.methods.protocol import Context, RequestScope, drop_emptied
from streamcl.heads.ncm import NCMHead
from streamcl.heads.ridge import RidgeHead
from streamcl.heads.slda import SLDAHead
from streamcl.learners.block_features import FrozenReader
from streamcl.learners.holdout_calibration import HoldoutCalibrator
from streamcl.learners.ridge import RidgeLearner
from streamcl.protocols import EndOfStreamLearner
from streamcl.storage.plain_state import state_hash

LABELS = ("ant", "bee", "cat", "dog")
COUNT, SIZE, WIDTH = 96, 12, 3 * 64
WARMUP = 24
TOLERANCE = 1e-9


def sample(number):
    label = LABELS[number % 7 % 4]
    return Sample(f"s{number}", picture(label, number), label, subject=f"p{number % 5}")


SAMPLES = [sample(number) for number in range(COUNT)]
HELD_OUT = HoldoutPart("held out", [sample(number) for number in range(COUNT, COUNT + 40)])


class RememberingReader:
    """The frozen features of samples, each derived once: they are the same whoever comes together."""

    def __init__(self, reader):
        self._reader, self._rows = reader, {}

    def __call__(self, samples):
        missing = [each for each in samples if each.id not in self._rows]
        if missing:
            self._rows |= zip((each.id for each in missing), self._reader(missing), strict=True)
        return torch.stack([self._rows[each.id] for each in samples])


HEADS = {
    "ridge": lambda: RidgeHead(WIDTH, trace_ridge=1e-3),
    "ridge by variances": lambda: RidgeHead(WIDTH, variance_ridge=300.0),
    "ridge by cross-validation": lambda: RidgeHead(WIDTH, variance_ridge=30.0, gcv_margin=2.0),
    "ridge on random features": lambda: RidgeHead(WIDTH, projection=64, trace_ridge=1e-3),
    "slda": lambda: SLDAHead(WIDTH, shrinkage=1e-2),
    "ncm": lambda: NCMHead(WIDTH),
}


@pytest.fixture(scope="module")
def reader(tiny_backbone, fp32):
    return RememberingReader(FrozenReader(tiny_backbone, fp32, (0, 1, 2)))


def taught(learner, gone=frozenset(), *, places=True):
    """Return the learner after the stream; those that are gone keep their places, or none.

    Its confidences are fitted to held-out samples at the end.
    """
    for start in range(0, COUNT, SIZE):
        there = [each for each in SAMPLES[start : start + SIZE] if int(each.id[1:]) not in gone]
        places_left = [start + k for k in range(SIZE) if start + k in gone] if places else []
        refused = tuple(RejectedRecord(offset, "", "forgotten") for offset in places_left)
        learner.learn(Batch(start, tuple(there), refused))
    if isinstance(learner, EndOfStreamLearner):
        learner.end_stream(COUNT)
    HoldoutCalibrator(learner, [HELD_OUT]).fit()
    return learner


def erase(learner, gone, label=None):
    """Erase samples, or the class that they are, as the eraser does."""
    request = ForgetRequest(id="r", label=label) if label else ForgetRequest(id="r", offsets=(0, COUNT))
    rows = [LineageRow(number, f"s{number}", SAMPLES[number].label, True, 0, b"") for number in sorted(gone)]
    count = len(rows)
    scope = RequestScope(
        request,
        count,
        count,
        forgotten_before=False,
        chunks=lambda: iter([part for part in (rows[:7], rows[7:]) if part]),
    )
    context = Context(learner, scope, lambda asked: [SAMPLES[row.offset] for row in asked])
    assert ClosedFormRemoval().unsupported_reason(request, context) is None
    assert ClosedFormRemoval().erase(request, context).guarantee == "exact"
    left = {each.label for number, each in enumerate(SAMPLES) if number not in gone}
    drop_emptied(learner, sorted(set(learner.classes) - left))
    HoldoutCalibrator(learner, [HELD_OUT]).fit_after_erasure()


def check_equal_logits(learner, never):
    """The logits of samples seen, erased and unseen are equal, and so are those in use while learning.

    Of the calibration all is equal, once that of predictions before learning has begun anew in both.
    """
    assert sorted(learner.classes) == sorted(never.classes)
    order = [learner.classes.index(name) for name in never.classes]
    asked = [*SAMPLES, *(sample(number) for number in range(COUNT, COUNT + 12))]
    expected, found = never.logits(asked), learner.logits(asked)[:, order]
    finite = torch.isfinite(expected)
    assert torch.equal(finite, torch.isfinite(found))
    scale = float(expected[finite].abs().max())
    assert float((found - expected)[finite].abs().max()) <= TOLERANCE * scale
    in_use = never.calibration.for_predictions(learner.scores(learner.read(asked))[:, order])
    assert float((in_use - expected)[finite].abs().max()) <= TOLERANCE * scale
    never.calibration.restart()
    assert learner.calibration.state_dict() == pytest.approx(never.calibration.state_dict(), rel=TOLERANCE)


subsets = st.one_of(
    st.sampled_from(LABELS).map(lambda name: ("class", name)),
    st.integers(0, 4).map(lambda person: ("subject", person)),
    st.sets(st.integers(0, COUNT - 1), min_size=1, max_size=COUNT - 1).map(
        lambda s: ("samples", frozenset(s))
    ),
)


def numbers_of(kind, value):
    if kind == "class":
        return frozenset(number for number in range(COUNT) if SAMPLES[number].label == value)
    return frozenset(range(value, COUNT, 5)) if kind == "subject" else value


def erase_all(learner, requests):
    """Carry out requests; return the numbers of samples that are gone, None where none would be left."""
    gone = frozenset()
    for kind, value in requests:
        if wanted := numbers_of(kind, value) - gone:
            gone |= wanted
            if len(gone) == COUNT:
                return None
            erase(learner, wanted, value if kind == "class" else None)
    return gone


@pytest.mark.parametrize("name", HEADS)
def test_frozen_features(name, reader, tiny_backbone, fp32):
    def fresh():
        learner = RidgeLearner(tiny_backbone, fp32, HEADS[name](), blocks=(0, 1, 2))
        learner.reader = reader
        return learner

    @settings(max_examples=8, derandomize=True, deadline=None)
    @example([("class", "ant"), ("class", "bee"), ("samples", frozenset({0}))])
    @given(st.lists(subsets, min_size=1, max_size=3))
    def holds(requests):
        learner = taught(fresh())
        if (gone := erase_all(learner, requests)) is None:
            return
        check_equal_logits(learner, taught(fresh(), gone))
        check_equal_logits(learner, taught(fresh(), gone, places=False))

    holds()


@pytest.mark.long
def test_an_adapted_branch_that_is_frozen(tiny_backbone, fp32):
    """Samples after the warm-up are subtracted from both heads; the adapters have never seen them."""

    def fresh():
        return hybrid(tiny_backbone, fp32, adapt=WARMUP)

    late = st.sets(st.integers(WARMUP + SIZE, COUNT - 1), min_size=1, max_size=40).map(frozenset)

    @settings(max_examples=3, derandomize=True, deadline=None)
    @given(late)
    def holds(gone):
        learner = taught(fresh())
        erase(learner, gone)
        check_equal_logits(learner, taught(fresh(), gone))

    holds()


@pytest.mark.long
@pytest.mark.parametrize("rows", [200, 40], ids=["all stored", "some stored"])
def test_adapters_that_are_trained_again(rows, tiny_backbone, fp32):
    """Whoever is erased, the adapters are to the last bit those of a stream without, and the logits equal."""

    def fresh():
        return latent(tiny_backbone, fp32, first=16, rows=rows)  # trains at 16, at 64 and at the end

    @settings(max_examples=6, derandomize=True, deadline=None)
    @example([("samples", frozenset({0}))])
    @example([("samples", frozenset({COUNT - 1})), ("class", "bee")])
    @example([("samples", frozenset(range(SIZE, 2 * SIZE)))])
    @given(st.lists(subsets, min_size=1, max_size=2))
    def holds(requests):
        learner = taught(fresh())
        if (gone := erase_all(learner, requests)) is None:
            return
        never = taught(fresh(), gone)
        adapters = learner.adapted.state_dict()["adapters"], never.adapted.state_dict()["adapters"]
        assert state_hash(adapters[0]) == state_hash(adapters[1])
        stored = learner.adapted.store.state_dict(), never.adapted.store.state_dict()
        assert state_hash(stored[0]) == state_hash(stored[1])
        assert learner.adapted.trained
        check_equal_logits(learner, never)

    holds()
