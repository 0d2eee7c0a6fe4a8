"""Contact sheets: rows of labelled images in one picture."""

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

_PAPER, _INK = (255, 255, 255), (25, 25, 25)


def contact_sheet(rows, title="", tile=(240, 320), gap=8):
    """One uint8 image (h,w,3) of ``rows``, each a list of ``(image, label)``.

    Images are uint8 arrays (h,w,3) of any size. One that fits into ``tile`` (height, width) is shown pixel by pixel, a
    larger one is reduced. A label may have several lines. ``None`` in place of a pair leaves its place empty.
    """
    font, large = ImageFont.load_default(13), ImageFont.load_default(18)
    lines = max((label.count("\n") + 1 for row in rows for _, label in filter(None, row)), default=1)
    below = 6 + 16 * lines
    top = 34 if title else gap
    columns = max(map(len, rows))
    height = top + len(rows) * (tile[0] + below + gap)
    width = gap + columns * (tile[1] + gap)
    sheet = Image.new("RGB", (width, height), _PAPER)
    pen = ImageDraw.Draw(sheet)
    if title:
        pen.text((gap, 8), title, _INK, font=large)
    for i, row in enumerate(rows):
        for j, pair in enumerate(row):
            if pair is None:
                continue
            image, label = pair
            image = fit(image, tile)
            left, upper = gap + j * (tile[1] + gap), top + i * (tile[0] + below + gap)
            sheet.paste(Image.fromarray(image), (left, upper))
            pen.multiline_text((left, upper + image.shape[0] + 2), label, _INK, font=font, spacing=2)
    return np.asarray(sheet)


def fit(image, tile):
    """``image`` reduced by area averaging until it fits into ``tile`` (height, width); never enlarged."""
    height, width = image.shape[:2]
    scale = min(1.0, tile[0] / height, tile[1] / width)
    if scale == 1:
        return image
    smaller = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(image, smaller, interpolation=cv2.INTER_AREA)


def cover(image, size):
    """``image`` (h,w) or (h,w,3) resized until it just covers ``size`` (height, width), cut below and at both sides."""
    scale = max(size[0] / image.shape[0], size[1] / image.shape[1])
    height, width = (max(n, round(m * scale)) for n, m in zip(size, image.shape))
    resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    left = (width - size[1]) // 2                      # heads are at the top
    return np.ascontiguousarray(resized[:size[0], left:left + size[1]])
