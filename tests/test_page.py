"""restore.page: what is written must parse, be escaped, be self-contained and hold the very pixels."""

import base64
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from restore import page


class Reader(HTMLParser):
    """Counts tags, checks that they close in order, and keeps attributes and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def photo(seed=0, shape=(20, 30, 3)):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_inline_png_holds_the_pixels():
    kind, data = page.image_uri(photo(), "png").split(",")
    assert kind == "data:image/png;base64"
    decoded = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    assert np.array_equal(decoded, photo())


def test_files_and_bytes_are_taken_as_they_are(tmp_path):
    data = cv2.imencode(".webp", photo())[1].tobytes()
    (tmp_path / "a.webp").write_bytes(data)
    assert page.image_uri(data) == page.image_uri(tmp_path / "a.webp") == \
        "data:image/webp;base64," + base64.b64encode(data).decode()
    with pytest.raises(ValueError, match="PNG, JPEG, WebP or GIF"):
        page.image_uri(b"II*\0 a TIFF")
    with pytest.raises(ValueError, match="uint8, not float64"):
        page.image_uri(photo() / 255.0)


def test_document_parses_and_loads_nothing():
    body = [page.heading("A & B"), page.paragraph("<script>alert(1)</script>"),
            page.grid([page.figure(page.slider(photo(1), photo(2), ("rainy", "restored")), "caption")]),
            page.table(["name", "PSNR"], [["a<b", page.number(31.256)], ["c", page.number(None)]])]
    text = page.document("T & U", body)
    reader = Reader(text)
    assert "<script>alert" not in text and "<script>alert(1)</script>" in "".join(reader.text)
    sources = [attributes.get("src") or attributes.get("href") for _, attributes in reader.tags]
    assert [s for s in sources if s and not s.startswith("data:")] == []
    assert "http://" not in text and "https://" not in text
    assert sum(tag == "img" for tag, _ in reader.tags) == 2
    assert {"type": "range", "min": "0", "max": "100", "step": "0.5", "value": "50",
            "aria-label": "rainy or restored"} in [a for tag, a in reader.tags if tag == "input"]


def test_cells_sort_by_the_exact_value():
    cells = [a for tag, a in Reader(page.table(["n"], [[page.number(31.256, ".1f")], [7], ["x"],
                                                              [page.number(None, missing="-")]])).tags if tag == "td"]
    assert cells == [{"class": "number", "data-sort": "31.256"}, {"class": "number", "data-sort": "7.0"}, {},
                     {"class": "number", "data-sort": ""}]
