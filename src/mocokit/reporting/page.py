"""The report as one HTML file that needs no network: sections of prepared HTML, the data of its script, and Bokeh's."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import Any

# Nothing may be fetched; Bokeh compiles the code of its callbacks ('unsafe-eval').
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline' 'unsafe-eval'"


@dataclass(frozen=True)
class Section:
    """A part of the page: its anchor, its title, which may be empty, and its HTML."""

    id: str
    title: str
    html: str


def page(title: str, lead: str, sections: Sequence[Section], data: Any, scripts: str) -> str:
    """The whole file; ``lead`` is HTML above the navigation, ``data`` what page.js finds as JSON, ``scripts`` elements
    of scripts that come before it."""
    links = "".join(f'<li><a href="#{s.id}">{escape(s.title)}</a></li>' for s in sections if s.title)
    body = "\n".join(
        f'<section id="{s.id}"><h2>{escape(s.title)}</h2>\n{s.html}\n</section>' for s in sections if s.title and s.html
    )
    own = files("mocokit.reporting")
    style, script = (own.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{escape(title)}</title>
<style>
{style}</style>
</head>
<body>
<header><h1>{escape(title)}</h1>
{lead}
</header>
<nav><ul>{links}</ul></nav>
<main>
{body}
</main>
<script type="application/json" id="data">{script_json(data)}</script>
{scripts}
<script>
{script}</script>
</body>
</html>
"""


def script_json(data: Any) -> str:
    """JSON that may stand in an element of a script: no name can end that, for it holds no "<"."""
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")


def paragraph(text: str, kind: str = "") -> str:
    """``text`` as a paragraph, of the class ``kind``."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def table(head: Sequence[str], rows: Iterable[Sequence[object]], numbers: Sequence[int] = ()) -> str:
    """A table of text; the columns ``numbers`` are set to the right."""

    def cells(tag: str, row: Sequence[object]) -> str:
        number = [' class="number"' if column in numbers else "" for column in range(len(row))]
        return "".join(f"<{tag}{n}>{escape(str(cell))}</{tag}>" for cell, n in zip(row, number, strict=True))

    body = "\n".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    header = f"<thead><tr>{cells('th', head)}</tr></thead>" if any(head) else ""
    return f'<div class="wide"><table>{header}<tbody>\n{body}</tbody></table></div>'


def strip(rows: Sequence[int], notes: Sequence[str] = (), kind: str = "strip") -> str:
    """Pictures of ``rows`` with their names, a note before each; page.js puts them in."""
    attributes = f'data-rows="{json.dumps(list(map(int, rows)))}"'
    if notes:
        attributes += f' data-notes="{escape(json.dumps(list(notes)))}"'
    return f'<div class="{kind}" {attributes}></div>'


def details(summary: str, html: str) -> str:
    """``html`` that is shown when asked for."""
    return f"<details><summary>{escape(summary)}</summary>\n{html}</details>"
