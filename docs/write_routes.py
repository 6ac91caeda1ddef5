"""Writes the table of routes and roles in docs/serving.md: `make generated`."""

from __future__ import annotations

from pathlib import Path

from streamcl.serving.route_table import routes_as_markdown

TARGET = Path(__file__).with_name("serving.md")
BEGIN, END = "<!-- routes -->", "<!-- /routes -->"


def with_routes(page: str) -> str:
    """Return the page with a new table between its two marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{routes_as_markdown()}\n\n{END}{after}"


if __name__ == "__main__":
    TARGET.write_text(with_routes(TARGET.read_text(encoding="utf-8")), encoding="utf-8")
