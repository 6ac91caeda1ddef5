"""An audit as a section of an HTML page; it loads nothing and styles nothing."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from streamcl.audit.report import AuditReport, notes


def html_section(report: AuditReport) -> Markup:
    """The report's verdict, table and notes as one `<section class="audit">`; a bad row has class "bad"."""
    environment = Environment(
        loader=PackageLoader("streamcl", "audit"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return Markup(environment.get_template("section.html.j2").render(report=report, notes=notes(report)))
