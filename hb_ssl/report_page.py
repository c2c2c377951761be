"""The blocks that a report is made of, and their two renderings: an HTML page and Markdown.

Both hold the same words and tables. All text is escaped here and nowhere else; a figure's SVG is
the only markup that passes through.
"""

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from string import Template

from hb_ssl.figures import Rendered, class_colour


@dataclass(frozen=True)
class Heading:
    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    """A paragraph; ``kind`` is ``plain``, ``note`` (small print) or ``banner`` (a loud warning)."""

    text: str
    kind: str = "plain"


@dataclass(frozen=True)
class KeyNumbers:
    """``(name, value, explanation)`` each, shown large."""

    items: list[tuple[str, str, str]]


@dataclass(frozen=True)
class Table:
    """A table whose first column names its rows; a line break in a cell starts small print.

    Attributes:
        caption: what the table shows.
        header: column names.
        rows: cells; every row as long as the header.
        shading: per row, how strongly to colour each cell but the first (0 to 1).
        class_rows: the first column holds classes: mark them with their colour.
    """

    caption: str
    header: list[str]
    rows: list[list[str]]
    shading: list[list[float]] | None = None
    class_rows: bool = False


@dataclass(frozen=True)
class Picture:
    name: str
    alt: str
    figure: Rendered


@dataclass(frozen=True)
class Code:
    text: str


@dataclass(frozen=True)
class Columns:
    """Groups of blocks, side by side where each gets at least ``min_pixels``."""

    groups: "list[list[Block]]"
    min_pixels: int = 280


@dataclass(frozen=True)
class Collapsed:
    summary: str
    blocks: "list[Block]"


Block = Heading | Text | KeyNumbers | Table | Picture | Code | Columns | Collapsed


def pictures_of(blocks: Sequence[Block]) -> list[Picture]:
    """Every picture in the blocks, nested ones included."""
    found: list[Picture] = []
    for block in blocks:
        if isinstance(block, Picture):
            found.append(block)
        elif isinstance(block, Columns):
            found += [picture for group in block.groups for picture in pictures_of(group)]
        elif isinstance(block, Collapsed):
            found += pictures_of(block.blocks)
    return found


# ---- HTML ----------------------------------------------------------------------------------------

# The policy makes the browser refuse scripts and anything from elsewhere, whatever a file says.
PAGE = Template("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>$title</title>
<style>
:root { color-scheme: light dark; --ink: #1b2430; --soft: #5a6675; --line: #d8dee6;
  --page: #ffffff; --card: #f5f7fa; --accent: #0072b2; --warn: #fff1d6; --warn-ink: #6b3d00;
  --warn-line: #e69f00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ed; --soft: #a3aebb; --line: #38424e;
  --page: #14181d; --card: #1d232a; --accent: #7cc4ee; --warn: #3b2a08; --warn-ink: #ffd48a;
  --warn-line: #e69f00; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 960px; margin: 0 auto; padding: 24px 20px 64px; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 12px; }
h2 { font-size: 1.25rem; margin: 44px 0 8px; padding-top: 14px; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 22px 0 6px; overflow-wrap: anywhere; }
p { margin: 8px 0; max-width: 72ch; overflow-wrap: anywhere; }
p.note, figcaption, caption, small { color: var(--soft); font-size: 0.86rem; }
p.banner { max-width: none; background: var(--warn); color: var(--warn-ink); font-weight: 650;
  border: 1px solid var(--warn-line); border-left-width: 6px; border-radius: 6px;
  padding: 10px 14px; }
dl.key { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 170px), 1fr));
  gap: 12px; margin: 18px 0; }
dl.key > div { background: var(--card); border-radius: 8px; padding: 12px 16px; }
dl.key dt { color: var(--soft); font-size: 0.86rem; }
dl.key dd { margin: 0; }
dl.key dd.value { font-size: 1.8rem; font-weight: 650; line-height: 1.25;
  font-variant-numeric: tabular-nums; }
dl.key dd.more { color: var(--soft); font-size: 0.86rem; }
.scroll { overflow-x: auto; margin: 14px 0; }
table { border-collapse: collapse; font-size: 0.92rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: 4px; }
th, td { padding: 5px 8px; text-align: right; vertical-align: top;
  border-bottom: 1px solid var(--line); }
td.words { text-align: left; overflow-wrap: anywhere; min-width: 9ch; }
td small { display: block; white-space: nowrap; font-size: 0.78rem; }
thead th { border-bottom: 2px solid var(--line); font-weight: 600; vertical-align: bottom; }
th:first-child { text-align: left; padding-left: 0; }
tbody th { font-weight: 500; }
.dot { display: inline-block; width: 0.7em; height: 0.7em; border-radius: 50%;
  margin-right: 0.5em; }
.columns { display: grid; gap: 12px 28px; align-items: start; }
.columns > div { min-width: 0; }
figure { margin: 14px 0; max-width: 460px; }
figure svg { display: block; width: 100%; height: auto; }
figure svg * { stroke-linejoin: round; stroke-linecap: butt; }
details { margin: 12px 0; }
summary { cursor: pointer; color: var(--accent); }
pre { background: var(--card); border-radius: 6px; padding: 12px 14px; overflow-x: auto;
  font: 0.82rem/1.45 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
@media print { h2, h3 { break-after: avoid; } figure, tr { break-inside: avoid; } }
</style>
</head>
<body>
<main>
$body
</main>
</body>
</html>
""")


def to_html(title: str, blocks: Sequence[Block]) -> str:
    """A self-contained page: no scripts, nothing loaded from elsewhere."""
    body = "\n".join(_html(block) for block in [Heading(title, 1), *blocks])
    return PAGE.substitute(title=html.escape(title), body=body)


def _html(block: Block) -> str:
    if isinstance(block, Heading):
        return f"<h{block.level}>{html.escape(block.text)}</h{block.level}>"
    if isinstance(block, Text):
        role = ' role="note"' if block.kind == "banner" else ""
        return f'<p class="{block.kind}"{role}>{html.escape(block.text)}</p>'
    if isinstance(block, KeyNumbers):
        items = [
            f'<div><dt>{html.escape(name)}</dt><dd class="value">{html.escape(value)}</dd>'
            f'<dd class="more">{html.escape(more)}</dd></div>'
            for name, value, more in block.items
        ]
        return '<dl class="key">' + "".join(items) + "</dl>"
    if isinstance(block, Table):
        return _html_table(block)
    if isinstance(block, Picture):
        label = html.escape(block.alt)
        svg = block.figure.svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
        return f"<figure>{svg}</figure>"
    if isinstance(block, Code):
        return f'<pre tabindex="0"><code>{html.escape(block.text)}</code></pre>'
    if isinstance(block, Columns):
        groups = ["<div>" + "\n".join(map(_html, group)) + "</div>" for group in block.groups]
        width = f"minmax(min(100%, {block.min_pixels}px), 1fr)"
        style = f"grid-template-columns: repeat(auto-fill, {width})"
        return f'<div class="columns" style="{style}">' + "\n".join(groups) + "</div>"
    inner = "\n".join(map(_html, block.blocks))
    return f"<details><summary>{html.escape(block.summary)}</summary>\n{inner}\n</details>"


def _html_table(table: Table) -> str:
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in table.header)
    lines = []
    for number, (first, *cells) in enumerate(table.rows):
        shades = table.shading[number] if table.shading else [0.0] * len(cells)
        dot = ""
        if table.class_rows:
            dot = f'<span class="dot" style="background:{class_colour(first)}"></span>'
        row = f'<th scope="row">{dot}{_html_cell(first)}</th>'
        row += "".join(map(_html_data, cells, shades))
        lines.append(f"<tr>{row}</tr>")
    return (
        f'<div class="scroll" tabindex="0"><table><caption>{html.escape(table.caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _html_data(cell: str, shade: float) -> str:
    # Translucent, so that the text keeps its contrast on a light and on a dark page.
    style = f' style="background:rgba(0,114,178,{0.5 * shade:.2f})"' if shade else ""
    words = "" if re.match(r"[-−]?\d|–$|$", cell) else ' class="words"'
    return f"<td{words}{style}>{_html_cell(cell)}</td>"


def _html_cell(cell: str) -> str:
    first, _, small = cell.partition("\n")
    return html.escape(first) + (f"<small>{html.escape(small)}</small>" if small else "")


# ---- Markdown ------------------------------------------------------------------------------------


def to_markdown(title: str, blocks: Sequence[Block]) -> str:
    """The same report as Markdown; its pictures are ``figures/<name>.png``."""
    return "\n\n".join(_markdown(block) for block in [Heading(title, 1), *blocks]) + "\n"


def _escape(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    text = html.escape(" ".join(text.split()), quote=False)
    text = re.sub(r"([\\`*|\[\]])", r"\\\1", text)
    return re.sub(r"^(#|[-+>]\s|\d+[.)]\s)", r"\\\1", text)


def _markdown_cell(cell: str) -> str:
    first, _, small = cell.partition("\n")
    return _escape(first) + (f" ({_escape(small)})" if small else "")


def _markdown(block: Block) -> str:
    if isinstance(block, Heading):
        return "#" * block.level + " " + _escape(block.text)
    if isinstance(block, Text):
        text = _escape(block.text)
        return f"> **{text}**" if block.kind == "banner" else text
    if isinstance(block, KeyNumbers):
        rows = [f"- {_escape(n)}: **{_escape(v)}** ({_escape(more)})" for n, v, more in block.items]
        return "\n".join(rows)
    if isinstance(block, Table):
        lines = [block.header, *block.rows]
        shown = ["| " + " | ".join(map(_markdown_cell, line)) + " |" for line in lines]
        rule = "|---" * len(block.header) + "|"
        return "\n".join([_escape(block.caption), "", shown[0], rule, *shown[1:]])
    if isinstance(block, Picture):
        return f"![{_escape(block.alt)}](figures/{block.name}.png)"
    if isinstance(block, Code):
        longest = max(map(len, re.findall("`+", block.text)), default=0)
        fence = "`" * max(3, longest + 1)
        return f"{fence}text\n{block.text.rstrip()}\n{fence}"
    if isinstance(block, Columns):
        return "\n\n".join(_markdown(inner) for group in block.groups for inner in group)
    inner = "\n\n".join(map(_markdown, block.blocks))
    summary = html.escape(block.summary)
    return f"<details><summary>{summary}</summary>\n\n{inner}\n\n</details>"
