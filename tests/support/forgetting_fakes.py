"""A learner that can forget, and a run of it on disk, without torch: fast enough to be killed everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from loop_runs import StoppedClock

from streamcl.capabilities.declaration import Capabilities
from streamcl.errors import ForgettingError
from streamcl.evaluation.holdout import HoldoutEvaluator
from streamcl.evaluation.holdout_history import HoldoutHistory
from streamcl.evaluation.prequential import Prequential
from streamcl.events import HoldoutPart
from streamcl.forgetting.erasure.purging import CheckpointPurger
from streamcl.forgetting.erasure.run_resources import RunResources
from streamcl.forgetting.ledger.ledger import LEDGER, Ledger
from streamcl.forgetting.lineage.lineage import LINEAGE, Lineage
from streamcl.forgetting.methods.closed_form import ClosedFormRemoval
from streamcl.forgetting.methods.head_only import HeadOnly
from streamcl.forgetting.methods.no_op import NoOp
from streamcl.forgetting.receipts.archive import no_signing_key
from streamcl.forgetting.service import ForgettingService
from streamcl.forgetting.statistics.store import STATISTICS, StatisticsStore
from streamcl.processor.loop import StreamProcessor
from streamcl.processor.ports import LoopParts, LoopPolicy
from streamcl.sinks.jsonl import JsonlSink
from streamcl.storage.checkpoint import Checkpoints
from streamcl.storage.manifest_mac import ManifestMac
from streamcl.storage.thumbnails import Thumbnails
from streamcl.testing import FakeLearner, FaultyDisk


class Ids(tuple):
    """Ids and labels of samples as statistics."""

    def __add__(self, other):
        return Ids((*self, *other))

    def relative_error(self, other):
        return float(sorted(self) != sorted(other))


class ForgettingLearner(FakeLearner):
    """Its statistics are the ids it consumed, so what was subtracted can be read off."""

    by_rows = None

    @property
    def capabilities(self):
        return Capabilities(statistics=self, drop_class=self.drop_class)

    def of(self, samples):
        return Ids((sample.id, sample.label) for sample in samples)

    def subtract(self, value):
        left = list(self.consumed)
        for name, _ in value:
            if name not in left:
                raise ForgettingError("a sample was to be subtracted twice")
            left.remove(name)
        for _, label in value:
            self._counts[label] -= 1
        self.consumed = left
        return {"samples_left": len(left)}

    def drop_class(self, name):
        if self._counts.pop(name):
            raise ForgettingError("it still has samples")


class Sums(NamedTuple):
    """A sum of outer products [3, 3], and samples by class."""

    gram: np.ndarray
    counts: dict[str, int]

    def __add__(self, other):
        counts = {
            name: self.counts.get(name, 0) + other.counts.get(name, 0) for name in {**self[1], **other[1]}
        }
        return Sums(self.gram + other.gram, counts)

    def relative_error(self, other):
        return float(np.abs(self.gram - other.gram).max())


class RowsLearner(ForgettingLearner):
    """Its statistics are sums over rows, which it reports; which samples they were cannot be read off."""

    widths = (3,)

    def __init__(self, **options):
        super().__init__(**options)
        self.gram = np.zeros((3, 3))
        self.listeners = []

    @property
    def by_rows(self):
        return self

    def on_learned(self, listener):
        self.listeners.append(listener)

    def rows_of(self, samples):
        return (np.array([[1.0, int(s.id) % 7, int(s.id) % 5] for s in samples]),)

    def learn(self, batch):
        lesson = super().learn(batch)
        self.consumed = []
        if lesson.learned:
            (rows,) = self.rows_of(batch.labelled)
            self.gram += rows.T @ rows
            for listener in self.listeners:
                listener(batch.labelled, [rows])
        return lesson

    def from_parts(self, parts):
        gram, counts = np.zeros((3, 3)), {}
        for rows, sums in parts[0]:
            gram += rows.T @ rows
            for name, (count, _) in sums.items():
                counts[name] = counts.get(name, 0) + count
        return Sums(gram, counts)

    def subtract(self, value):
        if any(self._counts[name] < count for name, count in value.counts.items()):
            raise ForgettingError("more samples were to be subtracted than learned")
        self.gram = self.gram - value.gram
        self._counts = {name: count - value.counts.get(name, 0) for name, count in self._counts.items()}
        return {"samples_left": sum(self._counts.values())}

    def state_dict(self):
        return super().state_dict() | {"gram": self.gram.copy()}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.gram = state["gram"].copy()


class Detector:
    """Shifts at the first update of every four, consolidates at the third."""

    def __init__(self):
        self.count = 0

    def update(self, loss):
        self.count += 1

    @property
    def shift(self):
        return "scripted" if self.count % 4 == 1 else None

    @property
    def plateau(self):
        return "scripted" if self.count % 4 == 3 else None

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


class Opened:
    """A run of the fake learner in a folder: opened anew or where it stopped, like open_run does."""

    def __init__(
        self,
        folder: Path,
        source,
        *,
        learner=None,
        schedule=(),
        disk=None,
        commit_every=8,
        keep=2,
        methods=(),
        held_out=(),
        by=None,
        signing_key=no_signing_key,
        clock=lambda: 2000.0,
    ):
        folder.mkdir(exist_ok=True)
        disk = disk or FaultyDisk()  # without faults: its syncs cost nothing
        self.folder = folder
        self.learner = learner or ForgettingLearner()
        self.ledger = Ledger(folder / LEDGER, clock=lambda: 1000.0)
        self.lineage = Lineage(folder / LINEAGE)
        self.sink = JsonlSink(folder, disk=disk)
        vault = Checkpoints(folder / "checkpoints", fingerprint={}, keep=keep, disk=disk, mac=ManifestMac())
        scores, history = Prequential(), HoldoutHistory()
        gallery = Thumbnails(folder / "samples", 3, disk=disk)
        self.kept = None
        if by is not None:
            self.kept = StatisticsStore(folder / STATISTICS, by, digest=self.lineage.digest, keep=keep)
            self.learner.capabilities.statistics.by_rows.on_learned(self.kept.add)
        resources = RunResources(
            folder,
            self.learner,
            source,
            scores,
            history,
            self.sink,
            thumbnails=gallery,
            checkpoints=CheckpointPurger(vault),
            statistics=self.kept,
            relapse=monitor_of(self.ledger, held_out) if held_out else None,
            signing_key=signing_key,
            disk=disk,
        )
        self.forgetting = ForgettingService(
            resources,
            self.ledger,
            self.lineage,
            [NoOp(), ClosedFormRemoval(), HeadOnly(), *methods],
            schedule=schedule,
            clock=clock,
        )
        self.processor = StreamProcessor(
            source,
            self.learner,
            LoopParts(
                detector=Detector(),
                scores=scores,
                history=history,
                evaluator=HoldoutEvaluator([]),
                meter=StoppedClock(),
                sink=self.sink,
                thumbnails=gallery,
                checkpoints=vault,
                forgetting=self.forgetting,
                request_intake=self.forgetting,
                relapse_tester=self.forgetting,
            ),
            LoopPolicy(commit_every=commit_every),
        )
        vault.sweep()
        found = vault.latest()
        self.processor.begin() if found is None else self.processor.restore(found.state)

    def run(self):
        return list(self.processor.run())

    def close(self):
        self.sink.close()
        self.lineage.close()
        self.ledger.close()
        if self.kept is not None:
            self.kept.file.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def monitor_of(ledger, held_out):
    """What tests erasures again; it brings torch."""
    from streamcl.forgetting.monitoring.held_out import HeldOutSamples
    from streamcl.forgetting.monitoring.relapse import RelapseMonitor

    return RelapseMonitor(ledger.erased_by, HeldOutSamples([HoldoutPart("held out", held_out)]))


def holds(folder: Path, *texts: str) -> dict[str, list[str]]:
    """Which files of a folder hold one of the texts, byte for byte; a number in JSON only in quotes."""
    found: dict[str, list[str]] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            for text in texts:
                quoted = text.isdigit() and path.suffix in {".json", ".jsonl"}  # 0.000001 is no id
                if (f'"{text}"' if quoted else text).encode() in content:
                    found.setdefault(path.name, []).append(text)
    return found
