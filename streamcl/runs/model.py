"""The model of a run as an object that names the classes of images, in the manner of scikit-learn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from streamcl.config.options.learner import learner_name
from streamcl.errors import BadRecord, ForgettingError
from streamcl.events import ForgetRequest, Sample
from streamcl.factory.backbone import SharedBackbones
from streamcl.factory.request_image import image_sample, labelled_sample
from streamcl.forgetting.ledger.requests import refuse_unmatched
from streamcl.forgetting.receipts.archive import newest_receipt, read_receipt
from streamcl.forgetting.receipts.receipt import Receipt
from streamcl.protocols import Learner, ProbabilisticLearner
from streamcl.runs.directory import config_of
from streamcl.runs.learner import load_learner
from streamcl.runs.open import open_run
from streamcl.runs.run import Run

ManyImages: TypeAlias = Sequence[Any] | npt.NDArray[Any]
"""Several images, each in any form that a source takes, or one array or tensor of them with four axes."""


class RunModel:
    """The model of a run: it predicts, learns further images, and forgets.

    To predict reads the newest checkpoint and locks nothing, so the run may be going on. The first
    `partial_fit`, `forget` or `save` opens the run, which one process can do at a time, and `close` releases
    it. What was learned is durable with `save`; a `with` block saves at its end, but not after an exception.

    Args:
        run: the run's directory.

    Raises:
        ConfigError: it holds no run.
        CheckpointError: it holds no checkpoint.
    """

    def __init__(self, run: str | PathLike[str]) -> None:
        self.run, self.folder = run, Path(run)
        self._backbones = SharedBackbones()
        self._open: Run | None = None
        self._loaded: Learner | None = None
        self._name = learner_name(config_of(self.folder).learner)
        self._learner  # noqa: B018 - what is wrong with the run is said here

    def __repr__(self) -> str:
        return f"RunModel({str(self.folder)!r}, learner={self._name!r}, classes={len(self.classes)})"

    def __reduce__(self) -> tuple[type[RunModel], tuple[str | PathLike[str]]]:
        """Be pickled as the name of the run: what was not saved stays here."""
        return type(self), (self.run,)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and self._open is not None:
                self.save()
        finally:
            self.close()

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the columns of `predict_proba`."""
        return self._learner.classes

    @property
    def classes_(self) -> npt.NDArray[np.str_]:
        """The same as an array [C], under scikit-learn's name."""
        return np.array(self.classes, dtype=np.str_)

    def predict(self, images: ManyImages) -> list[str | None]:
        """Return the name of each image's class; None where none is known.

        images: several, each in any form that a source takes, or one array or tensor [N, H, W, C] or
            [N, C, H, W], uint8 or floating point in [0, 1].

        Raise BadRecord for what is no image.
        """
        return [each.label for each in self._learner.predict(_samples(images))]

    def predict_proba(self, images: ManyImages) -> npt.NDArray[np.float64]:
        """Return the probability of each class, float64 [N, C] in the order of `classes`.

        images: as for `predict`, for example uint8 [N, H, W, 3].

        A learner that gives no probability of every class has its confidence in the class that it names, and
        divides the rest among the others. Raise BadRecord for what is no image.
        """
        samples = _samples(images)
        if not samples or not self.classes:
            return np.zeros((len(samples), len(self.classes)))
        if isinstance(self._learner, ProbabilisticLearner):
            chances = self._learner.logits(samples).double().softmax(dim=1)
            return np.asarray(chances.cpu().numpy(), np.float64)
        others = max(1, len(self.classes) - 1)
        found = np.empty((len(samples), len(self.classes)))
        for row, each in zip(found, self._learner.predict(samples), strict=True):
            row[:] = (1.0 - each.confidence) / others
            if each.label is not None:
                row[self.classes.index(each.label)] = each.confidence
        return found

    def score(self, images: ManyImages, labels: Sequence[Any]) -> float:
        """Return the share of images whose class is predicted right; NaN of none.

        Args:
            images: [N, ...], as for `predict`.
            labels: the class of each.
        """
        _check_lengths(images, labels)
        pairs = zip(self.predict(images), labels, strict=True)
        hits = [predicted == str(label) for predicted, label in pairs]
        return float(np.mean(hits)) if hits else float("nan")

    def partial_fit(
        self,
        images: ManyImages,
        labels: Sequence[Any],
        *,
        ids: Sequence[str] | None = None,
        subjects: Sequence[str | None] | None = None,
    ) -> Self:
        """Learn labelled images as the run's next records; return the model.

        They pass through the run like all others: predicted first, recorded in its logs and its lineage, and
        a small share is held out. They are in a checkpoint with `save`, or with the next erasure.

        Args:
            images: [N, ...], as for `predict`.
            labels: a name or an integer for each; None for an image that is only predicted.
            ids: names by which images can be forgotten; by default "appended-" and the place in the stream.
            subjects: the persons whose images they are.

        Raises:
            BadRecord: one is no image, or no label; then none was learned.
            RunBusy: another process works on the run.
        """
        for values in (labels, ids, subjects):
            if values is not None:
                _check_lengths(images, values)
        run, count = self._opened(), len(images)
        offset = run.processor.progress.offset
        names = [f"appended-{offset + place}" for place in range(count)] if ids is None else ids
        persons = [None] * count if subjects is None else subjects
        fields = zip(_several(images), labels, names, persons, strict=True)
        samples = [
            labelled_sample(image, _plain(label), name, person) for image, label, name, person in fields
        ]
        size = run.config.batch.largest
        for start in range(0, count, size):
            run.learn(samples[start : start + size])
        return self

    def forget(self, *, images: Mapping[str, Any] | None = None, **request: Any) -> Receipt:
        """Make the model forget what a request selects, and save; return the receipt.

        Args:
            images: samples by their ids, where the source cannot fetch them again; see `samples` there.
            request: the fields of `streamcl.ForgetRequest`, such as `label`, `subject` or `ids`.

        Raises:
            ForgettingError: it is not valid, fits nothing that has passed, was refused, or failed.
            RunBusy: another process works on the run.
        """
        run = self._opened()
        run.processor.commit_pending()  # the lineage on disk then has all that has passed
        if images is not None:
            request["samples"] = tuple(image_sample(image, name) for name, image in images.items())
        refuse_unmatched(run.folder, ForgetRequest(**request))
        name = run.forget(**request)
        run.processor.forget()
        receipt = read_receipt(newest_receipt(run.folder, name))
        if receipt.outcome != "done":
            how = "the erasure failed" if receipt.outcome == "failed" else "the request was refused"
            raise ForgettingError(
                f"{how}: {receipt.reason}", hint="images={id: image} gives what cannot be fetched"
            )
        return receipt

    def save(self) -> None:
        """Commit what was learned; a checkpoint has it on return. A run that had ended is evaluated anew."""
        self._opened().save()

    def close(self) -> None:
        """Release the run. What was not saved is lost: the model is again that of the newest checkpoint."""
        run, self._open = self._open, None
        if run is not None:
            run.close()
            self._loaded = None

    def get_params(self, deep: bool = True) -> dict[str, Any]:  # noqa: ARG002 - of scikit-learn
        """Return the arguments that make this model."""
        return {"run": self.run}

    def set_params(self, **params: Any) -> Self:
        """Become the model of another run. Raise ValueError for other parameters than `run`."""
        if unknown := set(params) - {"run"}:
            raise ValueError(f"{', '.join(sorted(unknown))}: the only parameter is run")
        if params:
            self.close()
            self.__init__(**params)  # type: ignore[misc]
        return self

    @property
    def _learner(self) -> Learner:
        if self._open is not None:
            return self._open.learner
        if self._loaded is None:
            self._loaded, _ = load_learner(self.folder, vit=self._backbones.backbone, fitted=True)
        return self._loaded

    def _opened(self) -> Run:
        """Return the run, opened to learn."""
        if self._open is None:
            config = config_of(self.folder).model_copy(update={"run_dir": str(self.folder)})
            self._open = open_run(config, reopen=False, vit=self._backbones.backbone)
            self._loaded = None
        return self._open


def load(run: str | PathLike[str]) -> RunModel:
    """Return the model that a run has learned so far; the run may be going on.

    Args:
        run: the run's directory.

    Raises:
        ConfigError: it holds no run.
        CheckpointError: it holds no checkpoint.
    """
    return RunModel(run)


def _samples(images: ManyImages) -> list[Sample]:
    return [image_sample(image, f"image-{number}") for number, image in enumerate(_several(images))]


def _several(images: ManyImages) -> ManyImages:
    """Return the images. Raise BadRecord for one image, and for what is no sequence."""
    if isinstance(images, str | bytes | PathLike | Mapping) or not hasattr(images, "__len__"):
        raise BadRecord(f"expected several images, found a {type(images).__name__}", hint="write [image]")
    if getattr(images, "ndim", 4) != 4:
        raise BadRecord(f"expected images with four axes, found {images.ndim}", hint="write [image]")  # type: ignore[union-attr]
    return images


def _check_lengths(images: ManyImages, values: Sequence[Any]) -> None:
    if len(_several(images)) != len(values):
        raise BadRecord(f"{len(images)} images and {len(values)} values for them; expected as many")


def _plain(label: Any) -> Any:
    """Return a label of numpy or torch as Python's own."""
    return label.item() if hasattr(label, "item") else label
