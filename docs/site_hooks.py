"""Hooks of the documentation site: pages that lie outside docs/, and the links between all pages."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
OUTSIDE = ("*.md", "benchmarks/results/**/*.*")
"""What the site has beside docs/, as patterns below the repository."""
LINK = re.compile(r"(?<!!)\[([^]]*)\]\((?!\w+:|#)([^)#\s]*)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files outside docs/ at the paths that they have in the repository."""
    for pattern in OUTSIDE:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            files.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between files of the repository into links within the site.

    A link to a file that the site does not have becomes its text.
    """
    name = page.file.src_uri
    in_docs = str(page.file.src_dir) == str(config.docs_dir)

    def within_site(link: re.Match[str]) -> str:
        text, target, anchor = link.groups(default="")
        repository_path = posixpath.normpath(
            posixpath.join("docs" if in_docs else "", posixpath.dirname(name), target)
        )
        site_path = repository_path.removeprefix("docs/")
        if files.get_file_from_path(site_path) is None:
            return text if (ROOT / repository_path).exists() else link[0]
        return f"[{text}]({posixpath.relpath(site_path, posixpath.dirname(name) or '.')}{anchor})"

    images = re.compile(r"\]\(docs/images/")
    return images.sub("](images/", LINK.sub(within_site, markdown))
