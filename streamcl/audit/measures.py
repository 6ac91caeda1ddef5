"""Measures of models by their outputs: accuracy, membership inference, and distance from retrained models."""

from __future__ import annotations

import numpy as np
from scipy.stats import mannwhitneyu

from streamcl.audit.data import Flags, Floats, Ints, ModelGroup, ModelOutputs

NEIGHBOUR_PAPER = "arXiv 2506.20893"
"""Ebrahimpour-Boroojeny et al.: a model that only lost a class's output gives its samples other probabilities
of the neighbouring classes than a model that never saw it."""
KLOM_PAPER = "arXiv 2410.23232"
"""Georgiev et al., "Attribute-to-Delete", section 3.1; here between fitted normal distributions, which for 64
models are steadier than histograms."""
TUG_OF_WAR_PAPER = "arXiv 2406.01257"
"""Zhao et al., "What makes unlearning hard", equation 1."""
LIRA_PAPER = "arXiv 2112.03570"
"""Carlini et al.: does a model look more like models that learned the sample or like those that did not?"""
U_LIRA_PAPER = "arXiv 2403.01218"
"""Hayes et al.: the same question about models from which the sample was erased."""
U_LIRA_SAMPLES = 100
"""Forgotten samples in U-LiRA: its cost is their number times models times permutations."""
RMIA_PAPER = "arXiv 2312.03262"
"""Zarifzadeh et al., equations 2 to 4, with the offline estimate of p(x) of their section 3.3."""
RMIA_GAMMA, RMIA_A = 1.0, 0.3  # the paper's values for offline attacks


def forget_accuracy(group: ModelGroup) -> Floats:
    """Return [M], the accuracy on forgotten samples; too low betrays an erasure as much as too high."""
    return np.asarray(group.forget.correct.mean(axis=1))


def retain_accuracy(group: ModelGroup) -> Floats:
    """Return [M], the accuracy on those retained samples that each model has learned."""
    learned = group.member.sum(axis=1).clip(min=1)
    return np.asarray((group.retain.correct & group.member).sum(axis=1) / learned)


def test_accuracy(group: ModelGroup) -> Floats:
    """Return [M], the accuracy on held-out samples."""
    return np.asarray(group.test.correct.mean(axis=1))


def forget_loss(group: ModelGroup) -> Floats:
    """Return [M], the mean loss on forgotten samples in nats; far above the references betrays an erasure.

    For an erased class it is the loss of the model's own best class, that is how unsure it is.
    """
    return np.asarray(group.forget.loss.mean(axis=1))


def neighbour_class(references: ModelGroup) -> int | None:
    """Return the column that forgotten samples get most probability of; None for other requests."""
    chances = references.forget.probabilities
    if chances is None:
        return None
    ranked = np.argsort(-chances.mean(axis=(0, 1)))
    held = set(references.test.labels.tolist())
    return next((int(column) for column in ranked if int(column) in held), None)


def neighbour_separability(group: ModelGroup, column: int) -> Floats:
    """Return [M], how well the probability of the neighbour class separates its samples from forgotten ones.

    Area under the ROC curve between the neighbour's held-out samples and the forgotten samples: 0.5 where
    the forgotten class hides in its neighbour, 1 where it stands out.

    Raises:
        ValueError: the group's probabilities were not kept, as the request is not for a class.
    """
    forgotten, held = group.forget.probabilities, group.test.probabilities
    if forgotten is None or held is None:
        raise ValueError("probabilities are only kept for class requests")
    own = held[:, group.test.labels == column, column].astype(np.float64)
    other = forgotten[:, :, column].astype(np.float64)
    wins = mannwhitneyu(own, other, axis=1, method="asymptotic").statistic
    return np.asarray(wins / (own.shape[1] * other.shape[1]))


def lira(group: ModelGroup, references: ModelGroup, unforgotten: ModelGroup) -> Flags:
    """Return [M, N], for which forgotten samples a model looks as if it had learned them.

    Normal densities for each sample; a model that is in a pool is left out of it.
    """
    margin = group.forget.margin
    out = _leave_one_out_moments(references.forget.margin, inside=group is references)
    learned = _leave_one_out_moments(unforgotten.forget.margin, inside=group is unforgotten)
    return np.asarray(_log_density(margin, *learned) > _log_density(margin, *out))


def u_lira(margins: Floats, erased: Flags) -> Floats:
    """Return [B], the accuracy of an attacker who separates erased from retrained models; 0.5 is chance.

    Every model is left out of the densities that judge it; the mean over samples and over both kinds.

    Args:
        margins: [P, N], of all models on the forgotten samples.
        erased: bool [B, P], which of them are the erased ones, in each of B assignments.
    """
    some = margins[:, :: -(-margins.shape[1] // U_LIRA_SAMPLES)]
    centred = some - some.mean(axis=0)
    powers = np.stack([centred, centred**2])  # [2, P, N]
    return np.array([_attack_accuracy(powers, row) for row in erased])


def memorisation(references: ModelGroup, unforgotten: ModelGroup) -> Floats:
    """Return [N], by how many deviations learning a forgotten sample moves its margin.

    After Feldman (arXiv 1906.05271), by margins.
    """
    out, learned = references.forget.margin, unforgotten.forget.margin
    spread = np.sqrt(np.maximum(out.var(axis=0), _variance_floor(out)))
    return np.asarray((learned.mean(axis=0) - out.mean(axis=0)) / spread)


def rmia(group: ModelGroup, references: ModelGroup) -> Floats:
    """Return [M], how often p(x | model) / p(x) beats p(z | model) / p(z), x forgotten and z held out."""
    inside = group is references
    forgotten = _likelihood_ratios(group.forget, references.forget, inside=inside)
    population = np.sort(_likelihood_ratios(group.test, references.test, inside=inside), axis=1)
    beaten = [
        np.searchsorted(z, x / RMIA_GAMMA, side="right") for z, x in zip(population, forgotten, strict=True)
    ]
    return np.array([found.mean() / population.shape[1] for found in beaten])


def klom(margins: Floats, erased: Flags) -> Floats:
    """Return [B], the mean over samples of KL(erased || retrained) in nats; 0 is best.

    Args:
        margins: [P, N], of all models.
        erased: bool [B, P], which of them are the erased ones, in each of B assignments.
    """
    one, other = _moments(margins, erased), _moments(margins, ~erased)
    variances = one[1] / other[1]
    shift = (one[0] - other[0]) ** 2 / other[1]
    divergence: Floats = 0.5 * (variances - 1 - np.log(variances) + shift)
    return np.asarray(divergence.mean(axis=1))


def tug_of_war(group: ModelGroup, references: ModelGroup) -> Floats:
    """Return [M], the product over forget, retain and test of 1 - |accuracy - the references' mean|.

    1 is best. A reference is compared with the other references.
    """
    product = np.ones(len(group))
    for accuracy in (forget_accuracy, retain_accuracy, test_accuracy):
        values, others = accuracy(group), accuracy(references)
        product *= 1 - np.abs(values - _leave_one_out_mean(others, inside=group is references))
    return product


def _leave_one_out_mean(pool: Floats, *, inside: bool) -> Floats:
    """The mean over K models of pool [K, ...]; inside: for each model of the pool, over the others."""
    if not inside:
        return np.asarray(pool.mean(axis=0, keepdims=pool.ndim > 1))
    return np.asarray((pool.sum(axis=0, keepdims=True) - pool) / (len(pool) - 1))


def _variance_floor(pool: Floats) -> float:
    """A millionth of the mean variance over pool [K, N], so that no sample outweighs all others."""
    return 1e-6 * float(pool.var(axis=0).mean()) + 1e-24


def _likelihood_ratios(outputs: ModelOutputs, references: ModelOutputs, *, inside: bool) -> Floats:
    """p(x | model) / p(x), [M, N]."""
    unlearned = _leave_one_out_mean(np.exp(-references.loss), inside=inside)
    ratios: Floats = np.exp(-outputs.loss) / (0.5 * ((1 + RMIA_A) * unlearned + (1 - RMIA_A)))
    return ratios


def _leave_one_out_moments(pool: Floats, *, inside: bool) -> tuple[Floats, Floats]:
    """Mean and variance over the models of pool [K, N]: [1, N], or inside for each model over the others."""
    mean = _leave_one_out_mean(pool, inside=inside)
    square = _leave_one_out_mean(pool**2, inside=inside)
    count = len(pool) - int(inside)
    return mean, np.maximum((square - mean**2) * count / (count - 1), _variance_floor(pool))


def _attack_accuracy(powers: Floats, erased: Flags) -> float:
    """Share of models [P] on the right side, by x and x^2 [2, P, N]."""
    x, total = powers[0], powers.sum(axis=1)  # [P, N], [2, N]
    of_erased = powers[:, erased].sum(axis=1)
    rows = erased[:, None]
    own = np.where(rows, of_erased[:, None], (total - of_erased)[:, None]) - powers  # [2, P, N]
    other = total[:, None] - own - powers
    sizes = np.where(rows, erased.sum(), (~erased).sum())  # [P, 1]
    floor = 1e-6 * float(powers[1].mean()) + 1e-24
    right = _log_density(x, *_normal(own, sizes - 1, floor)) > _log_density(
        x, *_normal(other, len(erased) - sizes, floor)
    )
    return float((right[erased].mean() + right[~erased].mean()) / 2)


def _normal(sums: Floats, count: Ints, floor: float) -> tuple[Floats, Floats]:
    """Mean and variance from sums of x and x^2 [2, P, N] of `count` [P, 1] models."""
    mean = sums[0] / count
    return mean, np.maximum((sums[1] / count - mean**2) * count / (count - 1), floor)


def _log_density(x: Floats, mean: Floats, variance: Floats) -> Floats:
    """Log density of a normal distribution, without its constant."""
    density: Floats = -0.5 * ((x - mean) ** 2 / variance + np.log(variance))
    return density


def _moments(margins: Floats, chosen: Flags) -> tuple[Floats, Floats]:
    """Mean and variance [B, N] over the chosen models of each row of bool [B, P]."""
    share = chosen / chosen.sum(axis=1, keepdims=True)  # [B, P]
    centre = margins.mean(axis=0)
    mean = share @ (margins - centre)
    variance = share @ (margins - centre) ** 2 - mean**2
    return mean + centre, np.maximum(variance, _variance_floor(margins))
