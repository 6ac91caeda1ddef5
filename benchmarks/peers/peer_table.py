"""Writes the table of peers: each figure's median and range over rounds, and ratios within a round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from energy import ABSENT

Figures = Mapping[str, Any]
Runs = dict[tuple[str, str], list[dict[str, Any] | str]]
"""By peer and method, each round's figures or the reason why there are none."""

OURS = "streamcl"
CONDITIONS = """\
Medians (lowest - highest of the rounds). Images/s: one pass through the stream, each image predicted
before it is learned, without imports, building the model and the test; images per processor second
count the time of all threads, which other programs disturb less. Memory: the largest resident size of
the process. Accuracy: of held-out images after the pass. Lines: what a user writes for this method,
without imports and comments; the ViT and the LoRA layer that all but streamcl are given are not
counted. streamcl runs as shipped, with checkpoints, logs, lineage and shift detection, which the others
do without."""
WORK = {
    "naive_lora": "LoRA and a linear head, one step of Adam a batch, nothing against forgetting",
    "online_lora": "Online-LoRA (arXiv 2411.05663): hard samples, importance, consolidation at plateaus",
    "ncm": "nearest class mean on frozen features",
    "slda": "streaming linear discriminant analysis on frozen features",
    "ridge": "streamcl's closed form on frozen features of several blocks, in two views",
    "ridge_lora": "streamcl's default: two closed forms, one on features that LoRA adapts at the beginning",
}


def table(runs: Runs, where: Mapping[str, Any], how: Mapping[str, Any], remarks: Mapping[str, str]) -> str:
    """Return the page: conditions, a table for each kind of work, ratios to the fastest peer, remarks."""
    metered = any(one.get("joules_per_image") for found in runs.values() for one in _done(found))
    lines = [
        f"# streamcl beside other loops, {where['date']}",
        "",
        f"{where['cpu']}, {where['cores']} cores, {how['threads']} threads, torch {where['torch']}, Python "
        f"{where['python']}, load {where['load']}; {how['backbone']}, depth {how['depth']}, "
        f"{how['size']} px, batch {how['batch']}, float32, {how['images']} images of {how['stream']}, "
        f"{how['rounds']} rounds.",
        "" if metered else f"{ABSENT}",
        "",
        CONDITIONS,
    ]
    for work in dict.fromkeys(method for _, method in runs):
        rows = {peer: found for (peer, method), found in runs.items() if method == work}
        lines += ["", f"## {work}: {WORK[work]}", "", *_rows(rows, metered), "", *_verdict(rows)]
    lines += ["", "## Remarks", "", *(f"- {name}: {text}" for name, text in remarks.items() if text)]
    return "\n".join(lines) + "\n"


def _rows(rows: Mapping[str, Sequence[Figures | str]], metered: bool) -> list[str]:
    head = (
        "| | images/s | images per processor second | memory, MiB | accuracy | lines |"
        + " joules an image |" * metered
    )
    lines = [head, "|---|---|---|---|---|---|" + "---|" * metered]
    for peer, found in rows.items():
        done = _done(found)
        if not done:
            lines.append(f"| {peer} | {found[-1] if found else 'not run'} | | | | |" + " |" * metered)
            continue
        cells = [_spread(done, "images_per_s", ".1f"), _spread(done, "images_per_cpu_s", ".1f")]
        cells += [_spread(done, "peak_mib", ".0f")]
        cells += [f"{median(each['accuracy'] for each in done):.1%}", str(done[0]["lines"])]
        if metered:
            cells.append(_spread(done, "joules_per_image", ".2f"))
        lines.append(f"| {peer} | {' | '.join(cells)} |")
    return lines


def _verdict(rows: Mapping[str, Sequence[Figures | str]]) -> list[str]:
    """Return streamcl's ratio to the fastest peer, by rounds, or nothing where it is alone."""
    rates = {
        peer: median(each["images_per_s"] for each in _done(found))
        for peer, found in rows.items()
        if _done(found)
    }
    others = [peer for peer in rates if peer != OURS]
    if OURS not in rates or not others:
        return []
    fastest = max(others, key=lambda peer: rates[peer])
    pairs = [
        (ours, its)
        for ours, its in zip(rows[OURS], rows[fastest], strict=True)
        if not isinstance(ours, str) and not isinstance(its, str)
    ]
    if not pairs:
        return []
    speed = [ours["images_per_s"] / its["images_per_s"] for ours, its in pairs]
    work = [ours["images_per_cpu_s"] / its["images_per_cpu_s"] for ours, its in pairs]
    memory = [ours["peak_mib"] / its["peak_mib"] for ours, its in pairs]
    return [
        f"streamcl is at {median(speed):.2f} ({min(speed):.2f} - {max(speed):.2f}) of the fastest peer, "
        f"{fastest} ({median(work):.2f} by processor time), with {median(memory):.2f} of its memory."
    ]


def _done(found: Sequence[Figures | str]) -> list[Figures]:
    return [each for each in found if not isinstance(each, str)]


def _spread(done: Sequence[Figures], name: str, form: str) -> str:
    values = [each[name] for each in done]
    return f"{median(values):{form}} ({min(values):{form}} - {max(values):{form}})"
