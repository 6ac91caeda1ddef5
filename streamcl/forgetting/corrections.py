"""Corrections of labels: learned samples are taken out exactly, to be learned again under another label."""

from __future__ import annotations

from collections.abc import Sequence

from streamcl.errors import ForgettingError, StreamclError
from streamcl.events import ForgetRequest, Sample
from streamcl.forgetting.erasure.retrieval import Retrieval
from streamcl.forgetting.erasure.run_resources import RunResources
from streamcl.forgetting.lineage.feature_probe import FeatureChecks
from streamcl.forgetting.lineage.lineage import Lineage
from streamcl.forgetting.lineage.selection import Selection
from streamcl.forgetting.methods.closed_form import ClosedFormRemoval
from streamcl.forgetting.methods.protocol import Context, RequestScope, drop_emptied


class SampleCorrections:
    """Takes samples out of a learner in closed form: its sums, and those stored on disk, lose their share.

    What is learned afterwards under the new label gives the sums of a stream that had it at once, up to
    rounding in float64. Nothing is erased from disk, and no tombstone is set.

    Args:
        resources: the parts of the run.
        lineage: of what was learned.
        features: how they are compared with those that were learned.
    """

    def __init__(self, resources: RunResources, lineage: Lineage, features: FeatureChecks) -> None:
        self._run, self._lineage, self._features = resources, lineage, features
        self._method = ClosedFormRemoval()

    def learned_label(self, name: str) -> str | None:
        """Return the label under which the sample with this id was learned; None where it was not."""
        return self._lineage.learned_label(name)

    def take_out(self, ids: Sequence[str]) -> Sequence[tuple[int, Sample]]:
        """Take learned samples out of the learner; return each, with its old label, and its offset.

        Raise ForgettingError, with learner and stored sums as they were, where weights trained by gradient
        know a sample, or where one cannot be retrieved as it was learned.
        """
        request = ForgetRequest(id="correction", ids=tuple(ids), on_return="learn")
        selection = self._lineage.select(request)
        try:
            return self._take_out(request, selection)
        finally:
            selection.close()

    def _take_out(self, request: ForgetRequest, selection: Selection) -> list[tuple[int, Sample]]:
        learner = self._run.learner
        rows = [row for chunk in selection.chunks(learned=True) for row in chunk]
        retrieval, found = Retrieval(request, self._run.source, self._lineage.content), dict[int, Sample]()
        scope = RequestScope(
            request, learned=len(rows), passed=len(rows), forgotten_before=False, chunks=lambda: iter([rows])
        )
        stored = self._run.select_statistics(selection)
        context = Context(
            learner,
            scope,
            lambda chunk: [found[row.offset] for row in chunk],
            unavailable=retrieval.unavailable,
            changed_features=self._features.probes([rows]),
            statistics=stored,
            drift=self._features.rows,
        )
        if reason := self._method.unsupported_reason(request, context) or retrieval.unavailable:
            raise ForgettingError(reason)
        found.update(zip((row.offset for row in rows), retrieval.samples(rows), strict=True))
        before = learner.state_dict()
        try:
            self._method.erase(request, context)
            drop_emptied(learner, selection.emptied.unlearned)
        except (StreamclError, ValueError, OSError) as error:
            learner.load_state_dict(before)
            if stored is not None:
                stored.rollback()
            raise error if isinstance(error, ForgettingError) else ForgettingError(str(error)) from error
        self._run.finish_statistics(stored)
        return list(found.items())
