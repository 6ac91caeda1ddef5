"""Nothing of what was forgotten is left in any byte of the run, its neighbours, caches and temporary folders.

A stream has a canary: a person who is a class and a domain of its own, with names and pixels that occur
nowhere else. Whatever the learner, the request and its moment, all files are searched afterwards; only where
a receipt names a place may something be found there.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from canary_stream import (
    CANARY_CLASS,
    CANARY_DOMAIN,
    CANARY_SUBJECT,
    DELAY,
    all_names,
    canary_ids,
    traces,
)
from tiny_runs import call, configuration

from streamcl.runs.open import open_run
from streamcl.storage.snapshots import Snapshots

pytestmark = pytest.mark.long

COUNT = 96
WARMUP = 32
LEARNERS: dict[str, object] = {
    "ridge": "ridge",
    "slda": "slda",
    "ncm": "ncm",
    "ridge_lora": {"name": "ridge_lora", "lora": {"warmup_samples": WARMUP}},
    "cohort_adapters": {"name": "cohort_adapters", "cohort_by": "domain", "lora": {"warmup_samples": WARMUP}},
    "mixed_privacy": {"name": "mixed_privacy", "lora": {"warmup_samples": WARMUP}},
    **{name: name for name in ("online_lora", "frozen_linear", "naive_lora", "er", "der_pp", "ewc_pp")},
}
REQUESTS: dict[str, dict[str, object]] = {
    "class": {"label": CANARY_CLASS},
    "subject": {"subject": CANARY_SUBJECT},
    "domain": {"domain": CANARY_DOMAIN},
    "ids": {"ids": canary_ids(COUNT)},
    "users": {"all_users": True},
}
MOMENTS = {
    "before": 0,  # nothing of it has come
    "during": 23,  # while adapters are trained
    "commit": 63,  # right after a commit, which a thread may still be writing
    "after": 70,  # between two commits
    "end": COUNT - 1,
    "finished": COUNT - 1,  # after summary, report and export
    "audited": COUNT - 1,  # and the erasure was audited, and the report written anew
    "fresh": 70,  # after an earlier run was moved aside
}


@dataclass(frozen=True)
class Case:
    """One way through the product of learners, requests and moments."""

    learner: str
    kind: str
    moment: str
    own_class: bool = True
    statistics: str | None = None
    source: str = "read again"  # or "late labels", or "spool": read once, and kept on disk

    def __str__(self) -> str:
        more = [] if self.own_class else ["shared"]
        source = [] if self.source == "read again" else [self.source]
        return "-".join(
            [self.learner, self.kind, self.moment, *more, *filter(None, [self.statistics]), *source]
        )

    @property
    def names(self) -> list[str]:
        """The names that must be gone: a class that others bear is none of them.

        While labels come later, a class is all that a request for it can know.
        """
        if self.kind == "class" and self.source == "late labels":
            return [CANARY_CLASS]
        return [name for name in all_names(COUNT) if self.own_class or name != CANARY_CLASS]


def options(folder: Path, case: Case):
    """A run of the canary's stream. A domain and all users come no more after their request; others do."""
    at = MOMENTS[case.moment]
    until = {"until": at + 1} if case.kind in {"domain", "users"} else {}
    if case.kind == "class" and case.source == "late labels":
        until = {"until": COUNT - DELAY}  # all labels come before the end
    privacy = {"privacy": "user"} if case.learner == "mixed_privacy" else {}
    held_out = {"held_out": case.moment != "before"}  # what no stream has brought, no request can name
    args = {"count": COUNT, "own_class": case.own_class, **held_out, **until, **privacy}
    kept = {"forgetting": {"keep_statistics": case.statistics}} if case.statistics else {}
    source: dict[str, object] = {"class": "canary_stream:stream", "args": args}
    if case.source == "spool":
        source = {"class": "canary_stream:once", "args": args, "spool": {}}
    if case.source == "late labels":
        source = {"class": "canary_stream:late", "args": args, "deterministic": True}
        kept |= {"labels": {"max_waiting": 4000}}
    return configuration(
        folder,
        learner=LEARNERS[case.learner],
        source=source,
        max_samples=COUNT,
        batch=8,
        checkpoint={"every_samples": 32},
        shift={"class": "canary_stream:EagerDetector"},
        sinks=[{"name": "tensorboard"}],
        evaluate={"every_samples": 48},
        **kept,
    )


def carry_out(folder: Path, case: Case) -> list[dict[str, object]]:
    """Run, ask at the moment, go on to the end; return the receipts."""
    settings, request = options(folder, case), REQUESTS[case.kind]
    if case.moment == "fresh":
        with open_run(settings) as run:
            list(run)
    run_dir = folder / "run"
    with open_run(settings, fresh=case.moment == "fresh", snapshots=Snapshots(run_dir / "snapshots")) as run:
        if case.moment == "before":
            run.forget(**request, id="r1")
        meanwhile = case.moment not in {"before", "finished", "audited"}
        for prediction in run:
            if meanwhile and prediction.offset == MOMENTS[case.moment]:
                run.forget(**request, id="r1")
        run.finish()
    if case.moment in {"finished", "audited"}:
        with open_run(settings) as run:
            run.forget(**request, id="r1")
            run.processor.forget()
    if case.moment == "audited":
        code, text = call("audit", run_dir, "--references", "8")
        assert code in {0, 6}, text
        assert call("report", run_dir)[0] == 0
    return [json.loads(path.read_text()) for path in sorted((run_dir / "receipts").glob("*.json"))]


def excused(found: dict[str, list[str]], receipt: dict[str, object]) -> dict[str, list[str]]:
    """Return what was found, without what the receipt says of it."""
    remains = {place["name"] for place in receipt["locations"] if place["status"] == "remains"}
    left = {}
    for path, names in found.items():
        if path.split("/")[0] == "run.1" and "earlier runs" in remains:
            continue
        allowed = {CANARY_CLASS} if "class names" in remains else set()
        if unexplained := [name for name in names if name not in allowed]:
            left[path] = unexplained
    return left


def sweep(folder: Path, case: Case, monkeypatch) -> None:
    """Carry out a case with all temporary folders and caches in the folder, and search it."""
    folders = {"TMPDIR": "tmp", "XDG_CACHE_HOME": "cache", "HF_HOME": "hf", "TORCH_HOME": "torch"}
    for variable, name in folders.items():
        (folder / name).mkdir()
        monkeypatch.setenv(variable, str(folder / name))
    monkeypatch.setattr(tempfile, "tempdir", None)
    (receipt,) = carry_out(folder, case)
    if receipt["outcome"] == "done":
        assert excused(traces(folder, case.names), receipt) == {}
    else:
        assert receipt["outcome"] == "refused", receipt["reason"]
        found = traces(folder / "run", case.names, pixels=False)
        kept = [path for path in found if path.startswith(("ledger", "receipts/"))]
        assert kept == [], "a refused request has left its content"
    code, text = call("verify", folder / "run" / "receipts" / "r1.json")
    assert code == 0, text


SHORT = [
    Case("ridge", "subject", "commit"),
    Case("slda", "class", "finished", statistics="per_class"),
    Case("ridge_lora", "ids", "during"),
    Case("ridge_lora", "domain", "after"),
    Case("mixed_privacy", "users", "end"),
    Case("cohort_adapters", "domain", "after"),
    Case("online_lora", "class", "fresh"),
    Case("er", "subject", "after", own_class=False),
    Case("ridge", "class", "after", source="late labels"),
    Case("ridge", "subject", "after", source="spool"),
]


@pytest.mark.parametrize("case", SHORT, ids=str)
def test_nothing_is_left(tmp_path, case, monkeypatch):
    pytest.importorskip("tensorboard")
    sweep(tmp_path, case, monkeypatch)


def _makes_sense(learner: str, kind: str, moment: str) -> bool:
    """Return False for users whom no learner knows, names before they come, and audits of many runs."""
    if kind == "users" and learner != "mixed_privacy":
        return False
    if moment == "audited" and learner not in {"ridge", "ridge_lora"}:
        return False
    return not (kind in {"class", "domain"} and moment == "before")


def product() -> list[Case]:
    """Every learner with every request at every moment, as far as it makes sense."""
    cases = [
        Case(learner, kind, moment)
        for learner in LEARNERS
        for kind in REQUESTS
        for moment in MOMENTS
        if _makes_sense(learner, kind, moment)
    ]
    shared = [replace(case, own_class=False) for case in cases if case.kind in {"subject", "ids"}]
    kept = [
        Case(learner, kind, moment, statistics=statistics)
        for learner in ("ridge", "slda", "ridge_lora")
        for statistics, kind in (("per_class", "class"), ("per_subject", "subject"))
        for moment in ("during", "after", "finished")
    ]
    others = [
        Case(learner, kind, moment, source=source)
        for learner in ("ridge", "ridge_lora", "online_lora")
        for source in ("late labels", "spool")
        for kind in ("class", "subject", "domain", "ids")
        for moment in ("during", "after", "end", "finished")
    ]
    return [*cases, *shared, *kept, *others]


@pytest.mark.slow
@pytest.mark.parametrize("case", product(), ids=str)
def test_nothing_is_left_whatever_was_asked_whenever(tmp_path, case, monkeypatch):
    pytest.importorskip("tensorboard")
    sweep(tmp_path, case, monkeypatch)


def test_the_search_finds_the_canary_in_every_form(tmp_path, monkeypatch):
    """The guard seen failing: a run that has forgotten nothing shows it in all the places."""
    case = Case("er", "subject", "after")
    with open_run(options(tmp_path, case), snapshots=Snapshots(tmp_path / "run" / "snapshots")) as run:
        list(run)
        run.finish()
    found = traces(tmp_path, all_names(COUNT))
    places = {path.split("/")[1] for path in found}
    assert places >= {"predictions.jsonl", "quarantine.jsonl", "metrics.jsonl", "events.jsonl"}
    assert places >= {
        "checkpoints",
        "samples",
        "lineage.sqlite",
        "summary.json",
        "report.html",
        "tensorboard",
    }
    assert any("pixels" in names for path, names in found.items() if path.startswith("run/samples/"))
    assert any("pixels" in names for path, names in found.items() if "arrays.safetensors" in path)
