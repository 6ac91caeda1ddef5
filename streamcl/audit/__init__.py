"""How an erasure is shown: measured beside models retrained without the data, on both sides."""

from streamcl.audit.audit import audit
from streamcl.audit.closed_form import Plan
from streamcl.audit.data import Audited, Examples, Material
from streamcl.audit.report import AuditReport, text_table
from streamcl.audit.section import html_section
from streamcl.audit.significance import Finding

__all__ = [
    "AuditReport",
    "Audited",
    "Examples",
    "Finding",
    "Material",
    "Plan",
    "audit",
    "html_section",
    "text_table",
]
