"""Hooks of MkDocs: pages that lie outside of docs/, links between them, and the navigation.

Pages are written for GitHub, where links are relative to the file. The site also has pages of files
outside of docs/ (`OUTSIDE`). Links to them, and to any other file of the repository, are rewritten.
"""

import posixpath
import re
from functools import partial
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

REPO = Path(__file__).parents[1]
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s:]+)(#[^)\s]+)?\)")

# file of the repository -> its place among the pages of docs/
OUTSIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "examples/README.md": "examples.md",
    "datasets/README.md": "datasets/index.md",
}
OUTSIDE |= {
    path.relative_to(REPO).as_posix(): f"datasets/{path.parent.name}.md"
    for path in sorted(REPO.glob("datasets/*/README.md"))
}
OUTSIDE = {source: page for source, page in OUTSIDE.items() if (REPO / source).is_file()}
_SOURCES = {page: source for source, page in OUTSIDE.items()}

# Section of the navigation -> beginnings of the paths of its pages, in this order. All other pages
# are in the last section.
SECTIONS: dict[str, tuple[str, ...]] = {
    "Running": ("running", "cluster", "protocols", "finetuning", "features", "examples"),
    "Methods": ("methods", "adversarial", "false_negatives", "negatives", "fidelity"),
    "Robustness": (
        "threat",
        "attack",
        "robust",
        "corruption",
        "measures",
        "studies",
        "retrieval",
        "leaderboard",
        "evaluation",
    ),
    "Data": ("data", "decoding", "datasets/"),
    "Results": ("results/",),
    "Benchmarks": ("benchmarks",),
    "Reference": ("api", "architecture", "references"),
    "More": ("contributing", "changelog"),
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from outside of docs/, and build the navigation from all pages."""
    for source, page in OUTSIDE.items():
        text = (REPO / source).read_text(encoding="utf-8")
        added = File.generated(config, page, content=text)
        # a page of docs/ itself comes first, such as an index
        if added.dest_uri not in [file.dest_uri for file in files]:
            files.append(added)
    config.nav = navigation({file.src_uri: file.dest_uri for file in files.documentation_pages()})
    return files


def navigation(pages: dict[str, str]) -> list[Any]:
    """Return the navigation, so that a new page appears without an entry by hand.

    Args:
        pages: path of a page below docs/ -> its path in the site.
    """
    sections: dict[str, list[str]] = {title: [] for title in SECTIONS}
    home = []
    for page in pages:
        if pages[page] == "index.html":
            home.append({"Home": page})
        else:
            sections[_section(page)].append(page)
    entries = [
        {title: _nested(sorted(group, key=partial(_place, SECTIONS[title])))}
        for title, group in sections.items()
        if group
    ]
    return [*home, *entries]


def _section(page: str) -> str:
    for title, beginnings in SECTIONS.items():
        if page.startswith(beginnings):
            return title
    return list(SECTIONS)[-1]


def _place(beginnings: tuple[str, ...], page: str) -> tuple[int, bool, str]:
    """Return a key that sorts the pages of a section: by their beginnings, and an index first."""
    matches = [number for number, start in enumerate(beginnings) if page.startswith(start)]
    is_index = posixpath.basename(page) in ("index.md", "README.md")
    return min(matches, default=len(beginnings)), not is_index, page


def _nested(pages: list[str]) -> list[Any]:
    """Return the pages of a section, those of a folder in a section of their own.

    A section that has one folder only needs no second level.
    """
    folders = dict.fromkeys(posixpath.dirname(page) for page in pages)
    if len(folders) == 1:
        return list(pages)
    entries: list[Any] = [page for page in pages if not posixpath.dirname(page)]
    for folder in filter(None, folders):
        title = folder.replace("_", " ").capitalize()
        entries.append({title: [page for page in pages if posixpath.dirname(page) == folder]})
    return entries


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite links that are relative to the file's place in the repository.

    Args:
        markdown: text of the page.
        page: the page.
        config: of the site; with `repo_url`, links to files without a page lead there.
        files: all files of the site.
    """
    site_path = page.file.src_uri
    is_outside = page.file.abs_src_path is None  # its text comes from `on_files`
    source = _SOURCES[site_path] if is_outside else f"docs/{site_path}"

    def rewrite(link: re.Match[str]) -> str:
        image, text, target, section = link[1], link[2], link[3], link[4] or ""
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        target_page = OUTSIDE.get(path)
        if path.startswith("docs/"):
            target_page = path.removeprefix("docs/")
            if (REPO / path).is_dir():
                target_page += "/README.md"
        if target_page and files.get_file_from_path(target_page):
            relative = posixpath.relpath(target_page, posixpath.dirname(site_path) or ".")
            return f"{image}[{text}]({relative}{section})"
        if image or not (REPO / path).exists():
            return link[0]  # MkDocs warns of what it does not have
        if config.repo_url:
            return f"[{text}]({config.repo_url.rstrip('/')}/blob/HEAD/{path}{section})"
        return text  # a file of the repository, which the site does not have

    return _LINK.sub(rewrite, markdown)
