"""All metrics of one image, from its encoded bytes, as one flat dictionary: the row of the ``measure`` table.

Every pixel is decoded once, and every metric comes from the same few arrays: the gray image, its halvings, their block
maps, and a small colour copy. Nothing here decides: thresholds belong to :mod:`data_tools.decide`.
"""

import hashlib

import cv2
import numpy as np
import pyarrow as pa

from . import phash
from .decode import decode
from .decontaminate import describe
from .header import Refused, jpeg_quality, misnamed
from .jpegtrace import grid_phase, pixel_quality
from .maps import block_maps, halve

VERSION = 3                                # of the metrics: part of the key of every measured part

# name -> (type, what it is); the columns of the table after those of BASE
METRICS = {
    "format": (pa.string(), "format by the first bytes"),
    "width": (pa.int32(), "pixels, as displayed"),
    "height": (pa.int32(), "pixels, as displayed"),
    "short_side": (pa.int32(), "pixels"),
    "megapixels": (pa.float32(), "width x height / 10^6"),
    "aspect": (pa.float32(), "long side / short side"),
    "bits": (pa.int32(), "bits per channel"),
    "gray": (pa.bool_(), "stored with one channel"),
    "cmyk": (pa.bool_(), "stored as CMYK"),
    "frames": (pa.int32(), "pictures in the file; more than one is an animation"),
    "transparent": (pa.float32(), "share of pixels that are not opaque"),
    "progressive": (pa.bool_(), "progressive JPEG"),
    "misnamed": (pa.bool_(), "the file name promises another format"),
    "jpeg_quality": (pa.float32(), "libjpeg's quality by the luma quantisation table; null when not a JPEG"),
    "bits_per_pixel": (pa.float32(), "encoded bits per pixel"),
    "sharpness": (pa.float32(), ("mean |second difference| / mean |first|, less the noise's part, where texture is "
                                 "strongest; about 2 for a step, 0.8 / sigma for a blurred one")),
    "sharpness_2": (pa.float32(), "the same after halving: grain no longer hides a strong blur"),
    "sharpness_4": (pa.float32(), "the same at a quarter"),
    "sharpness_8": (pa.float32(), "the same at an eighth; null for small images"),
    "sharpness_axis": (pa.float32(), "the smaller of the sharpnesses along x and along y, at half size: motion blur"),
    "noise": (pa.float32(), "Immerkaer's sigma, 0..255 units, 10th percentile over blocks"),
    "noise_2": (pa.float32(), "the same after halving: true noise halves, texture stays"),
    "noise_even": (pa.float32(), "10th percentile over median of the noise operator: near 1 when noise covers all"),
    "noise_ratio": (pa.float32(), "noise_2 / noise: about 0.5 for white noise, 1 and more for texture"),
    "noise_ratio_2": (pa.float32(), ("noise at a quarter / noise_2: the same, where JPEG has smoothed the noise at full "
                                     "size")),
    "flat": (pa.float32(), "share of blocks without structure (gradient below 1.5 levels a pixel beyond the noise)"),
    "blockiness": (pa.float32(), "steps at the best 8-pixel grid / steps beside it; 1 is none"),
    "pixel_quality": (pa.float32(), "quality of the strongest JPEG compression that the pixels show, 100 when none"),
    "brightness": (pa.float32(), "mean luma, 0..255"),
    "contrast": (pa.float32(), "98th less 2nd percentile of luma"),
    "dark": (pa.float32(), "share of luma below 8"),
    "bright": (pa.float32(), "share of luma above 247"),
    "entropy": (pa.float32(), "of the luma histogram, bits"),
    "saturation": (pa.float32(), "mean of max - min of RGB, 0..255"),
    "white_ring": (pa.float32(), "share of near-white in a frame of 4 % of the sides"),
    "object_share": (pa.float32(), "share of the picture that is not near-white"),
    "border_share": (pa.float32(), "share of the area in constant bands at the edges (letterbox)"),
    "zero_gradient": (pa.float32(), "share of neighbouring pixels that are exactly equal"),
    "edge_profile": (pa.float32(), "share of the 8x8 blocks with an edge that hold two levels and little between"),
    "drawn": (pa.float32(), "share of the blocks that are even or hold two levels: drawings, diagrams, text"),
    "colours": (pa.float32(), "number of different 4-bit-a-channel colours that hold 95 % of the pixels"),
    "text": (pa.float32(), "share of the area in rows of small strong strokes, as captions and overlays have"),
}
BASE = {"id": pa.string(), "error": pa.string(), "sha256": pa.binary(32), "phash": pa.binary(32),
        "phash_quality": pa.int8(), "descriptor": pa.binary()}
SAMPLED = 80_000                           # pixels a block map looks at; larger images are sampled in strips


def schema(plugin_columns=()):
    """Schema of a ``measure`` part; plug-in columns are float32."""
    fields = [*BASE.items(), *((name, kind) for name, (kind, _) in METRICS.items()),
              *((name, pa.float32()) for name in plugin_columns)]
    return pa.schema(fields)


def measure(data, name="", max_megapixels=200.0, plugins=()):
    """The row of one encoded image (without its id): a dictionary of :data:`BASE` and :data:`METRICS`.

    ``plugins`` are pairs (prefix, function): see :mod:`data_tools.plugins`. An image that cannot be decoded gives a row
    with ``error`` set and what was known by then; nothing is raised for it.
    """
    row = {"error": None, "sha256": hashlib.sha256(data).digest()}
    try:
        header, pixels, transparent = decode(data, max_megapixels)
    except Refused as refused:
        row["error"] = str(refused)
        row.update(header_only(data, name))
        return row
    height, width = pixels.shape[:2]
    row.update(_header_metrics(header, width, height, name, len(data)), transparent=transparent)
    row.update(pixel_metrics(pixels))
    for prefix, function in plugins:
        row.update(_plugin(row, prefix, function, pixels))
    return row


def header_only(data, name):
    """What the header of an undecodable image still says: a part of the row, perhaps nothing."""
    from .header import read_header
    try:
        header = read_header(data)
    except Refused:
        return {}
    width, height = (header.height, header.width) if header.orientation > 4 else (header.width, header.height)
    return _header_metrics(header, width, height, name, len(data))


def _header_metrics(header, width, height, name, size):
    return {"format": header.format, "width": width, "height": height, "short_side": min(width, height),
            "megapixels": width * height / 1e6, "aspect": max(width, height) / min(width, height),
            "bits": header.bits, "gray": header.mode in ("1", "L", "LA", "I", "F", "I;16", "I;16B"),
            "cmyk": header.mode == "CMYK", "frames": header.frames, "progressive": header.progressive,
            "misnamed": misnamed(name, header.format),
            "jpeg_quality": jpeg_quality(header.tables[0]) if header.tables else None,
            "bits_per_pixel": 8 * size / (width * height)}


def pixel_metrics(pixels):
    """The metrics of decoded pixels: uint8 (h, w) gray or (h, w, 3) BGR."""
    gray = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY)
    pyramid = [gray]
    while max(pyramid[-1].shape) > 350 and min(pyramid[-1].shape) >= 4:
        pyramid.append(halve(pyramid[-1]))
    # the smallest level that still has what a metric looks for
    middle = next(level for level in pyramid if max(level.shape) <= 700 or level is pyramid[-1])
    small = _every(pixels, 1 << len(pyramid))             # 88 to 175 pixels: colour changes slowly
    row = {}
    row["phash"], row["phash_quality"] = phash.pdq(_level(pyramid, 128))
    row["descriptor"] = describe(_level(pyramid, 192))
    row.update(_sharpness(pyramid))
    row["zero_gradient"] = _equal(gray)
    channels = _channels(small)
    row.update(_tone(channels, pyramid[-1][::2]))
    row.update(_frame(cv2.min(cv2.min(*channels[:2]), channels[2]), pyramid[-1]))
    row.update(_profile(middle))
    row["text"] = _text(pyramid[-1])
    return row


def _level(pyramid, least):
    """The smallest level whose sides are at least so many pixels; the picture itself when none is."""
    return next((level for level in reversed(pyramid) if min(level.shape) >= least), pyramid[0])


def _every(pixels, step):
    """``pixels[::step, ::step]`` but for an incomplete last row and column, at a seventh of the time."""
    height, width = (max(step, side // step * step) for side in pixels.shape[:2])
    return cv2.resize(pixels[:height, :width], (max(1, width // step), max(1, height // step)),
                      interpolation=cv2.INTER_NEAREST)


def _sharpness(pyramid):
    """Sharpness at four scales, noise, flat share, blockiness."""
    row = {name: None for name in ("sharpness", "sharpness_2", "sharpness_4", "sharpness_8", "sharpness_axis", "noise",
                                   "noise_2", "noise_even", "noise_ratio", "noise_ratio_2", "flat", "blockiness",
                                   "pixel_quality")}
    noise = 0.0
    for scale, block, gray in zip((1, 2, 4, 8), (16, 16, 8, 8), [*pyramid, *_further(pyramid[-1])]):
        if min(gray.shape) < 4 * block + 2 or (scale == 8 and min(gray.shape) < 60):
            break
        maps = block_maps(gray, block, scale == 1, SAMPLED * 2 // (scale + 1))
        larger, (found, even) = noise, _noise(maps) if scale <= 4 else (0.0, None)
        ratio = found / larger if larger else None
        # white noise halves with the size; what a quarter or an eighth shows beyond that is structure
        noise = found if scale <= 2 else noise / 2
        along_x, along_y, both = _ratios(maps, noise)
        row["sharpness" if scale == 1 else f"sharpness_{scale}"] = both
        if scale == 1:
            (left, across), (top, down) = grid_phase(maps.columns), grid_phase(maps.rows)
            # a texture has a period of 8 in one direction by chance, hardly in both
            row.update(noise=noise, noise_even=even, flat=float((maps.gradient < 1.5 + 2.3 * noise).mean()),
                       blockiness=min(across, down), pixel_quality=pixel_quality(gray, left, top))
        elif scale == 2:
            known = [ratio for ratio in (along_x, along_y) if ratio is not None]
            row.update(noise_2=noise, noise_ratio=ratio, sharpness_axis=min(known, default=None))
        elif scale == 4:
            row["noise_ratio_2"] = ratio
    return row


def _further(gray):
    for _ in range(3):
        if min(gray.shape) < 4:
            return
        gray = halve(gray)
        yield gray


def _ranks(values, *shares):
    """The values at these shares of the sorted ones (np.percentile without interpolation, at a tenth of its time)."""
    at = [int(share * (values.size - 1)) for share in shares]
    return [float(value) for value in np.partition(values, at)[at]]


def _noise(maps):
    """Immerkaer's estimate (1996), sigma = sqrt(pi / 2) / 6 mean|N|, at the 10th percentile of the blocks that are not
    clipped to black or white, where noise cannot show; and that percentile over the median: noise is everywhere alike,
    texture is not."""
    usable = maps.cross[(maps.mean > 6) & (maps.mean < 249)]
    if usable.size < 8:
        usable = maps.cross.ravel()
    low, middle = _ranks(usable, 0.1, 0.5)
    return low * (np.pi / 2) ** 0.5 / 6, low / max(middle, 1e-3)


def _ratios(maps, noise):
    """Second over first differences, along x, along y and together, in the most textured quarter of the blocks.

    White noise of deviation s gives mean |first difference| = 1.128 s and mean |second difference| = 1.954 s; both are
    taken off in quadrature.
    """
    gradient = maps.gradient
    quarter, top = _ranks(gradient.ravel(), 0.75, 0.99)
    chosen = gradient >= max(quarter, 0.1 * top)           # mostly empty pictures are judged by what is there
    weights = chosen.ravel().astype(np.float32)
    first_x, first_y, second_x, second_y = (maps.values[:4].reshape(4, -1) @ weights / weights.sum()).tolist()

    def ratio(second, first, count):
        second = max(second ** 2 - (1.954 * count * noise) ** 2, 0) ** 0.5
        first = max(first ** 2 - (1.128 * count * noise) ** 2, 0) ** 0.5
        return second / first if first > 0.05 else None    # nothing there to be sharp or blurred
    return ratio(second_x, first_x, 1), ratio(second_y, first_y, 1), ratio(second_x + second_y, first_x + first_y, 2)


def _equal(gray):
    """Share of exactly equal neighbours, on every eighth row."""
    rows = gray[::8 if gray.shape[0] > 256 else 4]
    return 1 - cv2.countNonZero(cv2.absdiff(rows[:, 1:], rows[:, :-1])) / max(1, rows[:, 1:].size)


def _profile(gray):
    """How drawing-like 8x8 blocks are: residual of the best two levels over their distance, in blocks with an edge."""
    high, wide = gray.shape[0] // 8, gray.shape[1] // 8
    if not high or not wide:
        return {"edge_profile": None, "drawn": None}
    gray = gray[:8 * high].reshape(high, 8, -1)
    if high * wide > 2000:                                # every other row of blocks is enough
        gray = gray[::2]
    high = len(gray)
    gray = np.ascontiguousarray(gray.reshape(8 * high, -1)[:, :8 * wide])
    low, top = (_eighths(_eighths(gray, ends).T, ends).T.ravel() for ends in (np.minimum, np.maximum))
    spread = top - low
    edges = np.flatnonzero(spread > 40)
    even = np.count_nonzero(spread <= 12)
    if not len(edges):
        return {"edge_profile": None, "drawn": even / spread.size}
    chosen = edges[np.linspace(0, len(edges) - 1, min(len(edges), 400)).astype(int)]
    blocks = gray.reshape(high, 8, wide, 8)[chosen // wide, :, chosen % wide].reshape(-1, 64)
    blocks = blocks.astype(np.float32)
    middle = (low[chosen].astype(np.float32) + top[chosen])[:, None] / 2
    is_low, ones = (blocks < middle).astype(np.float32), np.ones((64, 1), np.float32)
    count, total, low_sum = is_low @ ones, blocks @ ones, (blocks * is_low) @ ones        # a product is the quickest sum
    low_level, level = low_sum / np.maximum(1, count), (total - low_sum) / np.maximum(1, 64 - count)
    residual = (np.abs(blocks - level - is_low * (low_level - level)) @ ones)[:, 0] / (64 * spread[chosen].astype(np.float32))
    return {"edge_profile": float((residual < 0.06).mean()),
            "drawn": float((even + len(edges) * (residual < 0.065).mean()) / spread.size)}


def _eighths(gray, ends):
    """Lowest or highest of every eight rows."""
    return ends.reduce(np.ascontiguousarray(gray).reshape(-1, 8, gray.shape[1]), 1)


def _channels(small):
    return [small] * 3 if small.ndim == 2 else cv2.split(small)


def _tone(channels, gray):
    """Exposure, contrast, entropy, saturation and number of colours."""
    counts = np.bincount(gray.ravel(), minlength=256)
    share = counts / counts.sum()
    below = share.cumsum()
    low, high = (int(np.searchsorted(below, p)) for p in (0.02, 0.98))
    used = share[share > 0]
    blue, green, red = channels
    spread = cv2.subtract(cv2.max(cv2.max(blue, green), red), cv2.min(cv2.min(blue, green), red))
    packed = (blue & 0xF0).astype(np.uint16) << 4 | (green & 0xF0) | red >> 4
    colours = np.bincount(packed.ravel(), minlength=4096)
    colours = np.sort(colours[colours > 0])[::-1].cumsum()
    return {"brightness": float((share * np.arange(256)).sum()), "contrast": float(high - low),
            "dark": float(share[:8].sum()), "bright": float(share[248:].sum()),
            "entropy": float(-(used * np.log2(used)).sum()),
            "saturation": cv2.mean(spread)[0],
            "colours": float(np.searchsorted(colours, 0.95 * packed.size) + 1)}


def _frame(darkest, gray):
    """White ring and object share of product photos; constant bands at the edges."""
    white = cv2.threshold(darkest, 237, 255, cv2.THRESH_BINARY)[1]
    height, width = white.shape
    h, w = max(1, round(0.04 * height)), max(1, round(0.04 * width))
    inside = white[h:height - h, w:width - w]
    total = cv2.countNonZero(white)
    ring = total - (cv2.countNonZero(inside) if inside.size else 0)
    top, bottom = _bands(gray), _bands(gray[::-1])
    left, right = _bands(gray.T), _bands(gray.T[::-1])
    kept = max(0, 1 - (top + bottom) / gray.shape[0]) * max(0, 1 - (left + right) / gray.shape[1])
    return {"white_ring": ring / (white.size - inside.size), "object_share": 1 - total / white.size,
            "border_share": float(1 - kept)}


def _bands(gray):
    """Rows of one constant colour at the top that end at a straight edge, as a letterbox does and a wall does not."""
    level = np.sort(gray[0])[gray.shape[1] // 2]
    for count in (1, 16, len(gray)):       # most pictures have no band: look at few rows first
        alike = _alike(gray[:count], level)
        if (alike <= 0.98).any():
            break
    else:
        return len(gray)
    end = int((alike <= 0.98).argmax())
    return end if end and _alike(gray[end:end + 4], level).min() < 0.5 else 0


def _alike(rows, level):
    """Share of the pixels of each row within 6 levels of one."""
    return np.count_nonzero(np.abs(rows.astype(np.int16) - int(level)) <= 6, axis=1) / rows.shape[1]


def _text(gray):
    """Share of the area in horizontal runs of short, strong, closely spaced strokes."""
    if min(gray.shape) < 16:
        return 0.0
    strong = cv2.threshold(cv2.absdiff(gray[:, 1:], gray[:, :-1]), 32, 255, cv2.THRESH_BINARY)[1]
    if not cv2.countNonZero(strong):
        return 0.0
    # cells of 12x3 pixels: dense in strokes where the cells above and below are not
    high, wide = gray.shape[0] // 3, (gray.shape[1] - 1) // 12
    density = cv2.resize(strong[:3 * high, :12 * wide], (wide, high), interpolation=cv2.INTER_AREA).astype(np.float32)
    around = cv2.blur(density, (1, 3))
    return float(np.count_nonzero((density > 51) & (around < 0.5 * density)) / density.size)


def _plugin(row, prefix, function, pixels):
    rgb = pixels[:, :, ::-1] if pixels.ndim == 3 else np.repeat(pixels[:, :, None], 3, 2)
    try:
        values = function(np.ascontiguousarray(rgb), dict(row))
    except Exception as error:  # noqa: BLE001  somebody else's code must not end the run
        return {"error": row["error"] or f"plugin: {prefix}: {type(error).__name__}: {error}"}
    values = values if isinstance(values, dict) else {"score": values}
    return {f"{prefix}.{name}": float(value) for name, value in values.items()}
