"""Cohort adapters: what one cohort taught is dropped whole, and the rest is as if it had never come."""

import json
from dataclasses import replace
from itertools import combinations

import pytest
import torch
from pictures import picture
from tiny_learners import cohorts
from tiny_runs import configuration

from streamcl.errors import ForgettingError
from streamcl.events import Batch, ForgetRequest, RejectedRecord, Sample
from streamcl.forgetting.methods.drop_cohort import DropCohort, DropCohortApproximate
from streamcl.forgetting.methods.head_only import HeadOnly
from streamcl.forgetting.methods.protocol import Context, RequestScope
from streamcl.forgetting.receipts.verify import verify_receipt
from streamcl.heads import solving
from streamcl.learners import adapter_model
from streamcl.learners.adapted_branch import AdaptedBranch
from streamcl.learners.cohort import SHARED_COHORT
from streamcl.runs.open import open_run
from streamcl.storage.plain_state import state_hash
from streamcl.testing import check_learner

pytestmark = pytest.mark.long

TENANTS = ("acme", "bolt", "crow")
SHARPNESS = 10.0  # of the logits, unless a learner is made with another
CLASSES = {"acme": ("ant", "bee"), "bolt": ("bee", "cat", "dog"), "crow": ("ant", "dog")}


def sample(number):
    tenant = TENANTS[number % 3]
    label = CLASSES[tenant][number // 3 % len(CLASSES[tenant])]
    return Sample(f"s{number}", picture(label, number), label, domain=tenant, subject=tenant)


def batches(*, without=(), count=6):
    """Twelve samples a batch, the tenants' in turn; those of absent ones keep their places."""
    made = []
    for start in range(0, 12 * count, 12):
        samples = [sample(start + i) for i in range(12)]
        kept = tuple(each for each in samples if each.domain not in without)
        gone = tuple(
            RejectedRecord(start + i, "", "forgotten")
            for i, each in enumerate(samples)
            if each.domain in without
        )
        made.append(Batch(start, kept, gone))
    return made


def teach(learner, made):
    for batch in made:
        assert learner.learn(batch).learned
    return learner


@pytest.mark.parametrize("part", ["adapt", "features"])
def test_where_one_cohorts_branch_cannot_learn_no_cohort_learns_of_the_batch(
    tiny_backbone, fp32, monkeypatch, part
):
    learner = teach(cohorts(tiny_backbone, fp32, adapt=10**6), batches(count=2))
    before, calls = state_hash(learner.state_dict()), []

    def fails(*args, **options):
        calls.append(part)  # the third step is the first of the second cohort
        return gradients(*args, **options) if len(calls) < 3 else None

    def breaks(branch, *args):
        return read(branch, *args) * float("nan" if branch is learner.cohorts[last].branch else 1)

    last = list(learner.cohorts)[-1]
    gradients, read = adapter_model.finite_gradients, AdaptedBranch.features
    if part == "adapt":
        monkeypatch.setattr(adapter_model, "finite_gradients", fails)
    else:
        monkeypatch.setattr(AdaptedBranch, "features", breaks)
    assert learner.learn(batches(count=3)[2]).learned == ()
    assert state_hash(learner.state_dict()) == before


def context(learner, learned):
    def scope(request):
        return RequestScope(request, learned, learned, forgotten_before=False, chunks=lambda: iter([]))

    return lambda request: Context(learner, scope(request), lambda asked: [], "no samples")


def close(one, other):
    return float((one - other).abs().max()) <= 1e-9 * float(other.abs().max())


def weights_in_use(learner):
    """The shared weights W [D, C] that learning predicts by."""
    return torch.from_numpy(learner.state_dict()["used"]["W"])


def domain(name):
    return ForgetRequest(id="r", domain=name)


@pytest.mark.parametrize("gone", TENANTS)
def test_after_a_drop_the_learner_is_the_one_that_never_had_the_cohort(tiny_backbone, fp32, gone):
    learner = teach(cohorts(tiny_backbone, fp32), batches())
    found = context(learner, 24)
    assert DropCohort().unsupported_reason(domain(gone), found(domain(gone))) is None
    evidence = DropCohort().erase(domain(gone), found(domain(gone)))
    never = teach(cohorts(tiny_backbone, fp32), batches(without=(gone,)))
    assert evidence.guarantee == "exact"
    assert set(learner.classes) == set(never.classes)
    ours, theirs = learner.state_dict()["cohorts"], never.state_dict()["cohorts"]
    assert list(ours) == list(theirs)
    assert [state_hash(each) for each in ours.values()] == [state_hash(each) for each in theirs.values()]
    order = [learner.classes.index(name) for name in never.classes]
    asked = [sample(n) for n in range(100, 124)]
    assert close(learner.logits(asked)[:, order], never.logits(asked))
    for mine, other in zip(learner.predict(asked), never.predict(asked), strict=True):
        assert mine.label == other.label
        assert abs(mine.confidence - other.confidence) < 1e-6
    never.drop_cohorts([])  # so that its weights in use are solved for all that it knows too
    assert close(weights_in_use(learner)[:, order], weights_in_use(never))
    teach(learner, batches(without=(gone,), count=8)[6:])  # and it goes on alike
    teach(never, batches(without=(gone,), count=8)[6:])
    assert [state_hash(c.state_dict()) for c in learner.cohorts.values()] == [
        state_hash(c.state_dict()) for c in never.cohorts.values()
    ]


def test_the_learner_keeps_the_contract(tiny_backbone, fp32):
    check_learner(lambda: cohorts(tiny_backbone, fp32), memory_failures=6)


def test_only_a_cohorts_own_samples_train_its_adapter(tiny_backbone, fp32):
    both = teach(cohorts(tiny_backbone, fp32), batches(without=("crow",)))
    alone = teach(cohorts(tiny_backbone, fp32), batches(without=("crow", "bolt")))
    key = both.division.name(sample(0), None)
    assert both.cohorts[key].ready
    assert state_hash(both.cohorts[key].state_dict()) == state_hash(alone.cohorts[key].state_dict())
    moved = both.cohorts[key].branch.adapters.layers[0].merged_delta()
    assert float(moved.abs().max()) > 0


def test_a_plateau_of_the_stream_settles_no_adapter(tiny_backbone, fp32):
    learner = teach(cohorts(tiny_backbone, fp32, adapt=1000), batches(count=2))
    assert learner.consolidate() == {}
    assert not any(cohort.ready for cohort in learner.cohorts.values())


def test_predictions_use_the_own_branch_or_the_mean_of_all(tiny_backbone, fp32):
    learner = teach(cohorts(tiny_backbone, fp32), batches())
    known = sample(120)
    own = [learner.logits([replace(known, domain=name)]) for name in TENANTS]
    for name in (None, "never seen"):
        assert torch.allclose(learner.logits([replace(known, domain=name)]), torch.stack(own).mean(0))
    assert not any(torch.allclose(own[a], own[b]) for a, b in combinations(range(3), 2))
    shared = teach(cohorts(tiny_backbone, fp32, adapt=10**6), batches()).logits([known]) / SHARPNESS
    _, views = learner.reader.read([known], 1)
    for cohort, logits in zip(learner.cohorts.values(), own, strict=True):
        assert not torch.allclose(logits, SHARPNESS * shared)
        blended = cohort.blend_scores(shared, views[0], learner.index, exact=True)
        assert torch.allclose(logits, SHARPNESS * blended)
    before = state_hash(learner.state_dict())
    learner.predict([known, replace(known, domain=None)])
    assert state_hash(learner.state_dict()) == before


@pytest.mark.parametrize(
    ("request_of", "learned", "reason"),
    [
        (lambda: domain("acme"), 23, "23 of its samples were learned, 24 by"),
        (lambda: domain("nobody"), 0, "no whole cohort"),
        (
            lambda: ForgetRequest(id="r", domain="acme", offsets=(0, 24)),
            8,
            "no whole cohort",
        ),
        (lambda: ForgetRequest(id="r", subject="acme"), 24, "no whole cohort"),
        (lambda: ForgetRequest(id="r", label="ant"), 24, "no whole cohort"),
    ],
)
def test_what_is_not_a_whole_cohort_is_refused(tiny_backbone, fp32, request_of, learned, reason):
    learner = teach(cohorts(tiny_backbone, fp32), batches())
    request = request_of()
    found = context(learner, learned)(request)
    assert reason in DropCohort().unsupported_reason(request, found)
    if learned:
        assert HeadOnly().unsupported_reason(request, found) is not None


def test_cohorts_past_the_limit_have_no_adapter_and_are_not_dropped(tiny_backbone, fp32):
    learner = teach(cohorts(tiny_backbone, fp32, limit=2), batches())
    assert len(learner.cohorts) == 3
    assert learner.cohorts[SHARED_COHORT].branch is None
    assert learner.sample_count([SHARED_COHORT]) == 24
    request, other = domain("crow"), domain("acme")
    assert "no whole cohort" in DropCohortApproximate().unsupported_reason(
        request, context(learner, 24)(request)
    )
    assert "past the limit" in DropCohort().unsupported_reason(other, context(learner, 24)(other))
    assert DropCohortApproximate().unsupported_reason(other, context(learner, 24)(other)) is None
    assert DropCohortApproximate().erase(other, context(learner, 24)(other)).guarantee == "approximate"
    teach(learner, batches(count=8, without=("acme",))[6:])  # now there is room, but the pool has some
    assert "of its samples were learned" in DropCohortApproximate().unsupported_reason(
        request, context(learner, 32)(request)
    )
    with pytest.raises(ForgettingError, match="do not exist"):
        learner.drop_cohorts(["never"])


def test_stretches_of_the_stream_can_be_cohorts(tiny_backbone, fp32):
    learner = teach(cohorts(tiny_backbone, fp32, by="offset_range", stretch=24), batches())
    assert sorted(learner.cohorts) == ["0", "1", "2"]
    request = ForgetRequest(id="r", offsets=(24, 48))
    assert learner.selected_cohorts(request) == ("1",)
    assert DropCohort().unsupported_reason(request, context(learner, 24)(request)) is None
    half = ForgetRequest(id="r", offsets=(24, 36))
    assert "12 of its samples were learned, 24" in DropCohort().unsupported_reason(
        half, context(learner, 12)(half)
    )


def test_a_restored_learner_goes_on_bit_equal(tiny_backbone, fp32):
    made = batches(count=4)
    for stop in (0, 1, 3):
        first, other = teach(cohorts(tiny_backbone, fp32), made[:stop]), cohorts(tiny_backbone, fp32)
        other.load_state_dict(first.state_dict())
        lessons = [[learner.learn(batch) for batch in made[stop:]] for learner in (first, other)]
        assert lessons[0] == lessons[1]
        asked = [sample(number) for number in range(100, 112)]
        assert torch.equal(first.logits(asked), other.logits(asked))
        assert state_hash(first.state_dict()) == state_hash(other.state_dict())


def test_a_step_that_fails_changes_nothing(tiny_backbone, fp32, monkeypatch):
    learner = teach(cohorts(tiny_backbone, fp32), batches(count=1))
    before = state_hash(learner.state_dict())

    def full(*counts):
        raise MemoryError

    monkeypatch.setattr(solving, "is_due", full)
    with pytest.raises(MemoryError):
        learner.learn(batches(count=2)[1])
    assert state_hash(learner.state_dict()) == before


def stream():
    """What the run below is given."""
    yield from (sample(number) for number in range(96))


def test_a_run_forgets_a_tenant_whole(tmp_path):
    config = configuration(
        tmp_path,
        {"name": "cohort_adapters", "max_adapters": 3, "lora": {"warmup_samples": 8}},
        source={"class": "test_cohort_adapters:stream", "deterministic": True},
        batch=12,
        checkpoint={"every_samples": 48},
        forgetting={"requests": [{"offset": 60, "domain": "bolt"}]},
    )
    with open_run(config) as run:
        for prediction in run:
            if prediction.offset == 59:
                assert run.learner.sample_count(run.learner.selected_cohorts(domain("bolt"))) == 20
        bolts = run.learner.selected_cohorts(domain("bolt"))
        assert run.learner.sample_count(bolts) == 12  # what has come since
    (path,) = (run.folder / "receipts").glob("*.json")
    receipt = json.loads(path.read_text())
    assert (receipt["method"], receipt["guarantee"]) == ("drop_cohort", "exact")
    assert receipt["scope"]["learned"] == 20
    assert any("none of the" in line for line in verify_receipt(path))
