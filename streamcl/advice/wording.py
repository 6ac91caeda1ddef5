"""An advice as text, as JSON, and as the YAML of the options to change."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from typing import Any

import yaml

from streamcl.advice.advise import Advice, AssessedCandidate
from streamcl.advice.proxies import agreement

ADVICE_COLUMNS = ("", "image_size", "depth", "blocks", "accuracy", "ms", "MB", "")


def advice_text(advice: Advice, config: str) -> str:
    """Return the table of the Pareto front, and the options to change.

    Args:
        advice: of all candidates.
        config: the path of the configuration.
    """
    shown = list(advice.front)
    chosen = advice.nearest if advice.chosen is None else advice.chosen
    if chosen not in shown:
        shown.append(chosen)
    rows = [
        ADVICE_COLUMNS,
        *(_row(advice, place) for place in sorted(shown, key=lambda at: _speed(advice, at))),
    ]
    lines = [_counts(advice), "", *_aligned(rows), "", *_legend(advice), ""]
    if advice.assessed[0].proxies:
        lines += [*_proxies(advice, shown), ""]
    lines += [_verdict(advice), ""]
    return "\n".join([*lines, advice_patch(advice).rstrip(), "", _command(advice, config)])


def advice_json(advice: Advice) -> dict[str, Any]:
    """Return an advice with all candidates as JSON."""
    chosen = None if advice.chosen is None else _fields(advice, advice.chosen)
    return {
        "images": advice.images,
        "classes": advice.classes,
        "rare_classes": list(advice.rare),
        "budget": {
            "latency_ms": _limit(1000 * advice.budget.seconds),
            "memory_mb": _limit(advice.budget.memory / 2**20),
        },
        "latency_error": advice.latency_error,
        "recommended": chosen,
        "nearest": None if advice.chosen is not None else _fields(advice, advice.nearest),
        "patch": advice.shown.patch,
        "set": list(advice.shown.overrides),
        "agreement": advice_agreement(advice),
        "candidates": [_fields(advice, place) for place in range(len(advice.assessed))],
    }


def advice_patch(advice: Advice) -> str:
    """Return the YAML of the options to change, which goes over the configuration."""
    return yaml.safe_dump(advice.shown.patch, sort_keys=False, default_flow_style=None)


def advice_agreement(advice: Advice) -> dict[str, float]:
    """Return Kendall's tau of each proxy with the leave-one-out accuracy; nothing without proxies."""
    return agreement(
        [each.proxies for each in advice.assessed], [each.costs.accuracy for each in advice.assessed]
    )


def _fields(advice: Advice, place: int) -> dict[str, Any]:
    each = advice.assessed[place]
    return {
        "backbone": each.candidate.backbone.name,
        "weights": each.candidate.backbone.weights,
        "image_size": each.candidate.image_size,
        "depth": each.candidate.depth,
        "blocks": list(each.candidate.blocks),
        "accuracy": each.costs.accuracy,
        "standard_error": each.error,
        "latency_ms": 1000 * each.costs.seconds,
        "latency_measured": each.measured,
        "memory_mb": each.costs.memory / 2**20,
        "within_budget": advice.budget.excess(each.costs) <= 1,
        "on_front": place in advice.front,
        "tie": place in advice.ties,
        "proxies": dict(each.proxies),
    }


def _row(advice: Advice, place: int) -> tuple[str, ...]:
    each = advice.assessed[place]
    mark = ">" if place == advice.chosen else ""
    backbones = {other.candidate.backbone for other in advice.assessed}
    note = each.candidate.backbone.name if len(backbones) > 1 else ""
    if advice.budget.excess(each.costs) > 1:
        note = f"{note} over the budget".strip()
    elif place in advice.ties:
        note = f"{note} tie".strip()
    return (
        mark,
        str(each.candidate.image_size),
        str(each.candidate.depth),
        ",".join(map(str, each.candidate.blocks)),
        f"{100 * each.costs.accuracy:.1f} ± {100 * each.error:.1f} %",
        f"{1000 * each.costs.seconds:.1f}{'' if each.measured else ' (model)'}",
        f"{each.costs.memory / 2**20:.0f}",
        note,
    )


def _proxies(advice: Advice, shown: Sequence[int]) -> list[str]:
    """Return the proxies of the candidates that are shown, and how far they agree with the accuracies."""
    names = list(advice.assessed[0].proxies)
    rows = [("image_size", "depth", "blocks", *names)]
    for place in sorted(shown, key=lambda at: _speed(advice, at)):
        each = advice.assessed[place]
        found, made = each.candidate, [f"{each.proxies[name]:.4g}" for name in names]
        rows.append((str(found.image_size), str(found.depth), ",".join(map(str, found.blocks)), *made))
    taus = advice_agreement(advice)
    rows.append(("Kendall's tau of all", "", "", *(f"{taus[name]:.2f}" for name in names)))
    return _aligned(rows)


def _speed(advice: Advice, place: int) -> float:
    return advice.assessed[place].costs.seconds


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    pairs = (zip(row, widths, strict=True) for row in rows)
    return ["  ".join(cell.ljust(width) for cell, width in each).rstrip() for each in pairs]


def _counts(advice: Advice) -> str:
    rare = f"; classes with too few images: {len(advice.rare)}" if advice.rare else ""
    return (
        f"{len(advice.assessed)} candidates on {advice.images} images of {advice.classes} classes{rare}. "
        f"The {len(advice.front)} that no other surpasses in accuracy, latency and memory:"
    )


def _legend(advice: Advice) -> list[str]:
    lines = [
        "accuracy: of the ridge head on the frozen features, each image left out",
    ]
    times = "ms: one image, alone, on this machine when it is idle"
    if advice.latency_error is not None:
        times += (
            f"; the cost model was within {100 * advice.latency_error:.0f} % of what was measured beside it"
        )
    return [*lines, times, "MB: of a run, estimated"]


def _verdict(advice: Advice) -> str:
    each = advice.shown
    if advice.chosen is not None:
        ties = len(advice.ties)
        why = f", the cheapest of {ties} that tie" if ties > 1 else ""
        return f"To take{why}: {_described(each)}"
    limits = [f"{1000 * advice.budget.seconds:g} ms"] if math.isfinite(advice.budget.seconds) else []
    limits += [f"{advice.budget.memory / 2**20:g} MB"] if math.isfinite(advice.budget.memory) else []
    return f"None is within {' and '.join(limits)}. The nearest: {_described(each)}"


def _described(each: AssessedCandidate) -> str:
    costs = each.costs
    return f"{100 * costs.accuracy:.1f} %, {1000 * costs.seconds:.1f} ms, {costs.memory / 2**20:.0f} MB"


def _command(advice: Advice, config: str) -> str:
    changes = " ".join(f"--set {shlex.quote(each)}" for each in advice.shown.overrides)
    return f"streamcl run {shlex.quote(config)} {changes}"


def _limit(value: float) -> float | None:
    return value if math.isfinite(value) else None
