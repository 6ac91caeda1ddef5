"""Exact erasure by retraining: the stream is learned again from a checkpoint older than the samples."""

from __future__ import annotations

from streamcl.errors import ForgettingError
from streamcl.events import ForgetRequest
from streamcl.forgetting.methods.protocol import SHARED_PARTS, Context, DataLocation, ErasureResult
from streamcl.requests.terms import Guarantee

HAS_SUMS = "samples are subtracted from this learner's statistics, which needs no replay"
NO_REPLAY = "this run cannot learn its stream again"

REPLAY_RESIDUAL = (
    "None in the model: it is the one of a stream whose source refused these records at their places, on the "
    "same machine with the same software."
)


class ReplayFromCheckpoint:
    """Load the newest checkpoint from before the first record of the request, and learn all later ones again.

    Retraining from a checkpoint, as SISA does it for the slices of a shard (arXiv 1912.03817). The cost is
    known beforehand: the records since that checkpoint, at the pace of learning. It is exact for every
    learner whose state is in the checkpoint, since nothing of it has seen the samples. Logs keep the
    predictions that were made at the time. Learners with statistics are left to methods that subtract.
    """

    name = "replay_from_checkpoint"
    guarantee: Guarantee = "exact"
    cost = 90

    def unsupported_reason(self, request: ForgetRequest, context: Context) -> str | None:  # noqa: ARG002 - the signature is given
        """Return a reason unless the run can be replayed, with features of then, from an older checkpoint."""
        if context.capabilities.statistics is not None:
            return HAS_SUMS
        if context.replay is None:
            return NO_REPLAY
        return context.replay.unsupported_reason or context.changed_features

    def erase(self, request: ForgetRequest, context: Context) -> ErasureResult:  # noqa: ARG002 - the signature is given
        """Replay. Raise ForgettingError where the checkpoint is gone, other errors where the source fails."""
        replay = context.replay
        if replay is None or (start := replay.start) is None:
            raise ForgettingError(NO_REPLAY)
        replay.stream.run(start, replay.end, replay.filter_batch)
        how = f"learned again from the checkpoint at record {start}, without the samples"
        stores = () if context.capabilities.stored_features is None else ("stored features",)
        names = ("head statistics", *SHARED_PARTS, "hard buffer", *stores)
        return ErasureResult(
            self.name,
            self.guarantee,
            REPLAY_RESIDUAL,
            tuple(DataLocation(name, "erased", how) for name in names),
            {"checkpoint_offset": start, "records_replayed": replay.end - start},
        )
