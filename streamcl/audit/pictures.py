"""A page of pictures that the state of a run can still give back: erased, learned and never learned ones."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from streamcl.audit.image_measures import levels_of, psnr
from streamcl.audit.stream_split import (
    ReceiptScope,
    find_receipt,
    labelled_held_out,
    retained_labels,
    with_offsets,
)
from streamcl.capabilities.declaration import capabilities_of
from streamcl.capabilities.interfaces import ReconstructsImages
from streamcl.errors import ConfigError, ForgettingError
from streamcl.events import Batch, Sample
from streamcl.factory.source import build_source
from streamcl.forgetting.ledger.ledger import LEDGER, Ledger
from streamcl.forgetting.receipts import archive
from streamcl.heads.patch_decoder import PatchSums
from streamcl.protocols import Source
from streamcl.runs.learner import load_run
from streamcl.storage import files

SHOWN = 12
"""Pictures of each kind on the page."""

GREY = 0.5
"""The value of a hidden patch in the picture that the backbone sees."""

SHEET_TITLES: Mapping[str, str] = {
    "erased": "Erased",
    "learned": "Learned",
    "never learned": "Never learned (held out)",
}


@dataclass(frozen=True, slots=True)
class CompletedPicture:
    """One image: as it is, with patches hidden, and completed by two states. Pictures are PNG in base64.

    unseen, seen: completed by the state without the image, and with it. decibels: PSNR of each over the
    hidden patches.
    """

    original: str
    hidden: str
    unseen: str
    seen: str
    decibels: tuple[float, float]

    @property
    def gain(self) -> float:
        """The dB that learning the image itself adds."""
        return self.decibels[1] - self.decibels[0]


@dataclass(frozen=True, slots=True)
class PictureSheet:
    """The pictures of one kind. is_seen: whether the state of the run has learned them."""

    title: str
    is_seen: bool
    pictures: tuple[CompletedPicture, ...]

    @property
    def given_back(self) -> float:
        """The mean PSNR of the pictures that the state of the run gives back, in dB."""
        return float(np.mean([each.decibels[self.is_seen] for each in self.pictures]))

    @property
    def gain(self) -> float:
        """The dB that learning an image adds, the mean."""
        return float(np.mean([each.gain for each in self.pictures]))


def picture_sheets(folder: Path, *, request: str | None = None, seed: int = 0) -> list[PictureSheet]:
    """Return what the newest checkpoint of a run gives back of images of its stream, which is read again.

    Half of each image is hidden, and completed by the decoder of the state and by the same decoder with the
    image's own share added or subtracted.

    Args:
        folder: of the run.
        request: id of the erasure; the last one by default. Without any there are no erased images.
        seed: of the choice among learned images.

    Raises:
        ForgettingError: the learner gives back no pictures, or there is no such receipt.
    """
    run = load_run(folder)
    if (reconstruction := capabilities_of(run.learner).reconstruction) is None:
        raise ForgettingError(
            "this learner has no decoder of pictures",
            hint="learner: reconstruct learns one beside its classes",
        )
    kept = retained_labels(folder)
    rng = np.random.default_rng(seed)
    drawn = set(rng.choice(sorted(kept), min(SHOWN, len(kept)), replace=False).tolist())
    found: dict[str, list[Sample]] = {name: [] for name in SHEET_TITLES}
    with closing(build_source(run.config)) as source, Ledger(folder / LEDGER) as ledger:
        if not source.replayable:
            raise ForgettingError("the stream cannot be read again, so there are no pictures to complete")
        scope = _erased(folder, request, ledger)
        for offset, sample in _until(source, max([*kept, 0 if scope is None else scope.end - 1])):
            if offset in drawn:
                found["learned"].append(sample)
            elif scope is not None and offset not in kept and scope.contains(offset, sample):
                found["erased"] += [sample][: SHOWN - len(found["erased"])]
        found["never learned"] = labelled_held_out(source.info.holdout or run.held_out, SHOWN)
    return [
        PictureSheet(
            SHEET_TITLES[name],
            name == "learned",
            tuple(_completed(reconstruction, samples, name == "learned")),
        )
        for name, samples in found.items()
        if samples
    ]


def write_pictures(
    folder: Path, path: Path, *, request: str | None = None, seed: int = 0
) -> list[PictureSheet]:
    """Write the pictures as one HTML page that loads nothing; return them. See `picture_sheets`.

    Raises:
        ConfigError: the page would lie in the run's directory, from which images were erased.
    """
    if path.resolve().is_relative_to(folder.resolve()):
        raise ConfigError(
            f"{path} lies in the run directory, and the page holds images that were erased from it",
            hint="name a file elsewhere, and delete it once it has been looked at",
        )
    sheets = picture_sheets(folder, request=request, seed=seed)
    template = archive.html_environment("audit").get_template("pictures.html.j2")
    page = template.render(css=archive.report_css(), run=folder.name, sheets=sheets, lines=summary(sheets))
    files.atomic_write(path, page.encode())
    return sheets


def summary(sheets: Sequence[PictureSheet]) -> list[str]:
    """Return a sentence for each kind of picture."""
    return [
        f"{sheet.title}: {len(sheet.pictures)} pictures, {sheet.given_back:.2f} dB as the state gives them "
        f"back; learning a picture itself {'added' if sheet.is_seen else 'would add'} {sheet.gain:+.2f} dB."
        for sheet in sheets
    ]


def _erased(folder: Path, request: str | None, ledger: Ledger) -> ReceiptScope | None:
    """Return the samples that a request has erased; None where none is named and none was carried out."""
    if request is None and not any(r.outcome == "done" for _, r in archive.read_receipts(folder)):
        return None
    return ReceiptScope(find_receipt(folder, request), ledger.fingerprint)


def _until(source: Source, last: int) -> Iterator[tuple[int, Sample]]:
    """Yield the samples of a source with their offsets, up to an offset."""
    for batch in source:
        if isinstance(batch, Batch):
            yield from with_offsets(batch)
            if batch.end > last:
                return


def _completed(
    reconstruction: ReconstructsImages, samples: Sequence[Sample], is_seen: bool
) -> Iterator[CompletedPicture]:
    """Yield each image completed by the state with and without it.

    is_seen: whether the state has learned them.
    """
    every, decoder = reconstruction.read(samples), reconstruction.decoder
    for row in range(len(samples)):
        hidden = every.at(slice(row, row + 1))
        own = PatchSums.of(hidden)
        sums = decoder.sums
        without, including = (sums - own, sums) if is_seen else (sums, sums + own)
        pixels = [decoder.decode(hidden.contexts, decoder.weights(each)) for each in (without, including)]
        decibels = [float(psnr(each, hidden.pixels)) for each in pixels]
        shown = [hidden.patches, hidden.filled(torch.full_like(hidden.pixels, GREY))]
        shown += [hidden.filled(each) for each in pixels]
        original, seen, *completed = (_png(reconstruction.pictures(each)[0]) for each in shown)
        yield CompletedPicture(original, seen, completed[0], completed[1], (decibels[0], decibels[1]))


def _png(picture: Tensor) -> str:
    """Return a picture [H, W, 3] between 0 and 1 as a PNG in base64."""
    file = io.BytesIO()
    Image.fromarray(levels_of(picture)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
