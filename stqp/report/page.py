"""Reports as one HTML file that needs nothing else: the page, its tables, pictures and figures."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stqp import __version__, files
from stqp.slides import RGBImage
from stqp.taxonomy import RGB

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#222;background:#fff;max-width:1100px;margin:2em auto;padding:0 1em}
h1{font-size:1.5em;margin-bottom:.2em}h2{font-size:1.15em;margin-top:2em}
.verdict{padding:.7em 1em;border-left:6px solid;background:#f6f6f6;font-size:1.05em}
table{border-collapse:collapse;margin:.6em 0}td,th{padding:.25em .9em .25em 0;text-align:left;vertical-align:top}
th{font-weight:600}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
thead th{border-bottom:1px solid #bbb}img{max-width:100%;height:auto}.note{color:#666;font-size:.9em}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(320px,1fr));gap:1em}
figure{margin:0 0 1em}figcaption{font-size:.88em}
.swatch{display:inline-block;width:.8em;height:.8em;margin-right:.4em;vertical-align:-.05em}
.legend span+span{margin-left:1.2em}
"""


class Html(str):
    """Text that is HTML already, and is not escaped."""

    __slots__ = ()


def escaped(value: Any) -> Html:
    """A value as HTML: numbers with separators of thousands, None as a dash."""
    if isinstance(value, Html):
        return value
    if value is None or (isinstance(value, float) and value != value):
        return Html("–")
    if isinstance(value, int) and not isinstance(value, bool):
        return Html(f"{value:,}")
    return Html(html.escape(f"{value:.3f}" if isinstance(value, float) else str(value)))


def page(title: str, *parts: str, lang: str = "en") -> str:
    """Make a page.

    Parameters
    ----------
    title
        Plain text.
    parts
        HTML of the body, in order.
    lang
        Language of the text.
    """
    name = html.escape(title)
    body = "\n".join(part for part in parts if part)
    return (
        f'<!DOCTYPE html>\n<html lang="{lang}"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width"><title>{name}</title><style>{_STYLE}</style>\n'
        f"</head><body><h1>{name}</h1>\n{body}\n"
        f'<p class="note">stqp {__version__}</p></body></html>\n'
    )


def write_page(path: Path, title: str, *parts: str) -> Path:
    """Write a page, see `page`, atomically."""
    files.write_bytes(path, page(title, *parts).encode("utf-8"))
    return path


def section(title: str, *parts: str) -> Html:
    """A heading and what stands under it; nothing without parts."""
    body = "\n".join(part for part in parts if part)
    return Html(f"<h2>{html.escape(title)}</h2>\n{body}" if body else "")


def paragraph(text: str, note: bool = False) -> Html:
    """Plain text as a paragraph, small and gray as a note."""
    kind = ' class="note"' if note else ""
    return Html(f"<p{kind}>{escaped(text)}</p>")


def verdict(text: str, color: RGB) -> Html:
    """The one sentence that the page is about, with an edge of a colour."""
    return Html(f'<p class="verdict" style="border-color:{_css(color)}">{escaped(text)}</p>')


def facts(rows: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> Html:
    """A table of names and values; nothing without rows."""
    pairs = rows.items() if isinstance(rows, Mapping) else rows
    text = "".join(f"<tr><th>{escaped(k)}</th><td>{escaped(v)}</td></tr>" for k, v in pairs)
    return Html(f"<table>{text}</table>" if text else "")


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> Html:
    """A table whose numbers stand to the right; a column of numbers has its heading there too."""
    listed = [[*row] for row in rows]
    if not listed:
        return Html("")
    numeric = [all(_is_number(r[i]) for r in listed) for i in range(len(header))]
    head = "".join(_cell("th", name, right) for name, right in zip(header, numeric, strict=True))
    body = "".join(
        f"<tr>{''.join(_cell('td', v, right) for v, right in zip(row, numeric, strict=True))}</tr>" for row in listed
    )
    return Html(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")


def swatch(name: str, color: RGB) -> Html:
    """A name behind a square of its colour."""
    return Html(f'<span><span class="swatch" style="background:{_css(color)}"></span>{escaped(name)}</span>')


def legend(colors: Mapping[str, RGB]) -> Html:
    """Names in their colours, in a row."""
    return Html(f'<p class="legend">{"".join(swatch(n, c) for n, c in colors.items())}</p>' if colors else "")


def picture(image: RGBImage, alt: str, quality: int | None = 88) -> Html:
    """An image inside the page, as JPEG of a quality, or as PNG when that is None.

    Parameters
    ----------
    image : uint8 (height, width, 3)
    alt
        What it shows, in words.
    quality
        Of the JPEG.
    """
    from PIL import Image

    if quality is None:
        return _inline(png_bytes(image), "png", alt)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=quality)
    return _inline(buffer.getvalue(), "jpeg", alt)


def figure(drawn: Any, alt: str) -> Html:
    """A figure of matplotlib inside the page, as SVG.

    Parameters
    ----------
    drawn : matplotlib.figure.Figure
        Best made by ``matplotlib.figure.Figure(layout="constrained")``, which needs no screen.
    alt
        What it shows, in words.
    """
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "stqp"}):
        drawn.savefig(buffer, format="svg", metadata={"Date": None})
    return _inline(buffer.getvalue(), "svg+xml", alt)


def captioned(content: str, caption: str) -> Html:
    """Something with a caption of plain text under it."""
    return Html(f"<figure>{content}<figcaption>{escaped(caption)}</figcaption></figure>")


def grid(items: Sequence[str]) -> Html:
    """Things beside each other, as many in a row as the window holds."""
    return Html(f'<div class="grid">{"".join(items)}</div>' if items else "<p>None.</p>")


def png_bytes(image: RGBImage) -> bytes:
    """An image as PNG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _inline(content: bytes, kind: str, alt: str) -> Html:
    data = base64.b64encode(content).decode("ascii")
    return Html(f'<img alt="{html.escape(alt)}" src="data:image/{kind};base64,{data}">')


def _css(color: RGB) -> str:
    return "rgb({},{},{})".format(*color)


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _cell(tag: str, value: Any, right: bool) -> str:
    kind = ' class="n"' if right else ""
    return f"<{tag}{kind}>{escaped(value)}</{tag}>"
