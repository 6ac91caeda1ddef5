"""Models of a run's stream, made by running it again: the references of learners that keep no sums."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, TypeVar

from streamcl.audit.retold import Retold
from streamcl.config.options.outputs import EvaluateOptions, ReportOptions
from streamcl.config.options.run import RunConfig
from streamcl.distributed.process_group import SINGLE_PROCESS
from streamcl.events import ForgetRequest
from streamcl.factory.source import build_source
from streamcl.forgetting.receipts.receipt import read_chain
from streamcl.nn.backbone import Backbone
from streamcl.protocols import Learner
from streamcl.runs.assemble import assemble
from streamcl.runs.resume import begin_or_restore
from streamcl.storage.files import TEMPORARY, discard

Model = TypeVar("Model")
MARK = f"{TEMPORARY}audit-"
SILENT = EvaluateOptions(every=None, at_parts=False, max_per_part=None, final=False)


@dataclass(frozen=True, slots=True)
class Reruns:
    """Runs a stream again with the run's own configuration, seed included, in a folder that is removed.

    The seed stays the run's, so that references differ from it by what they have learned alone, and an
    erasure is judged beside the closest models that there are. The folder is a temporary of the run's
    directory: what a crash leaves of it goes when the run is next opened or audited.
    end: the offset where the stream is left.
    """

    config: RunConfig
    folder: Path
    backbone: Backbone
    end: int

    def model(
        self,
        label: Callable[[int], str | None],
        then: Callable[[Learner], Model],
        request: ForgetRequest | None = None,
        before: Callable[[Learner], None] | None = None,
    ) -> Model | None:
        """What `then` makes of the learner of one more run, in which samples are learned as `label` says.

        request: carried out at its offset, and `before` called just before. None where that ended in anything
        but an erasure.
        """
        folder = Path(mkdtemp(prefix=f"{MARK}{os.getpid()}-", dir=self.folder))
        with ExitStack() as stack:
            stack.callback(discard, folder)

            def on_request() -> None:
                if before is not None:
                    before(run.learner)

            run, _ = assemble(
                self._settings(folder),
                folder,
                stack,
                vit=lambda *_: self.backbone,
                group=SINGLE_PROCESS,
                stream=lambda *asked: Retold(build_source(*asked), label, self.end, request, on_request),
            )
            begin_or_restore(run, None)
            for _ in run:
                pass
            if request is not None and not _was_erased(folder, request):
                return None
            return then(run.learner)

    def _settings(self, folder: Path) -> RunConfig:
        changed: Mapping[str, Any] = {
            "run_dir": str(folder),
            "checkpoint": None,
            "statistics": None,
            "evaluate": SILENT,
            "report": ReportOptions(samples=0, title=None),
            "forget": [],
            "sinks": [],
        }
        return self.config.model_copy(update=changed)


def sweep_killed(folder: Path) -> None:
    """Remove what audits that were killed have left in a run's directory; those under way keep theirs."""
    for path in folder.glob(f"{MARK}*"):
        owner = path.name.removeprefix(MARK).partition("-")[0]
        if not (owner.isdigit() and _is_alive(int(owner))):
            discard(path)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # somebody else's
    return True


def _was_erased(folder: Path, request: ForgetRequest) -> bool:
    ended = {content["request"]: content["outcome"] for _, content in read_chain(folder)}
    return ended.get(request.id) == "done"
