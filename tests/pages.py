"""Check HTML pages as a strict parser reads them, and as a browser runs them."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import html5lib
import pytest

CHROMIUM = next(
    (
        path
        for name in ("chromium", "chromium-browser", "google-chrome")
        if (path := shutil.which(name))
    ),
    None,
)
needs_chromium = pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed")


def parsed(text: str) -> Any:
    """Return the tree of a page, without namespaces; any error of HTML raises ParseError."""
    return html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(text)


def outside(text: str) -> list[str]:
    """Return the addresses of a page that lead out of it."""
    tree = parsed(text)
    found = []
    for element in tree.iter():
        for name in ("src", "href", "action", "data", "poster", "srcset", "xlink:href"):
            value = element.get(name, "") if isinstance(element.tag, str) else ""
            if value and not value.startswith(("data:", "#")):
                found.append(value)
    found += re.findall(r"url\(\s*['\"]?(?!data:)[^)]*", text)
    return found + re.findall(r"@import[^;]*", text)


def on_phone(page: Path, folder: Path) -> Path:
    """Return a page that shows another one in a frame of 390 pixels, the width of a phone.

    Windows of a headless browser are at least 500 pixels wide.
    """
    text = page.read_text(encoding="utf-8").replace("&", "&amp;").replace('"', "&quot;")
    framed = folder / "phone.html"
    framed.write_text(
        '<!doctype html><html lang="en"><head><title>phone</title></head><body>'
        f'<iframe style="width:390px;height:2000px;border:0" srcdoc="{text}"></iframe>'
        "</body></html>",
        encoding="utf-8",
    )
    return framed


def in_browser(page: Path, script: str, folder: Path) -> Any:
    """Run a script in a page and return what it resolves to.

    Args:
        page: the file.
        script: body of an asynchronous function of JavaScript; it returns something that JSON
            holds. `settled(test)` waits until a test is true.
        folder: for the copy of the page with the script.
    """
    # the result is part of the page's content, which the browser prints when it is done
    added = f"""<script>(async () => {{
        const settled = async (test) => {{
            for (let i = 0; i < 200 && !test(); i += 1)
                await new Promise((go) => setTimeout(go, 25));
        }};
        let result;
        try {{ result = {{value: await (async () => {{ {script} }})()}}; }}
        catch (error) {{ result = {{error: String(error)}}; }}
        const place = document.createElement("pre");
        place.id = "result-of-test";
        place.textContent = JSON.stringify(result);
        document.body.append(place);
    }})();</script></body>"""
    copy = folder / "under_test.html"
    before, _, after = page.read_text(encoding="utf-8").rpartition("</body>")
    copy.write_text(before + added + after, encoding="utf-8")
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--virtual-time-budget=10000",
        f"--user-data-dir={folder / 'profile'}",
        "--window-size=1280,2000",
        "--dump-dom",
        copy.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r'<pre id="result-of-test">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    result = json.loads(html.unescape(found[1]))
    assert "error" not in result, result["error"]
    return result.get("value")
