"""The declaration of a learner's capabilities: one object for each, None for those that it lacks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from streamcl.capabilities.interfaces import (
    AdapterExport,
    CachesFeatures,
    CalibratedScores,
    CohortPartitioned,
    GradientModel,
    LearnedSample,
    ParameterImportance,
    ReconstructsImages,
    RemovableStatistics,
    ReplayBuffer,
    RetrainedWeights,
    SampleTraces,
    StoredFeatures,
    UserPartitioned,
)
from streamcl.capabilities.prediction_interfaces import AssessesPredictions, ExitsEarly
from streamcl.events import Sample
from streamcl.protocols import State

SharedWeights: TypeAlias = Callable[[Iterator[Sequence[LearnedSample]]], tuple[str, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """The operations that a learner supports besides learning and predicting; by default none.

    A learner returns it from a property `capabilities`, made anew at each call, since an erasure can change
    it. Methods of the learner declare nothing by their names.

    Attributes:
        statistics: knowledge of samples as sums, which can be subtracted.
        traces: of single samples, by which their share is known without the samples.
        drop_class: removes a class, so that it is not named any more. Raises ForgettingError for one that is
            not known, or of which samples are left in the statistics.
        replay_buffer: stored samples.
        stored_features: features of samples, stored to be learned again by weights that are shared.
        shared_weights: names the weights trained by gradients of many samples, those learned samples among
            them, so that none can be removed alone; an empty tuple where they trained none. A learner without
            it has no such weights.
        retrained: weights trained on stored features of samples, and again without some of them.
        drop_adapted_branch: removes the one branch that gradients trained, on which nothing was built; the
            callable that it returns puts the branch back.
        cohorts: parts that one cohort each has taught.
        users: weights that samples of users alone have trained.
        gradient_model: adapters and a linear head that a repair may train further.
        importance: importance weights of the parameters.
        cached_features: scores from features that no erasure changes.
        calibration: confidences that are fitted to held-out samples.
        adapter_export: adapters that can be written in the layout of PEFT.
        assessment: stability and novelty of predictions, from its statistics.
        early_exit: predictions at intermediate blocks.
        reconstruction: fills in hidden patches of images.
        features: float [N, D] of N samples, those on which the learner decides at present.
        prediction_state: returns a state of the learner without the data of stored samples; with it the
            learner predicts the same. A learner without it predicts by its whole state.
    """

    statistics: RemovableStatistics[Any] | None = None
    traces: SampleTraces[Any] | None = None
    drop_class: Callable[[str], None] | None = None
    replay_buffer: ReplayBuffer | None = None
    stored_features: StoredFeatures | None = None
    shared_weights: SharedWeights | None = None
    retrained: RetrainedWeights | None = None
    drop_adapted_branch: Callable[[], Callable[[], None]] | None = None
    cohorts: CohortPartitioned | None = None
    users: UserPartitioned | None = None
    gradient_model: GradientModel | None = None
    importance: ParameterImportance | None = None
    cached_features: CachesFeatures | None = None
    calibration: CalibratedScores | None = None
    adapter_export: AdapterExport | None = None
    assessment: AssessesPredictions | None = None
    early_exit: ExitsEarly | None = None
    reconstruction: ReconstructsImages | None = None
    features: Callable[[Sequence[Sample]], Any] | None = None
    prediction_state: Callable[[State], State] | None = None


def capabilities_of(learner: object) -> Capabilities:
    """Return the learner's `capabilities`; none of them where it declares nothing.

    Raises:
        TypeError: the attribute is no Capabilities, a method for example, where a property is expected.
    """
    declared = getattr(learner, "capabilities", Capabilities())
    if not isinstance(declared, Capabilities):
        raise TypeError(
            f"{type(learner).__name__}.capabilities is {type(declared).__name__}, expected a property that "
            "returns streamcl.capabilities.declaration.Capabilities"
        )
    return declared


def state_for_predictions(learner: object, state: State) -> State:
    """Return the part of a learner's state by which it predicts, without data of stored samples.

    Args:
        learner: any learner; one that does not declare a `prediction_state` keeps all of its state.
        state: what its `state_dict` has returned.
    """
    reduce = capabilities_of(learner).prediction_state
    return state if reduce is None else reduce(state)
