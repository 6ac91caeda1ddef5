"""Measures what a request to forget costs as receipts add up: seconds and bytes, alone and among others.

python benchmarks/forgetting_scale.py OUT [--records 1000000] [--requests 10000] [--results FILE.md]

A ridge head over 16 simulated features learns the records through the whole loop, with log, lineage, ledger
and checkpoints on disk; signed receipts. Each request is for a subject with ten records, which the source
gives again. At some lengths of the chain two requests are carried out alone; in between they come together.
"""

from __future__ import annotations

import argparse
import os
import shutil
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from machine import machine

from streamcl.capabilities.declaration import Capabilities
from streamcl.capabilities.interfaces import LearnedListener, StatisticsPart
from streamcl.errors import ForgettingError
from streamcl.evaluation.holdout import HoldoutEvaluator
from streamcl.evaluation.holdout_history import HoldoutHistory
from streamcl.evaluation.prequential import Prequential
from streamcl.evaluation.throughput import Throughput
from streamcl.events import Batch, ForgetRequest, Prediction, Sample, StepResult, StreamInfo
from streamcl.forgetting.erasure.purging import CheckpointPurger
from streamcl.forgetting.erasure.run_resources import RunResources
from streamcl.forgetting.ledger.ledger import LEDGER, Ledger
from streamcl.forgetting.lineage.lineage import LINEAGE, Lineage
from streamcl.forgetting.methods.closed_form import ClosedFormRemoval
from streamcl.forgetting.methods.no_op import NoOp
from streamcl.forgetting.receipts.archive import receipt_path
from streamcl.forgetting.receipts.verify import ReceiptVerifier
from streamcl.forgetting.service import ForgettingService
from streamcl.nn.device import resolve_compute
from streamcl.processor.loop import StreamProcessor
from streamcl.processor.ports import LoopParts, LoopPolicy
from streamcl.protocols import State
from streamcl.shift.detector import SilentDetector
from streamcl.sinks.jsonl import JsonlSink
from streamcl.storage.checkpoint import Checkpoints
from streamcl.storage.key_folder import KeyFolder
from streamcl.storage.manifest_mac import ManifestMac
from streamcl.storage.private_files import KEYS_VARIABLE

WIDTH, CLASSES = 16, 10
BATCH = 1000
OF_SUBJECT = 10  # records
ALONE = 2  # requests at each length of the chain
COLUMNS = (
    ("receipts before", "{:,}"),
    ("alone, s", "{:.2f}"),
    ("together, ms each", "{:.1f}"),
    ("requests together", "{:,}"),
    ("submitting, ms", "{:.1f}"),
    ("opening the run, s", "{:.2f}"),
    ("verifying one, s", "{:.2f}"),
    ("receipt, bytes", "{:,.0f}"),
    ("ledger, bytes", "{:,.0f}"),
)

Floats = npt.NDArray[np.float64]


def image_of(number: int) -> npt.NDArray[np.uint8]:
    """Return the image of a record, [1, 8, 3], which follows from its number."""
    return np.frombuffer((number * 2654435761 % 2**192).to_bytes(24, "little"), np.uint8).reshape(1, 8, 3)


def sample_of(number: int) -> Sample:
    """Return a record; ten in a row are of one subject."""
    subject = f"subject-{number // OF_SUBJECT:07d}"
    return Sample(f"{subject}-{number:08d}", image_of(number), f"class-{number % CLASSES}", subject)


class SimulatedSource:
    """Records that follow from their numbers, in batches; any of them is given again."""

    replayable = True

    def __init__(self, records: int) -> None:
        self.info = StreamInfo("simulated", length=records)
        self._records, self._next = records, 0

    def __iter__(self) -> Iterator[Batch]:
        while self._next < self._records:
            first, self._next = self._next, min(self._next + BATCH, self._records)
            yield Batch(first, tuple(map(sample_of, range(first, self._next))))

    def fetch(self, ids: Sequence[str]) -> Generator[Sample, None, None]:
        """Yield records by their ids."""
        yield from (sample_of(int(name[-8:])) for name in ids)

    def state_dict(self) -> State:
        """Return the number of the next record."""
        return {"next": self._next}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to that record."""
        self._next = state["next"]

    def close(self) -> None:
        """Do nothing."""


class Sums(NamedTuple):
    """A sum of outer products [D, D], and by class a count and a sum of rows [D]."""

    gram: Floats
    classes: dict[str, tuple[int, Floats]]

    def __add__(self, other: Sums) -> Sums:  # type: ignore[override]
        return Sums(self.gram + other.gram, _added(self.classes, other.classes, 1))

    def relative_error(self, other: Sums) -> float:
        """Return the largest difference of an entry."""
        return float(np.abs(self.gram - other.gram).max())


class SimulatedRidge:
    """A ridge head over rows that are a fixed projection of the pixels."""

    widths = (WIDTH,)

    def __init__(self) -> None:
        self._projection = np.random.default_rng(0).standard_normal((24, WIDTH)) / 5
        self._sums = Sums(np.zeros((WIDTH, WIDTH)), {})
        self._listeners: list[LearnedListener] = []

    @property
    def capabilities(self) -> Capabilities:
        """Statistics by rows, and classes that can be dropped."""
        return Capabilities(statistics=self, drop_class=self._drop)

    @property
    def by_rows(self) -> SimulatedRidge:
        """Itself."""
        return self

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes learned."""
        return tuple(self._sums.classes)

    def on_learned(self, listener: LearnedListener) -> None:
        """Call the listener after each batch."""
        self._listeners.append(listener)

    def rows_of(self, samples: Sequence[Sample]) -> tuple[Floats]:
        """Return rows [n, D]."""
        pixels = np.stack([sample.image for sample in samples]).reshape(len(samples), 24) / 255
        return (pixels @ self._projection,)

    def of(self, samples: Sequence[Sample]) -> Sums:
        """Return the sums of samples."""
        (rows,) = self.rows_of(samples)
        labels = np.array([str(sample.label) for sample in samples])
        found = {str(name): rows[labels == name] for name in np.unique(labels)}
        return Sums(rows.T @ rows, {name: (len(each), each.sum(0)) for name, each in found.items()})

    def from_parts(self, parts: Sequence[Iterable[StatisticsPart]]) -> Sums:
        """Return the sums of parts."""
        total = Sums(np.zeros((WIDTH, WIDTH)), {})
        for rows, sums in parts[0]:
            total = total + Sums(rows.T @ rows, dict(sums))
        return total

    def subtract(self, value: Sums) -> Mapping[str, Any]:
        """Subtract sums."""
        left = _added(self._sums.classes, value.classes, -1)
        if any(count < 0 for count, _ in left.values()):
            raise ForgettingError("more samples were to be subtracted than were learned")
        self._sums = Sums(self._sums.gram - value.gram, left)
        total = sum(n for n, _ in left.values())
        rounding = np.finfo(float).eps * self._sums.gram.diagonal().max() * total**0.5
        return {
            "samples_left": total,
            "smallest_eigenvalue_over_lambda": float(np.linalg.eigvalsh(self._sums.gram + np.eye(WIDTH))[0]),
            "rounding_over_lambda": float(rounding),
        }

    def predict(self, samples: Sequence[Sample]) -> tuple[Prediction, ...]:
        """Return the class of the largest score."""
        if not self._sums.classes:
            return (Prediction(None, 0.0),) * len(samples)
        targets = np.stack([sums for _, sums in self._sums.classes.values()], axis=1)
        (rows,) = self.rows_of(samples)
        scores = rows @ np.linalg.solve(self._sums.gram + np.eye(WIDTH), targets)
        best = scores.argmax(1)
        return tuple(Prediction(self.classes[k], 0.5) for k in best)

    def learn(self, batch: Batch) -> StepResult:
        """Add a batch to the sums."""
        predictions, (rows,) = self.predict(batch.samples), self.rows_of(batch.samples)
        self._sums = self._sums + self.of(batch.samples)
        for listener in self._listeners:
            listener(batch.samples, [rows])
        return StepResult(predictions, (1.0,) * len(batch.samples), learned=batch.labelled_offsets)

    def consolidate(self) -> Mapping[str, Any]:
        """Do nothing."""
        return {}

    def state_dict(self) -> State:
        """Return the sums."""
        classes = {name: [count, sums] for name, (count, sums) in self._sums.classes.items()}
        return {"gram": self._sums.gram, "classes": classes}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take sums over."""
        classes = {name: (int(count), np.asarray(sums)) for name, (count, sums) in state["classes"].items()}
        self._sums = Sums(np.asarray(state["gram"]), classes)

    def _drop(self, name: str) -> None:
        del self._sums.classes[name]


def _added(
    one: Mapping[str, tuple[int, Floats]], other: Mapping[str, tuple[int, Floats]], sign: int
) -> dict[str, tuple[int, Floats]]:
    nothing = (0, np.zeros(WIDTH))
    names = dict.fromkeys([*one, *other])
    pairs = {name: (one.get(name, nothing), other.get(name, nothing)) for name in names}
    return {name: (a[0] + sign * b[0], a[1] + sign * b[1]) for name, (a, b) in pairs.items()}


@dataclass
class OpenRun:
    """A run in a folder, opened anew or where it stopped."""

    folder: Path
    keys: KeyFolder
    ledger: Ledger
    forgetting: ForgettingService
    processor: StreamProcessor


def open_run(folder: Path, keys: KeyFolder, records: int, stack: ExitStack) -> OpenRun:
    """Return the run in a folder; `stack` closes its files."""
    folder.mkdir(exist_ok=True)
    learner, source = SimulatedRidge(), SimulatedSource(records)
    ledger = stack.enter_context(Ledger(folder / LEDGER))
    lineage = stack.enter_context(closing(Lineage(folder / LINEAGE)))
    sink = stack.enter_context(closing(JsonlSink(folder)))
    store, scores = Checkpoints(folder / "checkpoints", fingerprint={}, mac=ManifestMac()), Prequential()
    history = HoldoutHistory()
    resources = RunResources(
        folder,
        learner,
        source,
        scores,
        history,
        sink,
        checkpoints=CheckpointPurger(store),
        signing_key=keys.key_in_use,
    )
    forgetting = ForgettingService(resources, ledger, lineage, [NoOp(), ClosedFormRemoval()])
    parts = LoopParts(
        detector=SilentDetector(),
        scores=scores,
        history=history,
        evaluator=HoldoutEvaluator([]),
        meter=Throughput(),
        sink=sink,
        checkpoints=store,
        forgetting=forgetting,
    )
    processor = StreamProcessor(source, learner, parts, LoopPolicy(commit_every=100 * BATCH))
    found = store.latest()
    processor.begin() if found is None else processor.restore(found.state)
    return OpenRun(folder, keys, ledger, forgetting, processor)


class Measurement:
    """Carries requests out, one subject after the other, and measures them."""

    def __init__(self, folder: Path, records: int) -> None:
        self.folder, self.records, self.carried_out = folder / "run", records, 0
        os.environ[KEYS_VARIABLE] = str(folder / "keys")  # no secret of the user's is used
        self.keys = KeyFolder(folder / "keys")
        self.keys.create()

    def fill(self) -> float:
        """Learn all records; return the seconds."""
        with ExitStack() as stack:
            run = open_run(self.folder, self.keys, self.records, stack)
            return _seconds(lambda: sum(1 for _ in run.processor.run()))

    def row(self, more: int) -> list[float]:
        """Measure at the present length of the chain, and carry out `more` requests together."""
        before = self.carried_out
        with ExitStack() as stack:
            began = time.perf_counter()
            run = open_run(self.folder, self.keys, self.records, stack)
            opening = time.perf_counter() - began
            submitting = [self._submit(run)]
            opening += _seconds(run.processor.forget)  # the first receipt of a process finds its place
            alone = []
            for _ in range(ALONE):
                submitting.append(self._submit(run))
                alone.append(_seconds(run.processor.forget))
            newest = receipt_path(self.folder, f"r{self.carried_out - 1}")
            sizes = [newest.with_suffix(each).stat().st_size for each in (".json", ".dsse", ".html")]
            verifying = _seconds(lambda: ReceiptVerifier(self.keys.public_keys()).verify(newest))
            submitting += [self._submit(run) for _ in range(more)]
            together = _seconds(run.processor.forget) / more if more else float("nan")
            run.ledger.refresh()
            assert not run.ledger.pending()
            assert not run.ledger.failed()
        ledger = (self.folder / LEDGER).stat().st_size / self.carried_out
        timings = [median(alone), 1e3 * together, more, 1e3 * median(submitting), opening, verifying]
        return [before, *timings, sum(sizes), ledger]

    def _submit(self, run: OpenRun) -> float:
        number = self.carried_out
        self.carried_out += 1
        request = ForgetRequest(subject=f"subject-{number:07d}", id=f"r{number}", key=f"key-{number}")
        return _seconds(lambda: run.forgetting.submit(request))


def main() -> None:
    """Fill a run, carry requests out, print a table."""
    arguments = _arguments()
    if arguments.out.exists():
        shutil.rmtree(arguments.out)
    arguments.out.mkdir(parents=True)
    measured = Measurement(arguments.out, arguments.records)
    seconds, conditions = measured.fill(), machine(resolve_compute("cpu", "32-true"))
    lines = [f"{arguments.records:,} records learned in {seconds:.0f} s; {conditions}"]
    print(lines[0], flush=True)
    names = [name for name, _ in COLUMNS]
    lines += ["", "| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    print("\n".join(lines[1:]), flush=True)
    while measured.carried_out < arguments.requests:
        more = min(arguments.step, arguments.requests - measured.carried_out - ALONE - 1)
        values = zip(COLUMNS, measured.row(max(0, more)), strict=True)
        lines.append("| " + " | ".join(form.format(value) for (_, form), value in values) + " |")
        print(lines[-1], flush=True)
    if arguments.results is not None:
        arguments.results.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _seconds(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--step", type=int, default=2500, help="requests between two rows of the table")
    parser.add_argument("--results", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
