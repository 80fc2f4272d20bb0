"""A report as a list of blocks, written as Markdown or as one HTML file.

Texts carry inline Markdown: **bold**, *italic* and `code`.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 2em auto; padding: 0 1em;
  color: #222 }
table { border-collapse: collapse; margin: 1em 0 .3em; font-size: 13px;
  font-variant-numeric: tabular-nums }
th, td { padding: .25em .7em; border-bottom: 1px solid #ddd; text-align: right;
  white-space: nowrap }
th { border-bottom: 2px solid #888 }
th:first-child, td:first-child { text-align: left }
td b { color: #004c99 } td i { color: #3377bb }
p.caption { color: #555; font-size: 13px; margin: .2em 0 2em; max-width: 900px }
.wide { overflow-x: auto }
img { max-width: 100%; margin-top: 1em }
code { background: #f3f3f3; padding: 0 .2em }
"""

# For the browser: the page needs nothing beside itself, and has no scripts.
_POLICY = (
    '<meta http-equiv="Content-Security-Policy" '
    "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
)


@dataclass(frozen=True)
class Heading:
    """A heading; level 1 is the title."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Table:
    """A table, its first column to the left, the others to the right, and what it shows."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str


@dataclass(frozen=True)
class Image:
    """A picture, given by its path below the report's folder, and what it shows."""

    path: str
    caption: str


Block = Heading | Text | Table | Image


def markdown(blocks: Iterable[Block]) -> str:
    """The blocks as Markdown."""
    return "\n\n".join(map(_markdown, blocks)) + "\n"


def _markdown(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {text}"
        case Text(text):
            return text
        case Image(path, caption):
            return f"![{caption}]({path})\n\n{caption}"
        case Table(head, rows, caption):
            ruler = ["---"] + ["---:"] * (len(head) - 1)
            lines = "\n".join(f"| {' | '.join(line)} |" for line in (head, ruler, *rows))
            return f"{lines}\n\n{caption}"


def page(blocks: Sequence[Block], folder: Path) -> str:
    """The blocks as one HTML page with the pictures inside.

    Args:
        blocks: the report.
        folder: where the paths of pictures start.
    """
    title = next((b.text for b in blocks if isinstance(b, Heading)), "")
    body = "\n".join(_html(block, folder) for block in blocks)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">{_POLICY}'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style></head>\n"
        f"<body>\n{body}\n</body></html>\n"
    )


def _html(block: Block, folder: Path) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{_inline(text)}</h{level}>"
        case Text(text):
            return f"<p>{_inline(text)}</p>"
        case Image(path, caption):
            data = base64.b64encode((folder / path).read_bytes()).decode()
            return (
                f'<img src="data:image/png;base64,{data}" alt="{html.escape(caption)}">\n'
                f'<p class="caption">{_inline(caption)}</p>'
            )
        case Table(head, rows, caption):
            lines = [_row(head, "th"), *(_row(row, "td") for row in rows)]
            return (
                '<div class="wide"><table>\n' + "\n".join(lines) + "\n</table></div>\n"
                f'<p class="caption">{_inline(caption)}</p>'
            )


def _row(texts: Sequence[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{_inline(text)}</{tag}>" for text in texts) + "</tr>"


def _inline(text: str) -> str:
    text = html.escape(text, quote=False)
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", text)
    text = re.sub(r"\*\*([^*]+)\*\*", r"<b>\1</b>", text)
    return re.sub(r"\*([^*]+)\*", r"<i>\1</i>", text)
