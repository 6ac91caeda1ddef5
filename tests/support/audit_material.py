"""Features with labels on which a small head memorises: noisy labels, few samples for the dimensions."""

from dataclasses import replace

import torch

from streamcl.audit.closed_form_models import ClosedFormModels
from streamcl.audit.data import AuditData, Examples
from streamcl.heads.ridge import RidgeHead
from streamcl.heads.statistics import Statistics
from streamcl.learners.statistics import PerHead

LAMBDA = 1e-2


def draw(generator: torch.Generator, means: torch.Tensor, count: int, noise: float) -> Examples:
    classes, width = means.shape
    labels = torch.randint(0, classes, (count,), generator=generator)
    features = means[labels] + torch.randn(count, width, generator=generator)
    wrong = torch.rand(count, generator=generator) < noise
    other = torch.randint(0, classes, (count,), generator=generator)
    return Examples(features, torch.where(wrong, other, labels))


def noisy(seed: int, *, retain=200, forget=30, test=200, width=120, classes=5, noise=0.3) -> AuditData:
    """A request of kind samples."""
    generator = torch.Generator().manual_seed(seed)
    means = 0.25 * torch.randn(classes, width, generator=generator)
    parts = [draw(generator, means, count, noise) for count in (retain, forget)]
    return AuditData(*parts, draw(generator, means, test, 0.0), classes)


def one_class(seed: int, **sizes) -> AuditData:
    """A request for class 0."""
    whole = noisy(seed, **{"noise": 0.0, **sizes})
    gone, held = whole.retain.labels == 0, whole.test.labels == 0
    return AuditData(
        whole.retain.at(~gone),
        whole.retain.at(gone),
        whole.test.at(~held),
        whole.columns,
        erased_class=0,
        erased_test=whole.test.at(held),
    )


def ridge_heads(*widths: int) -> list[RidgeHead]:
    """Heads of which the options alone count."""
    return [RidgeHead(width, trace_ridge=LAMBDA) for width in widths]


def solver(material: AuditData) -> ClosedFormModels:
    return ClosedFormModels(ridge_heads(material.retain.features.shape[1]), material.columns)


def retrained(material: AuditData) -> PerHead[Statistics]:
    return solver(material).measure(material.retain)


def with_share(material: AuditData, share: float) -> PerHead[Statistics]:
    """The sums with this share of the forgotten samples still, or doubly taken out where it is negative."""
    (kept,) = solver(material).measure(material.forget).heads
    gram = kept.gram.copy()
    gram.add_sum(kept.gram, share - 1.0)
    counts = kept.counts if share > 0 else 0 * kept.counts
    return retrained(material) + PerHead((Statistics(gram, share * kept.Q, counts),))


def masked(statistics: PerHead[Statistics], column: int) -> PerHead[Statistics]:
    """A class that lost its column while its samples stay in the Gram matrix."""
    (known,) = statistics.heads
    Q, counts = known.Q.clone(), known.counts.clone()
    Q[:, column], counts[column] = 0.0, 0
    return PerHead((replace(known, Q=Q, counts=counts),))
