"""`check_learner` finds each way in which a learner can break its contract."""

from dataclasses import replace

import pytest
import torch

from streamcl.events import Prediction
from streamcl.testing import FakeLearner, check_learner


class NamesFromTheStart(FakeLearner):
    def predict(self, samples):
        return (Prediction("a", 0.5),) * len(samples)


class CountsWhatItPredicts(FakeLearner):
    def predict(self, samples):
        self.consumed += [sample.id for sample in samples]
        return super().predict(samples)


class LearnsFirst(FakeLearner):
    def learn(self, batch):
        return replace(super().learn(batch), predictions=self.predict(batch.samples))


class ClaimsUnlabelledSamples(FakeLearner):
    def learn(self, batch):
        return replace(super().learn(batch), learned=batch.offsets)


class LearnsUnlabelledSamples(FakeLearner):
    def learn(self, batch):
        if not batch.labelled:
            self.consumed += [sample.id for sample in batch.samples]
        return super().learn(batch)


class HandsOutItsOwnState(FakeLearner):
    def state_dict(self):
        return super().state_dict() | {"consumed": self.consumed}


class ForgetsWhenRestored(FakeLearner):
    def load_state_dict(self, state):
        super().load_state_dict({**state, "consolidated": []})


class HoldsAnObject(FakeLearner):
    def state_dict(self):
        return super().state_dict() | {"object": object()}


class MovesWhenConsolidated(FakeLearner):
    def consolidate(self):
        self._counts = {label: count**2 for label, count in self._counts.items()}
        return {}


class Multiplies(FakeLearner):
    """A learner by torch that checks its numbers before it learns."""

    def learn(self, batch):
        if not torch.isfinite(torch.ones(2, 2) @ torch.ones(2, 2)).all():
            return replace(
                FakeLearner(lambda _: float("nan")).learn(batch), predictions=self.predict(batch.samples)
            )
        return super().learn(batch)


class LearnsBeforeItChecks(Multiplies):
    def learn(self, batch):
        result = FakeLearner.learn(self, batch)
        if torch.isfinite(torch.ones(2, 2) @ torch.ones(2, 2)).all():
            return result
        return replace(result, learned=())


class NeverChecks(Multiplies):
    def learn(self, batch):
        _ = torch.ones(2, 2) @ torch.ones(2, 2)
        return FakeLearner.learn(self, batch)


class LearnsBeforeItRunsOut(Multiplies):
    def learn(self, batch):
        refused = not torch.isfinite(torch.ones(2, 2) @ torch.ones(2, 2)).all()
        result = super().learn(batch)
        if not refused:
            torch.ones(2)
        return result


@pytest.mark.parametrize("make", [FakeLearner, Multiplies])
def test_a_learner_that_keeps_the_contract_passes(make):
    check_learner(make)


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (NamesFromTheStart, "before anything is learned, predict names"),
        (CountsWhatItPredicts, "predict changed the state"),
        (LearnsFirst, "must predict before it learns"),
        (ClaimsUnlabelledSamples, "learned offsets"),
        (LearnsUnlabelledSamples, "without labels changed the state"),
        (HandsOutItsOwnState, "changed a state that state_dict had returned"),
        (ForgetsWhenRestored, "did not restore the state"),
        (MovesWhenConsolidated, "consolidation moved the outputs"),
        (NeverChecks, "not finite must be refused"),
        (LearnsBeforeItChecks, "refused step changed the state"),
        (LearnsBeforeItRunsOut, "out of memory at operation"),
    ],
)
def test_each_breach_is_found_and_named(make, complaint):
    with pytest.raises(AssertionError, match=complaint):
        check_learner(make)


def test_a_state_that_no_checkpoint_can_hold_is_found():
    with pytest.raises(TypeError, match="object"):
        check_learner(HoldsAnObject)
