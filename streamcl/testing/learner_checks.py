"""Checks of the contract that the loop and the forgetting methods rely on in every learner."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from streamcl.events import Batch, Prediction, Sample
from streamcl.protocols import Learner
from streamcl.storage.plain_state import state_hash

MakeLearner = Callable[[], Learner]


def check_learner(
    make_learner: MakeLearner,
    batches: Sequence[Batch] = (),
    *,
    tolerance: float = 1e-5,
    memory_failures: int = 12,
) -> None:
    """Raise AssertionError where a learner breaks the contract of `streamcl.protocols.Learner`.

    The checks: before anything is learned, no class is named; `predict` changes no state; `learn` predicts
    before it learns; learned offsets are those of labelled samples; unlabelled and empty batches leave the
    state as it is; a learner restored from its state after every batch learns and predicts as one that was
    never stopped; a state that was taken is not changed by later steps; consolidation keeps the outputs; a
    step whose numbers are not finite, or that runs out of memory, leaves the state as it was. The last two
    need a learner that computes by torch, and are skipped for others.

    Args:
        make_learner: makes a fresh learner, the same each time it is called.
        batches: three or more with labelled samples, as the learner would meet them; where none are given,
            drawn images (uint8, [16, 16, 3]) of three classes.
        tolerance: how far a confidence may move where outputs must stay, for instance by consolidation.
        memory_failures: at how many operations of a step, evenly spread, memory runs out.
    """
    batches = batches or _drawn_batches()
    _check_nothing_is_named_before_learning(make_learner, batches)
    _check_learn_predicts_first(make_learner, batches, tolerance)
    _check_learned_offsets(make_learner, batches)
    _check_unlabelled_samples_are_not_learned(make_learner, batches)
    _check_restored_after_every_batch(make_learner, batches)
    _check_consolidation_keeps_outputs(make_learner, batches, tolerance)
    _check_not_finite_leaves_the_state(make_learner, batches)
    _check_out_of_memory_leaves_the_state(make_learner, batches, memory_failures)


def _drawn_batches(count: int = 5, size: int = 6) -> list[Batch]:
    """Return batches of drawn images whose stripes tell their class; the third class comes late."""
    return [
        Batch(step * size, tuple(_drawn(step * size + place, 2 + (step > 1)) for place in range(size)))
        for step in range(count)
    ]


def _check_nothing_is_named_before_learning(make_learner: MakeLearner, batches: Sequence[Batch]) -> None:
    learner = make_learner()
    assert learner.predict(()) == (), "no samples have no predictions"
    named = {each.label for each in learner.predict(batches[0].samples)}
    assert named == {None}, f"before anything is learned, predict names {named}; expected None"
    assert learner.classes == ()


def _check_learn_predicts_first(
    make_learner: MakeLearner, batches: Sequence[Batch], tolerance: float
) -> None:
    learner = make_learner()
    for batch in batches:
        before = state_hash(learner.state_dict())
        predicted = learner.predict(batch.samples)
        assert state_hash(learner.state_dict()) == before, "predict changed the state"
        result = learner.learn(batch)
        _same(predicted, result.predictions, tolerance, "learn must predict before it learns")
        assert state_hash(learner.state_dict()) != before, "a labelled batch left the state as it was"


def _check_learned_offsets(make_learner: MakeLearner, batches: Sequence[Batch]) -> None:
    learner = make_learner()
    labels: list[str] = []
    for batch in batches:
        half = _without_labels(batch, every=3)
        result = learner.learn(half)
        assert len(result.predictions) == len(half.samples), "expected one prediction for each sample"
        assert tuple(result.learned) == half.labelled_offsets, (
            f"learned offsets {result.learned}, expected the labelled ones {half.labelled_offsets}"
        )
        assert len(result.losses) == len(half.labelled), "expected one loss for each labelled sample"
        assert all(map(math.isfinite, result.losses)), f"losses {result.losses} of a plain batch"
        labels += [str(sample.label) for sample in half.labelled]
        assert learner.classes == tuple(dict.fromkeys(labels)), (
            "classes come in the order in which they were first learned"
        )


def _check_unlabelled_samples_are_not_learned(make_learner: MakeLearner, batches: Sequence[Batch]) -> None:
    learner = _learned(make_learner, batches[:-1])
    before = state_hash(learner.state_dict())
    for batch in (_without_labels(batches[-1], every=1), Batch(batches[-1].offset, ())):
        result = learner.learn(batch)
        assert result.learned == ()
        assert result.losses == ()
        assert len(result.predictions) == len(batch.samples)
        assert state_hash(learner.state_dict()) == before, "a batch without labels changed the state"


def _check_restored_after_every_batch(make_learner: MakeLearner, batches: Sequence[Batch]) -> None:
    straight, stopped = make_learner(), make_learner()
    for number, batch in enumerate(batches):
        assert straight.learn(batch) == stopped.learn(batch), f"batch {number} differs after a restart"
        if number % 2:
            assert straight.consolidate() == stopped.consolidate(), "consolidation differs after a restart"
        state = stopped.state_dict()
        found = state_hash(state)  # raises TypeError where a value is none that a checkpoint can hold
        assert found == state_hash(straight.state_dict()), f"the state after batch {number} differs"
        stopped.learn(batch)
        assert state_hash(state) == found, "a later step changed a state that state_dict had returned"
        stopped = make_learner()
        stopped.load_state_dict(state)
        assert state_hash(stopped.state_dict()) == found, "load_state_dict did not restore the state"


def _check_consolidation_keeps_outputs(
    make_learner: MakeLearner, batches: Sequence[Batch], tolerance: float
) -> None:
    learner = make_learner()
    for batch in batches:
        learner.learn(batch)
        before = learner.predict(batches[0].samples)
        learner.consolidate()
        _same(before, learner.predict(batches[0].samples), tolerance, "consolidation moved the outputs")


def _check_not_finite_leaves_the_state(make_learner: MakeLearner, batches: Sequence[Batch]) -> None:
    from streamcl.testing.torch_faults import NotFiniteProducts

    learner, twin = (_learned(make_learner, batches[:-1]) for _ in range(2))
    before = state_hash(learner.state_dict())
    with NotFiniteProducts() as products:
        result = learner.learn(batches[-1])
    if not products.count:
        return
    assert result.learned == (), "a step whose numbers are not finite must be refused"
    assert state_hash(learner.state_dict()) == before, "a refused step changed the state"
    assert learner.learn(batches[-1]) == twin.learn(batches[-1]), "the step after a refused one differs"


def _check_out_of_memory_leaves_the_state(
    make_learner: MakeLearner, batches: Sequence[Batch], failures: int
) -> None:
    from torch import OutOfMemoryError

    from streamcl.testing.torch_faults import OutOfMemory

    learner, twin = (_learned(make_learner, batches[:-1]) for _ in range(2))
    before = state_hash(learner.state_dict())
    assert state_hash(twin.state_dict()) == before  # and work that was put off is done in both
    with OutOfMemory() as counted:
        expected = twin.learn(batches[-1])
    for fails_at in np.linspace(1, counted.count, min(failures, counted.count), dtype=int):
        try:
            with OutOfMemory(int(fails_at)):
                learner.learn(batches[-1])
        except (OutOfMemoryError, MemoryError):
            assert state_hash(learner.state_dict()) == before, (
                f"out of memory at operation {fails_at} of {counted.count} changed the state"
            )
        else:
            raise AssertionError(f"out of memory at operation {fails_at} of {counted.count} was not raised")
    assert learner.learn(batches[-1]) == expected, "the step after running out of memory differs"


def _learned(make_learner: MakeLearner, batches: Sequence[Batch]) -> Learner:
    learner = make_learner()
    for batch in batches:
        learner.learn(batch)
    return learner


def _drawn(number: int, classes: int) -> Sample:
    label = number % classes
    noise = np.random.default_rng(number).normal(0, 12, (16, 16, 3))
    stripes = 60 * np.sin(np.arange(16) * (0.4 + 0.6 * label))[:, None, None]
    image = np.clip(128 + stripes + noise, 0, 255).astype(np.uint8)
    return Sample(f"drawn/{number}", image, "abc"[label], subject=f"p{number % 4}", domain=f"d{number % 2}")


def _without_labels(batch: Batch, every: int) -> Batch:
    return Batch(
        batch.offset,
        tuple(
            replace(sample, label=None) if number % every == 0 else sample
            for number, sample in enumerate(batch.samples)
        ),
        batch.rejected,
    )


def _same(one: Sequence[Prediction], other: Sequence[Prediction], tolerance: float, message: str) -> None:
    assert [each.label for each in one] == [each.label for each in other], message
    for mine, theirs in zip(one, other, strict=True):
        assert math.isclose(mine.confidence, theirs.confidence, rel_tol=0.0, abs_tol=tolerance), message
