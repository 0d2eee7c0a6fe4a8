"""Self-contained HTML pages: inline images, a before/after slider, sortable tables. No network, no other file.

    from restore import page
    body = [page.heading("Rain"), page.grid([page.figure(page.slider(rainy, restored), "013.png, 36.1 dB")]),
            page.table(["image", "PSNR"], [["013.png", page.number(36.1234, ".2f")]])]
    write_bytes("report.html", page.document("Deraining", body))

Plain strings are escaped wherever they are given; :class:`Html` marks what is markup already. Images are arrays
``(h, w, 3)`` or ``(h, w)`` of uint8 (RGB), a path, encoded bytes, or a ``data:`` URI from :func:`image_uri`.
"""

import base64
import html
from dataclasses import dataclass
from pathlib import Path

_HERE = Path(__file__).parent
_TYPES = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"RIFF": "webp", b"GIF8": "gif"}


class Html(str):
    """Text that is markup already, and so is not escaped again."""


@dataclass(frozen=True)
class Cell:
    """A table cell: what is shown, what it sorts by (a number or a text), and its CSS class."""

    text: str
    sort: object = None
    style: str = ""


def markup(content):
    """Markup of a string (escaped), an :class:`Html` (as it is), a list of these (joined) or ``None`` (nothing)."""
    if content is None:
        return Html("")
    if isinstance(content, Html):
        return content
    if isinstance(content, (list, tuple)):
        return Html("\n".join(markup(part) for part in content))
    return Html(html.escape(str(content)))


def tag(name, content="", **attributes):
    """``tag("p", "text", class_="note")``; a trailing underscore is dropped and inner ones become hyphens."""
    given = "".join(f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
                    for key, value in attributes.items() if value is not None)
    return Html(f"<{name}{given}>{markup(content)}</{name}>")


def heading(text, level=2, anchor=None):
    """A heading; ``anchor`` is the id that links can point to."""
    return tag(f"h{level}", text, id=anchor)


def paragraph(text, style=""):
    """A paragraph; ``style`` may be ``"note"`` (small, grey) or ``"warn"`` (set off by a bar)."""
    return tag("p", text, class_=style or None)


def image_uri(image, format="jpeg", quality=88):
    """``data:`` URI of an image.

    An array is encoded as ``format`` ("png", "jpeg" or "webp"); a file or encoded bytes are taken as they are; a string
    that starts with ``data:`` is returned unchanged. Raises ``ValueError`` for bytes that are no PNG, JPEG, WebP or GIF.
    """
    if isinstance(image, str) and image.startswith("data:"):
        return image
    if isinstance(image, (str, Path)):
        image = Path(image).read_bytes()
    if not isinstance(image, (bytes, bytearray)):
        image = _encode(image, format, quality)
    kind = next((kind for magic, kind in _TYPES.items() if image.startswith(magic)), None)
    if kind is None:
        raise ValueError("an inline image must be PNG, JPEG, WebP or GIF bytes")
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def _encode(array, format, quality):
    import cv2
    import numpy as np
    if array.dtype != np.uint8:
        raise ValueError(f"an inline image is an array of uint8, not {array.dtype}")
    flags = {"png": [], "jpeg": [cv2.IMWRITE_JPEG_QUALITY, quality], "webp": [cv2.IMWRITE_WEBP_QUALITY, quality]}[format]
    done, data = cv2.imencode(f".{format}", array[..., ::-1] if array.ndim == 3 else array, flags)
    if not done:
        raise ValueError(f"an array of shape {array.shape} cannot be encoded as {format}")
    return data.tobytes()


def image(source, alt="", **encoding):
    """An inline ``<img>``; ``encoding`` goes to :func:`image_uri`."""
    return Html(f'<img src="{image_uri(source, **encoding)}" alt="{html.escape(alt)}">')


def slider(before, after, labels=("before", "after"), **encoding):
    """Two images of one size over each other; the edge between them follows the pointer or the arrow keys."""
    left, right = map(html.escape, labels)
    return Html(f'<div class="compare">{image(after, right, **encoding)}'
                f'<img class="before" src="{image_uri(before, **encoding)}" alt="{left}">'
                f'<span class="left">{left}</span><span class="right">{right}</span><div class="handle"></div>'
                f'<input type="range" min="0" max="100" step="0.5" value="50" aria-label="{left} or {right}"></div>')


def figure(content, caption="", pixelated=False):
    """Content with a caption below; ``pixelated`` shows enlarged pixels as squares."""
    return tag("figure", [content, tag("figcaption", caption)], class_="pixels" if pixelated else None)


def grid(parts):
    """Figures side by side, as many in a row as fit."""
    return tag("div", list(parts), class_="grid")


def number(value, format=".2f", style="", missing=""):
    """A right-aligned cell that sorts by its exact value; ``None`` gives an empty one that sorts last."""
    if value is None:
        return Cell(missing, "", f"number {style}".strip())
    return Cell(f"{value:{format}}", repr(float(value)), f"number {style}".strip())


def table(columns, rows, caption="", sortable=True):
    """A table whose headings sort it. A cell is a string, :class:`Html`, a number or a :class:`Cell`.

    A column is right-aligned when its first cell is a number.
    """
    rows = [[_cell(value) for value in row] for row in rows]
    heads = []
    for i, column in enumerate(columns):
        numeric = bool(rows) and "number" in rows[0][i].style.split()
        label = tag("button", column, type="button") if sortable else column
        heads.append(tag("th", label, scope="col", class_="number" if numeric else None))
    lines = [tag("tr", [tag("td", cell.text, **_attributes(cell)) for cell in row]) for row in rows]
    return tag("div", tag("table", [tag("caption", caption) if caption else None, tag("thead", tag("tr", heads)),
                                    tag("tbody", lines)], class_="sortable" if sortable else None), class_="scroll")


def _cell(value):
    if isinstance(value, Cell):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return number(value, "d" if isinstance(value, int) else ".4g")
    return Cell(value)


def _attributes(cell):
    return {"class_": cell.style or None, "data_sort": cell.sort}


def document(title, body, style="", script=""):
    """The whole page as a string. Its content security policy forbids every load from outside the file."""
    css = (_HERE / "page.css").read_text(encoding="utf-8") + style
    js = (_HERE / "page.js").read_text(encoding="utf-8") + script
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    return (f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{html.escape(title)}</title>\n<style>\n{css}</style></head>\n<body>\n"
            f"{markup([heading(title, 1), body])}\n<script>\n{js}</script>\n</body></html>\n")
