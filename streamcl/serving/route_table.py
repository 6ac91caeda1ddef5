"""The routes of the HTTP interface and who may use each: the one table of routing, checks and documents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from streamcl.serving.access.tokens import ROLES, Role

ANYONE: Final[frozenset[Role | None]] = frozenset({None, *ROLES})
"""Those who send no token, too."""
READERS: Final[frozenset[Role | None]] = frozenset(ROLES)
TEACHERS: Final[frozenset[Role | None]] = frozenset({"teacher"})
IMAGE_VIEWERS: Final[frozenset[Role | None]] = frozenset({"teacher", "officer"})
OFFICERS: Final[frozenset[Role | None]] = frozenset({"officer"})


@dataclass(frozen=True, slots=True)
class RouteRule:
    """One route. name: of the function behind it, and of its operation. roles: None is no token at all.

    of_page: whether it is a part of the live page.
    """

    method: str
    path: str
    name: str
    roles: frozenset[Role | None]
    of_page: bool = False

    @property
    def role_names(self) -> tuple[Role, ...]:
        """The roles that may use it, in the order of ROLES."""
        return tuple(each for each in ROLES if each in self.roles)


EVENTS = "/v1/events"

ROUTES = (
    RouteRule("POST", "/v1/predict", "predict", READERS),
    RouteRule("GET", "/v1/status", "status", READERS),
    RouteRule("POST", "/v1/records", "records", TEACHERS),
    RouteRule("POST", "/v1/labels", "labels", TEACHERS),
    RouteRule("POST", "/v1/forget", "forget", OFFICERS),
    RouteRule("GET", "/v1/receipts", "receipts", OFFICERS),
    RouteRule("GET", "/v1/receipts/{request}", "receipt", OFFICERS),
    RouteRule("GET", "/health/live", "live", ANYONE),
    RouteRule("GET", "/health/ready", "ready", ANYONE),
    RouteRule("GET", "/v2", "v2_server", READERS),
    RouteRule("GET", "/v2/health/live", "v2_live", ANYONE),
    RouteRule("GET", "/v2/health/ready", "v2_ready", ANYONE),
    RouteRule("GET", "/v2/models/{name}", "v2_model", READERS),
    RouteRule("GET", "/v2/models/{name}/ready", "v2_model_ready", READERS),
    RouteRule("POST", "/v2/models/{name}/infer", "v2_infer", READERS),
    RouteRule("GET", "/v2/models/{name}/versions/{version}", "v2_version", READERS),
    RouteRule("GET", "/v2/models/{name}/versions/{version}/ready", "v2_version_ready", READERS),
    RouteRule("POST", "/v2/models/{name}/versions/{version}/infer", "v2_version_infer", READERS),
    RouteRule("GET", "/health", "backend_health", ANYONE),
    RouteRule("POST", "/setup", "backend_setup", TEACHERS),
    RouteRule("POST", "/predict", "backend_predict", TEACHERS),
    RouteRule("POST", "/webhook", "backend_webhook", TEACHERS),
    RouteRule("GET", "/metrics", "metrics", READERS),
    RouteRule("GET", "/openapi.json", "openapi", READERS),
    RouteRule("GET", EVENTS, "events", READERS, of_page=True),
    RouteRule("GET", "/", "page", ANYONE, of_page=True),
    RouteRule("GET", "/page/{name}", "page_file", ANYONE, of_page=True),
    RouteRule("GET", "/page/charts/{name}.svg", "page_chart", READERS, of_page=True),
    RouteRule("GET", "/page/images/{number}", "page_image", IMAGE_VIEWERS, of_page=True),
)
"""Every route; the application serves no other."""


def routes_as_markdown() -> str:
    """Return the table as docs/serving.md shows it."""
    lines = [f"| route | {' | '.join(ROLES)} |", f"|---|{'---|' * len(ROLES)}"]
    for rule in ROUTES:
        cells = ["yes" if each in rule.roles else "" for each in ROLES]
        anyone = ", without a token too" if None in rule.roles else ""
        lines.append(f"| `{rule.method} {rule.path}`{anyone} | {' | '.join(cells)} |")
    return "\n".join(lines)
