"""Erasures are tested after shifts, by names and held-out samples, and repeated where they do not hold."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from forgetting_fakes import ForgettingLearner, Opened, holds
from pictures import make_batch

from streamcl.capabilities.declaration import Capabilities
from streamcl.errors import BadRecord
from streamcl.events import ForgetRequest, HoldoutPart, Sample
from streamcl.forgetting.methods.protocol import ErasureResult
from streamcl.forgetting.monitoring.held_out import MAX_PER_NAME, HeldOutSamples
from streamcl.forgetting.monitoring.relapse import MAX_REPEATS, RelapseMonitor, features_of
from streamcl.forgetting.receipts.archive import read_receipts
from streamcl.heads.ridge import RidgeHead
from streamcl.learners.online_lora import OnlineLoRALearner
from streamcl.learners.ridge import RidgeLearner
from streamcl.learners.ridge_lora import RidgeLoRALearner
from streamcl.testing import ScriptedSource

ERASED = "lynx"
BY = {
    ("class", ERASED): "r1",
    ("subject", ERASED): "r2",
    **{("class", f"{k:02d}"): f"c{k}" for k in range(40)},
}
HELD = make_batch(0, ["lynx", "dog", "ant"] * 30).samples
CLASS = ForgetRequest(id="r1", label=ERASED)


class Adapted:
    """Shared weights in one number: how far the erased class or subject stands off in the features."""

    def __init__(self, distance, classes=("dog", "ant")):
        self.distance, self.classes = distance, classes
        self.capabilities = Capabilities(features=self.features)

    def features(self, samples):
        rng = np.random.default_rng(len(samples))
        far = [ERASED in (sample.label, sample.subject) for sample in samples]
        return torch.from_numpy(rng.normal(size=(len(samples), 2)) + np.outer(far, [self.distance, 0.0]))


class Hidden:
    classes = ("dog", "ant")


def held_out(samples=HELD):
    return HeldOutSamples([HoldoutPart("all", samples)])


def relapse(samples=HELD, policy="repeat"):
    return RelapseMonitor(lambda kind, name: BY.get((kind, name)), held_out(samples), policy)


def watched(monitor, learner, request=CLASS, method="gs_lora", guarantee="approximate"):
    monitor.record(request, method, guarantee, learner)
    return monitor


def test_what_stays_erased_is_no_relapse():
    figures, found = watched(relapse(), Adapted(0.3)).retest(Adapted(0.3), 50)
    assert not found
    assert (figures["tested"], figures["risen"], figures["relapsed"]) == (1, 0, 0)
    assert "held-out samples" in figures["reason"]


def test_nothing_is_tested_or_logged_before_anything_was_erased():
    assert relapse().retest(Adapted(4.0), 50) == ({}, [])


def test_shared_weights_that_tell_an_erased_class_apart_again_are_a_relapse_and_it_is_erased_again():
    figures, (found,) = watched(relapse(), Adapted(0.0)).retest(Adapted(4.0), 50)
    assert figures["risen"] == figures["relapsed"] == 1
    again = found.request
    assert (again.kind, again.label, again.method, again.offset) == ("class", ERASED, "gs_lora", 50)
    assert {sample.label for sample in again.samples} == {ERASED}
    assert again.id == found.figures["again"] == "r1-again-50"
    assert found.figures["now"] > found.figures["before"]


def test_an_erased_subject_is_tested_by_its_held_out_samples():
    faces = [Sample(f"s{k}", HELD[0].image, "face", subject=[ERASED, "dog"][k % 2]) for k in range(60)]
    request = ForgetRequest(id="r2", subject=ERASED)
    monitor = watched(relapse(faces), Adapted(0.0), request)
    _, (found,) = monitor.retest(Adapted(4.0), 50)
    again = found.request
    assert (again.kind, again.subject) == ("subject", ERASED)
    assert {sample.subject for sample in again.samples} == {ERASED}


def test_a_repetition_is_measured_anew_and_after_some_a_relapse_is_only_reported():
    monitor, learner = watched(relapse(), Adapted(0.0)), Adapted(4.0)
    for round_ in range(MAX_REPEATS):
        _, (found,) = monitor.retest(learner, 100 * round_)
        assert found.request.id == f"r1-again-{100 * round_}"
        watched(monitor, Adapted(0.0), found.request)
    _, (found,) = monitor.retest(learner, 999)
    assert found.request is None
    assert found.figures["again"] is None


def test_a_repetition_that_did_not_help_is_not_taken_for_the_measure():
    monitor = watched(relapse(), Adapted(0.0))
    _, (found,) = monitor.retest(Adapted(4.0), 50)
    watched(monitor, Adapted(0.1), found.request)
    assert monitor.retest(Adapted(4.0), 90)[0]["risen"] == 1


def test_by_policy_a_relapse_is_only_reported():
    _, (found,) = watched(relapse(policy="report"), Adapted(0.0)).retest(Adapted(4.0), 50)
    assert found.request is None


def test_a_method_that_repairs_nothing_is_not_repeated():
    _, (found,) = watched(relapse(), Adapted(0.0), method="head_only").retest(Adapted(4.0), 50)
    assert found.request is None


def test_a_learner_that_names_an_erased_class_has_relapsed_whatever_the_guarantee():
    for guarantee in ("exact", "approximate"):
        monitor = watched(relapse([]), Adapted(0.0), method="closed_form", guarantee=guarantee)
        figures, (found,) = monitor.retest(Adapted(0.0, ("dog", ERASED)), 50)
        assert (figures["named"], figures["tested"]) == (1, 0)
        assert (found.request.method, found.request.samples) == ("auto", ())


def test_learners_by_gradient_show_their_features(tiny_backbone, fp32):
    shown = OnlineLoRALearner(tiny_backbone, fp32).capabilities.features
    features = features_of(shown, HELD[:20])
    assert features.shape == (20, tiny_backbone.width)
    np.testing.assert_array_equal(features_of(shown, HELD[:16]), features[:16])


def test_of_exact_erasures_it_is_said_that_nothing_can_come_back(tiny_backbone, fp32):
    exact = RidgeLearner(tiny_backbone, fp32, RidgeHead(3 * 64), blocks=(0, 1, 2))
    for learner in (exact, RidgeLoRALearner(exact, None)):
        monitor = watched(relapse(), learner, method="closed_form", guarantee="exact")
        figures, found = monitor.retest(learner, 50)
        assert (figures["exact"], figures["tested"], found) == (1, 0, [])
        assert "nothing is left in sums" in figures["reason"]


@pytest.mark.parametrize(
    ("samples", "learner", "request_"),
    [
        ([], Adapted(0.0), CLASS),
        (HELD[:9], Adapted(0.0), CLASS),
        (HELD, Hidden(), CLASS),
        (HELD, Adapted(0.0), ForgetRequest(id="r3", ids=("nobody",))),
    ],
    ids=["no held-out samples", "too few", "no features to see", "single samples"],
)
def test_what_cannot_be_tested_is_said_to_be_so(samples, learner, request_):
    figures, found = watched(relapse(samples), learner, request_).retest(learner, 50)
    assert (figures["not_testable"], figures["tested"], found) == (1, 0, [])
    assert "1 not testable" in figures["reason"]


def test_asking_again_for_what_is_gone_changes_no_measure():
    monitor = watched(relapse(), Adapted(0.0))
    watched(monitor, Adapted(4.0), ForgetRequest(id="r9", label=ERASED), "no_op", "exact")
    assert monitor.retest(Adapted(4.0), 50)[0]["risen"] == 1


def test_nothing_of_the_class_but_a_hash_is_kept_or_logged():
    monitor = watched(relapse(), Adapted(0.0))
    figures, (found,) = monitor.retest(Adapted(4.0), 50)
    for shown in (monitor.state_dict(), figures, found.figures):
        assert ERASED not in json.dumps(shown)


def test_it_goes_on_from_its_state():
    monitor, other = watched(relapse(), Adapted(0.0)), relapse()
    other.load_state_dict(json.loads(json.dumps(monitor.state_dict())))
    one, two = monitor.retest(Adapted(4.0), 50), other.retest(Adapted(4.0), 50)
    assert one[0] == two[0]
    assert one[1][0].figures == two[1][0].figures
    assert monitor.state_dict() == other.state_dict()


def test_many_erasures_take_turns():
    names = [f"{k:02d}" for k in range(40)]
    samples = make_batch(0, [*names, "dog"] * 12).samples
    monitor = relapse(samples)
    for name in names:
        monitor.record(ForgetRequest(id=f"c{name}", label=name), "gs_lora", "approximate", Adapted(0.0))
    told = [monitor.retest(Adapted(0.0), k)[0]["tested"] for k in range(3)]
    assert all(0 < count <= 16 for count in told)
    assert monitor.state_dict()["next"] == sum(told)


def test_held_out_samples_are_bounded_and_broken_ones_left_out():
    class Broken(list):
        def __getitem__(self, i):
            if i == 3:
                raise BadRecord("unreadable")
            return super().__getitem__(i)

    samples = make_batch(0, ["lynx"] * 500 + ["dog"] * 20).samples
    held = held_out(Broken(samples))
    assert len(held.of("class", "lynx")) == MAX_PER_NAME
    assert len(held.others(lambda kind, name: name == "lynx")) == 20
    assert held.names("class") == ["lynx", "dog"]


class Drifting(ForgettingLearner):
    """Its features tell the erased class apart the better, the more was learned since it was erased."""

    def __init__(self):
        super().__init__()
        self.known_since = None

    @property
    def capabilities(self):
        return replace(super().capabilities, features=self.features)

    def features(self, samples):
        since = 0 if self.known_since is None else len(self.consumed) - self.known_since
        return Adapted(0.25 * since).features(samples)

    def drop_class(self, name):
        self._counts.pop(name)

    def state_dict(self):
        return {**super().state_dict(), "known_since": self.known_since}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.known_since = state["known_since"]


class Repair:
    """Like a repair of shared weights: what it erases comes back while the stream goes on."""

    name, guarantee, cost = "repair", "approximate", 50

    def unsupported_reason(self, request, context):
        return None

    def erase(self, request, context):
        learner = context.learner
        learner.known_since = len(learner.consumed)
        if request.label in learner.classes:
            learner.drop_class(request.label)
        return ErasureResult(self.name, self.guarantee, "Some.", (), {"shown": len(request.samples)})


def drifting(folder, **options):
    source = ScriptedSource([4] * 24, classes=("lynx", "dog", "ant"))
    schedule = [ForgetRequest(label=ERASED, offset=12, id="r1", method="repair")]
    return Opened(folder, source, learner=Drifting(), schedule=schedule, held_out=HELD, **options)


def events(folder, kind):
    records = map(json.loads, (folder / "events.jsonl").read_text().splitlines())
    return [record for record in records if record["kind"] == kind]


def test_a_learner_that_relapses_in_a_run_is_made_to_forget_again_with_a_receipt(tmp_path):
    with drifting(tmp_path, methods=[Repair()]) as opened:
        opened.run()
    tested, relapses = events(tmp_path, "retest"), events(tmp_path, "relapse")
    later = [event["offset"] for event in events(tmp_path, "shift") if event["offset"] > 12]
    assert [event["offset"] for event in tested] == [*later, 96]  # and once more at the end
    assert relapses
    chain = [each.to_json() for _, each in read_receipts(tmp_path)]
    assert [content["request"] for content in chain] == ["r1", *(e["again"] for e in relapses[:MAX_REPEATS])]
    assert chain[1]["figures"]["shown"] == 30
    assert chain[1]["offset"] == relapses[0]["offset"]
    assert relapses[0]["request"] == "r1"
    assert holds(tmp_path, ERASED) == {}


@pytest.mark.long
def test_a_run_killed_at_any_batch_tests_and_repeats_the_same(tmp_path):
    with drifting(tmp_path / "whole", methods=[Repair()]) as opened:
        opened.run()
        expected = opened.processor.state_dict()["forgetting"]["monitor"]
    for stop in range(3, 24, 4):
        folder = tmp_path / f"killed-{stop}"
        with drifting(folder, methods=[Repair()]) as opened:
            next(each for each in opened.processor.run() if each.offset >= 4 * stop)
        with drifting(folder, methods=[Repair()]) as opened:
            opened.run()
            assert opened.processor.state_dict()["forgetting"]["monitor"] == expected
        assert events(folder, "relapse") == events(tmp_path / "whole", "relapse")
        assert [c.request for _, c in read_receipts(folder)] == [
            c.request for _, c in read_receipts(tmp_path / "whole")
        ]
