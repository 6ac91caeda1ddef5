"""The places outside the learner where the data could be, and what an erasure did in each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from streamcl.forgetting.protocol import Place


def on_disk(
    receipt: Mapping[str, Any], changed: int, derived: Sequence[str], traces: int
) -> list[dict[str, Any]]:
    """One row a place. changed: records edited in the logs; derived: files removed; traces: lineage rows."""
    of_class = receipt["kind"] == "class"
    checkpoint = receipt["checkpoint"]
    rows = [
        Place(
            "shift detector",
            "not affected",
            "keeps a few figures of batch losses; no sample can be told from them",
        ),
        Place(
            "metrics", "erased", "the class's name; its counts stay under another name, aggregates are kept"
        )
        if of_class
        else Place(
            "metrics", "remains", "aggregate counts include the samples' predictions; no ids, no pixels"
        ),
        Place(
            "prediction log, quarantine and events",
            "erased" if changed else "not affected",
            f"{changed} records were emptied; their places stay",
        ),
        Place("gallery", "erased", "thumbnails of the samples, where there were any"),
        Place("report and summary", "erased", _removed(derived, ("summary.json", "report.html"))),
        Place(
            "exports", "erased", _removed(derived, ("adapter",)) + "; copies made elsewhere are not reachable"
        ),
        Place("caches", "not affected", "the run keeps no features and no images on disk beside the gallery"),
        Place("checkpoints", "erased", f"{checkpoint['removed']} older ones removed")
        if checkpoint
        else Place("checkpoints", "not affected", "this run keeps none"),
        Place("ledger", "erased", "what the request said is overwritten; salted hashes and times stay"),
        Place("lineage", "erased", f"{traces} rows"),
        Place(
            "metrics services",
            "not reachable",
            "figures sent to TensorBoard or MLflow hold no ids; they stay",
        ),
        Place("source data", "not reachable", "the stream's own files are not streamcl's to change"),
    ]
    return [asdict(row) for row in rows]


def _removed(derived: Sequence[str], names: Sequence[str]) -> str:
    found = [name for name in names if name in derived]
    return f"{', '.join(found)} removed" if found else "there were none"
