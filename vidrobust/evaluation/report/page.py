"""Render HTML pages that open anywhere: one file each, without a network.

Templates are in templates/. Everything that a template shows is escaped, but for `Markup`.
"""

import base64
import re
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup

from vidrobust import __version__
from vidrobust.utils.atomic_files import replacing
from vidrobust.utils.readable import percent
from vidrobust.utils.text import visible

LARGEST = 8_000_000  # bytes of a page, which mail and browsers still take


def render(template: str, **values: Any) -> str:
    """Return a page.

    Args:
        template: name of a file in templates/.
        values: of its variables.
    """
    # a name of a file may hold bytes that are not text
    text = _environment().get_template(template).render(version=__version__, **values)
    return text.encode("utf-8", "backslashreplace").decode()


def write_page(path: Path, text: str) -> None:
    """Write a page whole or not at all.

    Raises:
        ValueError: for a page above LARGEST bytes, which a caller must not make.
    """
    data = text.encode()
    if len(data) > LARGEST:
        raise ValueError(f"{path}: {len(data)} bytes are above the limit of {LARGEST}")
    with replacing(path) as file:
        file.write(data)


def data_uri(data: bytes, kind: str) -> str:
    """Return a picture as the address that holds its bytes.

    Args:
        data: of the file.
        kind: such as "png".
    """
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def html_of(lines: Sequence[str], folder: Path) -> Markup:
    """Return a section of report.md as HTML, with its pictures inside.

    Args:
        lines: Markdown, in which names are escaped (`tables.escape`).
        folder: that its pictures are relative to; those that are missing are left out.
    """
    # html=False, the setting of js-default: tags in the text are shown and not read
    reader = MarkdownIt("js-default", {"html": False, "linkify": False, "typographer": False})
    html = reader.render("\n".join(lines))
    html = html.replace("<table>", '<div class="scroll" tabindex="0"><table>')
    html = html.replace("</table>", "</table></div>")
    # a link to a file beside the report leads nowhere once the page was sent
    html = re.sub(r'<a href="(?!#)[^"]*">(.*?)</a>', r"\1", html)
    return Markup(re.sub(r'<img src="([^"]*)" alt="([^"]*)"\s*/?>', _inlined(folder), html))


def _inlined(folder: Path) -> Any:
    """Return the function that puts the bytes of a picture in place of its name."""

    def replaced(match: re.Match[str]) -> str:
        path = folder / match[1]
        if not path.is_file():
            return ""
        source = data_uri(path.read_bytes(), path.suffix.removeprefix("."))
        return f'<img class="figure" src="{source}" alt="{match[2]}">'

    return replaced


@cache
def _environment() -> Environment:
    """Return the environment of all templates."""
    loader = PackageLoader("vidrobust.evaluation.report", "templates")
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # names with control characters and marks that turn text around are made visible
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    environment.filters["percent"] = partial(percent, missing="–")
    # the style and the script of a page are not text to be escaped
    environment.globals["source"] = lambda name: Markup(loader.get_source(environment, name)[0])
    return environment
