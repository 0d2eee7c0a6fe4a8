"""Finding test images, and degraded, resized, mirrored and cropped copies of them, among the images of a build.

Every image is described once, when it is measured, by a thumbnail of 48x48 luma averages (:func:`describe`). A
:class:`Reference` holds the test images and compares thumbnails with them in three steps:

1. each test image is cut into windows of 70 to 100 % of its sides, a window every 5 %, and each window becomes 16x16
   averages, band-passed and with its local contrast normalised: what noise, compression, haze and rain change least.
   One matrix product gives the correlation with all windows of about the image's own shape;
2. where it is high, the window is fitted at 48x48: by cross-correlation in place and size, then by steps of a fraction of a
   pixel on the test image itself;
3. the correlation r there is judged by its significance atanh(r) / s, where s^2 is the variance that two unrelated
   pictures of the same autocorrelations would show (Bartlett 1935; Pyper and Peterman, doi:10.1139/f98-104): two pictures
   of a plain sky above a plain sea agree by chance, two pictures of a crowd do not.

Hashes do not do this: a crop of 80 % changes a perceptual hash as much as another picture does.
"""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from restore.errors import RestoreError
from restore.files import list_images

from . import phash

VERSION = 1                                # of the comparison: results of another one are not taken over
SIDE = 48                                  # of the thumbnail
COARSE = 16                                # of the index
GATE = 0.42                                # coarse correlation above which a window is fitted
PROMISING = 5.0                            # significance after the first fit above which it is refined
SIGNIFICANT = 7.0                          # standard deviations; see the README for how hits and misses lie around it
SMALLEST = 0.7                             # of a test image's sides that a crop may have
ASPECT = 0.12                              # difference of log(width / height) up to which a window is compared
SAME_REFERENCE = 16                        # hash distance up to which two test images need one entry
_CANDIDATES = 4                            # test images fitted for one image, at most


def describe(gray):
    """The descriptor of a (h, w) uint8 luma image: lowest and highest of its 48x48 averages, then these, as bytes."""
    thumbnail = _shrink(gray, SIDE)
    low, high = int(np.floor(thumbnail.min())), int(np.ceil(thumbnail.max()))
    scaled = np.rint((thumbnail - low) * (255 / max(1, high - low)))
    return bytes([low, high]) + scaled.astype(np.uint8).tobytes()


def thumbnail(descriptor):
    """The (48, 48) float32 averages, 0..255, of a descriptor."""
    values = np.frombuffer(descriptor, np.uint8)
    if len(values) != 2 + SIDE * SIDE:
        raise ValueError(f"a descriptor has {2 + SIDE * SIDE} bytes, not {len(values)}")
    low, high = float(values[0]), float(values[1])
    return low + values[2:].reshape(SIDE, SIDE).astype(np.float32) * (max(1.0, high - low) / 255)


@dataclass(frozen=True)
class Match:
    """A test image that was recognised: its name, the significance, the share of its area, and whether mirrored."""

    name: str
    significance: float
    share: float
    turned: str                            # "" or how the picture has to be turned to lie on the test image


class Reference:
    """The test images below ``folders``, ready to be compared with.

    ``folders`` may be paths or pairs (name, path); a test image is called "name/path below the folder". About 0.4 MB of
    memory and 30 ms per test image. ``turned`` adds upside-down and quarter turns. Raises RestoreError when a folder is
    missing or holds no readable image.
    """

    def __init__(self, folders, turned=False):
        self.variants = _VARIANTS if turned else _VARIANTS[:2]
        self.names, self._images = [], []
        hashes = np.zeros((0, 32), np.uint8)
        for name, folder in (pair if isinstance(pair, tuple) else (Path(pair).name, pair) for pair in folders):
            found = 0
            for path in list_images(folder):
                gray = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_GRAYSCALE) if path.stat().st_size else None
                if gray is None:
                    continue
                found += 1
                code = np.frombuffer(phash.pdq(gray)[0], np.uint8)[None]
                if len(hashes) and phash.distance(hashes, code).min() <= SAME_REFERENCE:
                    continue               # such as the noisy or rainy side of a pair
                hashes = np.concatenate([hashes, code])
                self.names.append(f"{name}/{path.relative_to(folder).as_posix()}")
                self._images.append(_at_most(gray, 4 * SIDE))
            if not found:
                raise RestoreError(f"{folder}: no image that can be read; join.benchmarks names folders of test images")
        self._index()

    def __len__(self):
        return len(self.names)

    def _index(self):
        """The windows of all test images, ordered by their shape: features (k, 256), which image, where, log(w / h)."""
        windows = _windows()
        features, owners, boxes, shapes = [], [], [], []
        for owner, image in enumerate(self._images):
            small = _at_most(image, 5 * COARSE)
            height, width = image.shape
            features.append(np.stack([_unit(_coarse(_cut(small, box, COARSE))) for box in windows]).astype(np.float16))
            owners.append(np.full(len(windows), owner, np.int32))
            boxes.append(windows)
            shapes.append(np.log(width * windows[:, 2] / (height * windows[:, 3])))
        order = np.argsort(np.concatenate(shapes), kind="stable") if shapes else []
        self._features = np.concatenate(features)[order]
        self._owners, self._boxes = np.concatenate(owners)[order], np.concatenate(boxes)[order]
        self._shapes = np.concatenate(shapes)[order]
        self._fits = [_at_most(image, round(1.25 * SIDE)) for image in self._images]

    def match(self, descriptors, widths, heights):
        """A :class:`Match` or None for each of n descriptors (None: nothing to compare) of images of these sizes."""
        found = [None] * len(descriptors)
        jobs = []                          # (log aspect, image, variant)
        for row, descriptor in enumerate(descriptors):
            if descriptor is not None:
                shape = np.log(widths[row] / heights[row])
                jobs += [(-shape if variant[2] else shape, row, v) for v, variant in enumerate(self.variants)]
        jobs.sort()
        thumbnails = {row: thumbnail(descriptors[row]) for row in {job[1] for job in jobs}}
        hypotheses = {}                    # image -> [(correlation, window, variant)]
        start = 0
        while start < len(jobs):
            stop = start
            while stop < len(jobs) and jobs[stop][0] - jobs[start][0] <= 0.04 and stop - start < 256:
                stop += 1
            first, last = np.searchsorted(self._shapes, (jobs[start][0] - ASPECT, jobs[stop - 1][0] + ASPECT))
            group = jobs[start:stop]
            queries = np.stack([_unit(_coarse(_quarter(_turn(thumbnails[row], self.variants[v])))) for _, row, v in group])
            for low in range(first, last, 32768):
                high = min(last, low + 32768)
                scores = queries @ self._features[low:high].astype(np.float32).T
                for which, window in zip(*np.nonzero(scores > GATE)):
                    _, row, v = group[which]
                    hypotheses.setdefault(row, []).append((float(scores[which, window]), low + int(window), v))
            start = stop
        for row, listed in hypotheses.items():
            found[row] = self._verify(thumbnails[row], listed)
        return found

    def _verify(self, picture, listed):
        """The most significant of the best few hypotheses, if it is significant."""
        best, tried = None, set()
        for _, window, v in sorted(listed, key=lambda h: (-h[0], h[1], h[2])):
            owner = int(self._owners[window])
            if (owner, v) in tried:
                continue
            tried.add((owner, v))
            box, significance = self._fit(_turn(picture, self.variants[v]), owner, self._boxes[window])
            if significance >= SIGNIFICANT and (best is None or significance > best.significance):
                best = Match(self.names[owner], round(significance, 1), round(float(box[2] * box[3]), 3),
                             self.variants[v][3])
            if len(tried) == _CANDIDATES or (best and best.significance > 2 * SIGNIFICANT):
                break
        return best

    def _fit(self, picture, owner, box):
        """(box, significance) of the window of test image ``owner`` near ``box`` that fits best."""
        fine = _fine(picture)
        correlation, moved = _slide(fine, self._fits[owner], box)
        image = self._images[owner]
        moved = _inside(moved)
        significance = _significance(fine, _fine(_cut(image, moved, SIDE)), correlation)
        if significance < PROMISING:       # nearly all unrelated pictures end here
            return moved, significance
        unit = _unit(fine)

        def score(candidate):
            inside = _inside(candidate)
            return float(unit @ _unit(_fine(_cut(image, inside, SIDE)))), inside
        correlation, box = max(score(moved), score(box), key=lambda s: s[0])
        step = 1.0                         # in pixels of the thumbnail
        while step > 0.2:
            better = False
            for candidate in _neighbours(box, step / SIDE):
                value, inside = score(candidate)
                if value > correlation + 1e-4:
                    correlation, box, better = value, inside, True
            if not better:
                step /= 2
        return box, _significance(fine, _fine(_cut(image, box, SIDE)), correlation)


# flip left-right, flip upside down, transpose, and its name
_VARIANTS = ((0, 0, 0, ""), (1, 0, 0, "mirrored"), (0, 1, 0, "upside down, mirrored"), (1, 1, 0, "upside down"),
             (0, 0, 1, "transposed"), (1, 0, 1, "turned left"), (0, 1, 1, "turned right"), (1, 1, 1, "turned, mirrored"))


def _turn(picture, variant):
    picture = picture.T if variant[2] else picture
    return np.ascontiguousarray(picture[::-1 if variant[1] else 1, ::-1 if variant[0] else 1])


def _shrink(gray, side):
    shrinks = min(gray.shape) >= side
    return cv2.resize(gray, (side, side), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR).astype(np.float32)


def _at_most(gray, short):
    """The image brought down to a short side of ``short`` pixels, when it is larger."""
    scale = short / min(gray.shape)
    if scale >= 1:
        return gray
    size = tuple(max(short, round(side * scale)) for side in gray.shape[::-1])
    return cv2.resize(gray, size, interpolation=cv2.INTER_AREA)


def _quarter(picture):
    """48x48 -> 16x16 averages."""
    return cv2.resize(picture, (COARSE, COARSE), interpolation=cv2.INTER_AREA)


def _windows():
    """(k, 4) windows x, y, width, height as shares of the sides: every pair of scales of a series, every 10 % of a
    window's side in place, so that some window lies within 5 % of any crop."""
    scales = [1.0]
    while scales[-1] * 0.93 >= SMALLEST - 0.01:
        scales.append(scales[-1] * 0.93)
    places = {s: np.linspace(0, 1 - s, 1 + int(np.ceil((1 - s) / (0.1 * s))) if s < 1 else 1) for s in scales}
    return np.array([(x, y, sx, sy) for sy in scales for sx in scales if abs(np.log(sx / sy)) < 0.3
                     for y in places[sy] for x in places[sx]])


def _cut(image, box, side):
    """The window ``box`` of an image as side x side averages."""
    height, width = image.shape
    x, y, w, h = box
    left, top = round(x * width), round(y * height)
    right, bottom = max(left + 1, round((x + w) * width)), max(top + 1, round((y + h) * height))
    return _shrink(image[top:bottom, left:right], side)


def _normalise(picture, outer, window, inner=0.0):
    """Band-passed, and divided by its local deviation; one grey level keeps plain areas from being amplified."""
    smooth = cv2.GaussianBlur(picture, (0, 0), inner) if inner else picture
    band = smooth - cv2.GaussianBlur(picture, (0, 0), outer)
    return band / np.sqrt(cv2.GaussianBlur(band * band, (0, 0), window) + 1.0)


def _coarse(picture):
    return _normalise(picture, 3.0, 4.0)


def _fine(picture):
    return _normalise(picture, 3.0, 4.0, 0.6)


def _unit(feature):
    """Flattened, mean 0 and length 1."""
    feature = feature - feature.mean()
    return (feature / max(1e-6, np.sqrt((feature * feature).sum()))).ravel()


def _inside(box):
    """``box`` moved and cut so that it lies inside the image."""
    w, h = min(1.0, box[2]), min(1.0, box[3])
    return min(max(0.0, box[0]), 1 - w), min(max(0.0, box[1]), 1 - h), w, h


def _neighbours(box, step):
    """The boxes moved by ``step`` of their side, and grown or shrunk by twice that around their centre."""
    x, y, w, h = box
    for d in (-step, step):
        yield x + d * w, y, w, h
        yield x, y + d * h, w, h
        yield x - d * w, y, w * (1 + 2 * d), h
        yield x, y - d * h, w, h * (1 + 2 * d)


def _slide(fine, image, box, margin=4, border=3):
    """Best correlation, and its box, over shifts by up to ``margin`` pixels and three sizes in each direction.

    The border of ``fine`` is left out: there its band-pass saw the frame, where the window's sees the neighbouring
    pixels.
    """
    height, width = image.shape
    inner = np.ascontiguousarray(fine[border:-border, border:-border])
    best = (-1.0, box)
    side = SIDE + 2 * margin
    for my in (0.96, 1.0, 1.04):
        for mx in (0.96, 1.0, 1.04):
            w, h = min(1.0, box[2] * mx), min(1.0, box[3] * my)
            cx, cy = box[0] + box[2] / 2, box[1] + box[3] / 2
            ax, ay = w * width / SIDE, h * height / SIDE
            to_image = np.array([[ax, 0, cx * width - ax * side / 2 + ax / 2 - 0.5],
                                 [0, ay, cy * height - ay * side / 2 + ay / 2 - 0.5]])
            window = cv2.warpAffine(image, to_image, (side, side), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                                    borderMode=cv2.BORDER_REFLECT).astype(np.float32)
            scores = cv2.matchTemplate(_fine(window), inner, cv2.TM_CCOEFF_NORMED)
            _, score, _, (px, py) = cv2.minMaxLoc(scores)
            if score > best[0]:
                best = (score, (cx - w / 2 + (px - border - margin) * w / SIDE,
                                cy - h / 2 + (py - border - margin) * h / SIDE, w, h))
    return best


def _significance(a, b, correlation):
    """atanh(r) in standard deviations of unrelated pictures with the autocorrelations of ``a`` and ``b``."""
    def autocorrelation(f):
        f = f - f.mean()
        power = np.abs(np.fft.rfft2(f, (2 * SIDE, 2 * SIDE))) ** 2
        values = np.fft.irfft2(power)
        return values / max(values[0, 0], 1e-12)
    variance = float((autocorrelation(a) * autocorrelation(b)).sum()) / a.size
    return float(np.arctanh(np.clip(correlation, -0.9999, 0.9999)) / np.sqrt(max(variance, 1 / a.size)))
