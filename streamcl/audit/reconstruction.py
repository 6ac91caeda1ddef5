"""Audits what a learner can give back of erased images, beside decoders solved without them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from streamcl.audit import image_measures
from streamcl.audit.data import MIN_MODELS, AuditConfig
from streamcl.audit.report import AuditReport
from streamcl.audit.significance import MeasureResult, compare_with_references, with_outcomes
from streamcl.audit.stream_split import ReceiptScope, batches_to_audit, in_chunks, with_offsets
from streamcl.capabilities.interfaces import ReconstructsImages
from streamcl.errors import ForgettingError
from streamcl.events import Sample
from streamcl.heads.patch_decoder import HiddenPatches, PatchSums
from streamcl.protocols import ProbabilisticLearner, Source

MAX_PICTURES = 64
"""Images of each kind that every model completes; those of each model go through the backbone."""

Embed: TypeAlias = Callable[[Sequence[Sample]], Tensor]
"""Frozen features, float [N, F], of N samples."""


@dataclass(frozen=True, slots=True)
class PictureEvaluator:
    """Measures how well hidden patches are filled in.

    Attributes:
        reconstruction: of the learner, which reads images and puts pictures together.
        embed: the frozen features of pictures.
        classifier: names their classes, for the class score.
    """

    reconstruction: ReconstructsImages
    embed: Embed
    classifier: ProbabilisticLearner

    def signal(self, hidden: HiddenPatches, pixels: Tensor) -> float:
        """Return the mean PSNR in dB over the hidden patches of images.

        Args:
            hidden: the patches as they are.
            pixels: [B, M, V], as they are filled in.
        """
        return float(image_measures.psnr(pixels, hidden.pixels).mean())

    def features(self, patches: Tensor) -> Tensor:
        """Return the frozen features [B, F] of pictures.

        Args:
            patches: [B, N, V], all their patches.
        """
        return self.embed(_as_samples(self.reconstruction.pictures(patches)))

    def measure(self, hidden: HiddenPatches, pixels: Tensor, true_features: Tensor) -> dict[str, float]:
        """Return every measure of pictures that are completed, by its name.

        Args:
            hidden: the patches as they are.
            pixels: [B, M, V], as they are filled in.
            true_features: [B, F], of the pictures as they are.
        """
        true = self.reconstruction.pictures(hidden.patches)
        shown = self.reconstruction.pictures(hidden.filled(pixels))
        samples = _as_samples(shown)
        features = self.embed(samples)
        logits = torch.as_tensor(self.classifier.logits(samples))
        return {
            "PSNR": self.signal(hidden, pixels),
            "SSIM": float(image_measures.ssim(shown, true).mean()),
            "FD-ViT": image_measures.frechet_distance(features, true_features),
            "cosine": image_measures.mean_cosine(features, true_features),
            "class score": image_measures.class_score(logits.softmax(dim=1)) if logits.numel() else 1.0,
        }


PAPERS: Mapping[str, str] = {
    "SSIM": image_measures.SSIM_PAPER,
    "FD-ViT": image_measures.FRECHET_PAPER,
    "class score": image_measures.CLASS_SCORE_PAPER,
}


@dataclass(slots=True)
class DecoderReferences:
    """The sums of a stream: the retained images in parts, of which each reference goes without one.

    Attributes:
        parts: of the retained images, about as many in each.
        forgotten: of the erased ones.
    """

    parts: list[PatchSums]
    forgotten: PatchSums

    @property
    def retained(self) -> PatchSums:
        """The sums of all retained images."""
        return reduce(add, self.parts)

    def references(self) -> Iterator[PatchSums]:
        """Yield the sums of the retained images without one part each."""
        whole = self.retained
        return (whole - part for part in self.parts)

    def unforgotten(self) -> Iterator[PatchSums]:
        """Yield the same with the erased images."""
        return (each + self.forgotten for each in self.references())


class ReconstructionAudit:
    """Reads a stream, and compares the learner's decoder with decoders that never saw the erased images.

    Args:
        reconstruction: of the audited learner.
        evaluator: measures pictures.
        config: settings of the audit: one part of the retained images is `left_out` of each reference.
    """

    def __init__(
        self, reconstruction: ReconstructsImages, evaluator: PictureEvaluator, config: AuditConfig
    ) -> None:
        self._reconstruction, self._evaluator, self._config = reconstruction, evaluator, config
        moments = reconstruction.decoder.sums.moments
        width, values = moments.shape
        empty = PatchSums.empty(width, values, moments.device)
        count = max(MIN_MODELS, round(1 / config.left_out))
        self.sums = DecoderReferences([empty] * count, empty)
        self._kinds: dict[str, list[HiddenPatches]] = {name: [] for name in ("forget", "retain", "test")}
        self._began = time.perf_counter()

    def read(
        self, source: Source, labels: Mapping[int, str], scope: ReceiptScope, held_out: Sequence[Sample]
    ) -> None:
        """Add up the stream's retained and forgotten images, and keep the patches of some.

        Args:
            source: of the run, at its beginning.
            labels: of the retained samples, by offset.
            scope: the forgotten samples.
            held_out: at most MAX_PICTURES samples that no model has learned.
        """
        rng = np.random.default_rng(self._config.seed)
        offsets = sorted(labels)
        parts = dict(zip(offsets, rng.permutation(len(offsets)) % len(self.sums.parts), strict=True))
        drawn = set(rng.choice(offsets, min(MAX_PICTURES, len(offsets)), replace=False).tolist())
        for batch in batches_to_audit(source, labels, scope):
            pairs = list(with_offsets(batch))
            self._add_forgotten([s for o, s in pairs if o not in labels and scope.contains(o, s)])
            for part in sorted({int(parts[o]) for o, _ in pairs if o in labels}):
                mine = [(o, s) for o, s in pairs if o in labels and parts[o] == part]
                hidden = self._reconstruction.read([s for _, s in mine])
                self.sums.parts[part] += PatchSums.of(hidden)
                self._keep("retain", hidden, [i for i, (o, _) in enumerate(mine) if o in drawn])
        for portion in in_chunks(held_out):
            hidden = self._reconstruction.read(portion)
            self._keep("test", hidden, range(len(portion)))

    def report(self, report: AuditReport) -> AuditReport:
        """Return the report of the classifier with the measures of pictures."""
        results, detected = self.results()
        error = self.sums.retained.relative_error(self._reconstruction.decoder.sums)
        return replace(
            report,
            results=with_outcomes([*report.results, *results], self._config.false_alarm_rate),
            unforgotten_detected=report.unforgotten_detected or detected,
            statistics_error=max(error, report.statistics_error or 0.0),
            seconds=report.seconds + time.perf_counter() - self._began,
        )

    def results(self) -> tuple[list[MeasureResult], bool]:
        """Return every measure beside the references, and whether one tells those that never forgot apart."""
        pictures = {name: HiddenPatches.concatenated(parts) for name, parts in self._kinds.items() if parts}
        if "forget" not in pictures:
            raise ForgettingError("none of the forgotten samples is in the stream any more")
        true = self._evaluator.features(pictures["forget"].patches)
        groups = {
            "audited": [self._measure(self._reconstruction.decoder.sums, pictures, true)],
            "retrained": [self._measure(self.sums.retained, pictures, true)],
            "references": [self._measure(each, pictures, true) for each in self.sums.references()],
            "unforgotten": [self._measure(each, pictures, true) for each in self.sums.unforgotten()],
        }
        names = list(groups["audited"][0])
        columns = {
            name: {group: np.array([row[name] for row in rows]) for group, rows in groups.items()}
            for name in names
        }
        found = [_compare(name, values, "audited") for name, values in columns.items()]
        control = [_compare(name, values, "unforgotten") for name, values in columns.items()]
        detected = not all(each.passed for each in with_outcomes(control, self._config.false_alarm_rate))
        return found, detected

    def _measure(
        self, sums: PatchSums, pictures: Mapping[str, HiddenPatches], true_features: Tensor
    ) -> dict[str, float]:
        decoder = self._reconstruction.decoder
        weights = decoder.weights(sums)
        pixels = {name: decoder.decode(each.contexts, weights) for name, each in pictures.items()}
        forgotten = self._evaluator.measure(pictures["forget"], pixels["forget"], true_features)
        others = {
            f"{name} PSNR": self._evaluator.signal(pictures[name], pixels[name])
            for name in ("retain", "test")
            if name in pictures
        }
        return {**{f"forget {name}": value for name, value in forgotten.items()}, **others}

    def _add_forgotten(self, samples: Sequence[Sample]) -> None:
        if samples:
            hidden = self._reconstruction.read(samples)
            self.sums.forgotten += PatchSums.of(hidden)
            free = MAX_PICTURES - sum(map(len, self._kinds["forget"]))
            self._keep("forget", hidden, range(min(free, len(samples))))

    def _keep(self, kind: str, hidden: HiddenPatches, rows: Sequence[int]) -> None:
        if len(rows):
            self._kinds[kind].append(hidden.at(torch.tensor(list(rows))))


def _compare(name: str, values: Mapping[str, np.ndarray], group: str) -> MeasureResult:
    """Return a measure of one group of models beside the references."""
    return compare_with_references(
        name,
        values[group],
        values["references"],
        values["unforgotten"],
        centre=float(values["retrained"][0]) if group == "audited" else None,
        paper=PAPERS.get(name.partition(" ")[2], ""),
    )


def _as_samples(pictures: Tensor) -> list[Sample]:
    levels = image_measures.levels_of(pictures)
    return [Sample(str(number), image) for number, image in enumerate(levels)]
