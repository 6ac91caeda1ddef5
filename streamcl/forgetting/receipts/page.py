"""A receipt as a page that a privacy officer can read and print: plain HTML, no scripts, nothing fetched."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from streamcl.storage import files
from streamcl.storage.files import Disk

STYLE = """
:root{--ink:#16191d;--quiet:#5b636d;--rule:#c9ced4;--wash:#f5f6f7;--good:#2d7550;--bad:#a8243c;--warn:#8a5a00}
*{box-sizing:border-box}
body{font:15px/1.5 system-ui,"Segoe UI","Helvetica Neue","Liberation Sans",Arial,sans-serif;max-width:50rem;
margin:2.5rem auto;padding:0 1.25rem;color:var(--ink);background:#fff}
h1{font-size:1.65rem;line-height:1.2;margin:0 0 .25rem}
h2{font-size:1.1rem;margin:2rem 0 .5rem;padding-top:.75rem;border-top:1px solid var(--rule)}
p{margin:.4rem 0}.quiet,.note,small{color:var(--quiet)}.note,small{font-size:.85rem}
.verdict{border-left:4px solid var(--rule);background:var(--wash);padding:.7rem 1rem;margin:1rem 0}
.verdict.exact{border-color:var(--good)}.verdict.bounded{border-color:var(--warn)}
.verdict.approximate{border-color:var(--warn)}.verdict.failed,.verdict.refused{border-color:var(--bad)}
.verdict b{display:block;font-size:1.05rem}
table{border-collapse:collapse;width:100%;font-size:.93rem;font-variant-numeric:tabular-nums}
td,th{text-align:left;vertical-align:top;padding:.32rem .8rem .32rem 0;border-bottom:1px solid #e3e6e9}
th{font-weight:600}thead th{color:var(--quiet);font-size:.85rem}
.facts th{width:11rem;font-weight:500;color:var(--quiet)}.done{white-space:nowrap;font-weight:600}
.done.erased{color:var(--good)}.done.remains,.done.not-reachable{color:var(--warn)}
.done.not-affected{color:var(--quiet);font-weight:400}
code{font:.85em ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace;overflow-wrap:anywhere}
.audit td:nth-child(n+2):nth-child(-n+5),.audit th:nth-child(n+2):nth-child(-n+5){text-align:right}
.audit th small{display:block;font-weight:400}.audit .bad td:last-child{color:var(--bad);font-weight:600}
@media print{@page{size:A4;margin:15mm 16mm}body{margin:0;padding:0;max-width:none;font-size:9.5pt}
h1{font-size:17pt}h2{font-size:11pt;margin:12pt 0 3pt;padding-top:5pt}td,th{padding:2.2pt 7pt 2.2pt 0}
table{font-size:8.8pt}.facts th{width:9.5rem}code{font-size:.8em}.audit th small{display:inline}
.note,small{font-size:8pt}h2{break-after:avoid}tr,.verdict{break-inside:avoid}thead{display:table-header-group}
.verdict{-webkit-print-color-adjust:exact;print-color-adjust:exact}}
""".replace("\n", "")
KINDS = {
    "samples": "Single samples: the model without them",
    "subject": "Everything of a person or subject: the model without it",
    "class": "A whole class: the concept is to be gone",
}
GUARANTEES = {
    "exact": "The model is the one that the stream would have made without these data, up to rounding.",
    "bounded": "What the model can still tell of these data is limited; the limit is in the evidence below.",
    "approximate": "Weights that many samples share were trained on these data. They were repaired or left "
    "as they are, so traces may remain; an audit says how well they can be seen.",
}
AGAIN = {"deny": "it is not learned", "allow": "it may be learned"}
OUTCOMES = {
    "refused": "Not erased: the request was refused, and nothing was changed.",
    "failed": "Not erased: the erasure failed, and nothing was changed.",
}


def write_page(
    receipt: Path, content: Mapping[str, Any], *, audit: str = "", disk: Disk = files.DISK
) -> Path:
    """Write the page beside its receipt; it holds no more than the receipt, and the audit's own HTML, do."""
    path = receipt.with_suffix(".html")
    files.atomic_write(path, page(receipt.name, content, audit).encode(), disk=disk)
    return path


def page(name: str, content: Mapping[str, Any], audit: str = "") -> str:
    """The page of a receipt that is called `name` in its folder. audit: a section of HTML."""
    check = content.get("verify") or f"streamcl verify receipts/{name}"
    places: Sequence[Mapping[str, str]] = content.get("places", ())
    rows = "".join(map(_place, places))
    table = (
        "<h2>Place by place</h2><table><thead><tr><th>Where the data could be</th><th>Now</th>"
        f"<th>What was done, or why nothing had to be</th></tr></thead><tbody>{rows}</tbody></table>"
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Receipt {escape(name.removesuffix('.json'))}</title><style>{STYLE}</style></head><body>"
        f'<p class="quiet">streamcl · receipt {content.get("number", "")}</p>'
        f"<h1>Receipt for a request to forget</h1>{_verdict(content)}"
        f'<table class="facts">{_rows(_facts(content))}</table>{table if places else ""}'
        f"{_evidence(content)}{audit}"
        f"<h2>To check this receipt</h2><p>In the run's directory: <code>{escape(str(check))}</code></p>"
        '<p class="note">Nobody is named here: samples, subjects and classes appear as counts, and in the '
        "receipt's file as hashes salted by the run's own ledger. This page is a rendering; the file "
        f"<code>{escape(name)}</code> beside it is what is checked.</p></body></html>\n"
    )


def _verdict(content: Mapping[str, Any]) -> str:
    """The one thing to read first."""
    outcome, guarantee = str(content["outcome"]), str(content.get("guarantee"))
    if outcome != "done":
        what, kind, title = OUTCOMES.get(outcome, outcome), outcome, outcome
        told = content.get("reason")
    else:
        what, kind, title = GUARANTEES.get(guarantee, ""), guarantee, f"Erased: {guarantee}"
        told = content.get("residual") and f"Remaining risk: {content['residual']}"
    rest = "".join(f"<br>{escape(part)}" for part in str(told or "").split("; "))
    return f'<p class="verdict {escape(kind)}"><b>{escape(title.capitalize())}</b>{escape(what)}{rest}</p>'


def _facts(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    scope, done = content.get("scope", {}), content["outcome"] == "done"
    facts: list[tuple[str, Any]] = [
        ("Request", content["request"]),
        ("Asked for", KINDS[content["kind"]]),
        ("Guarantee asked for", content.get("asked")),
        ("Received", _moment(content["received"])),
        ("Completed" if done else "Answered", _moment(content["completed"])),
        ("Deadline", _deadline(content)),
        ("Samples", f"{scope['learned']} learned, {scope['passed']} seen" if "learned" in scope else None),
        ("Place in the stream", f"before record {content['offset']}"),
        ("If it comes again", done and AGAIN[content["relearn"]]),
        ("Method", content.get("method") and f"{content['method']}, streamcl {content.get('streamcl', '')}"),
        ("Why this one", content.get("why")),
        ("Use of the model", _utility(content.get("utility"))),
    ]
    return [(label, str(text)) for label, text in facts if text]


def _evidence(content: Mapping[str, Any]) -> str:
    figures = [
        (name.replace("_", " "), _shown(value)) for name, value in (content.get("figures") or {}).items()
    ]
    hashes = [
        ("model before", content.get("learner_before")),
        ("model after", content.get("learner_after")),
        ("configuration", content.get("config")),
        ("receipt before this one", content.get("previous")),
    ]
    figures += [(label, str(value)) for label, value in hashes if value]
    return f'<h2>Evidence</h2><table class="facts">{_rows(figures, "code")}</table>' if figures else ""


def _utility(utility: Mapping[str, Any] | None) -> str | None:
    if not utility:
        return None
    before, after = (100 * utility[name] for name in ("before", "after"))
    return (
        f"{after:.1f} % of {utility['samples']} held-out samples of what stays are named right, "
        f"{before:.1f} % before"
    )


def _deadline(content: Mapping[str, Any]) -> str | None:
    deadline = content["deadline"]
    if deadline is None:
        return None
    return f"{_moment(deadline)}, {'kept' if content['completed'] <= deadline else 'missed'}"


def _moment(seconds: float | None) -> str | None:
    return None if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def _shown(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _place(place: Mapping[str, str]) -> str:
    done = escape(place["status"])
    return (
        f"<tr><th>{escape(place['name'])}</th>"
        f'<td class="done {done.replace(" ", "-")}">{done}</td><td>{escape(place["what"])}</td></tr>'
    )


def _rows(rows: Sequence[tuple[str, str]], tag: str = "span") -> str:
    return "".join(f"<tr><th>{escape(a)}</th><td><{tag}>{escape(b)}</{tag}></td></tr>" for a, b in rows)
