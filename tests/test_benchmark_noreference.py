"""No-reference measures against a separate implementation, formulas written out slowly, and what they must react to."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy import ndimage

from restore.benchmark import fade as fade_module
from restore.benchmark import noreference

SHARED = Path(__file__).resolve().parents[2] / "shared"


def picture(number, height=128, width=160):
    y, x = np.mgrid[:height, :width]
    planes = [(x * (3 + c) + y * (5 - c) + (x // 8) * (y // 8) * (number + 2) + 40 * c) % 256 for c in range(3)]
    return np.stack(planes, -1).astype(np.uint8)


def blurred(number, noise):
    image = cv2.GaussianBlur(picture(number), (5, 5), 1.0)
    image[0, 0] = 255                                    # pypiqe stretches to the largest value
    if noise:
        image = np.clip(image + np.random.default_rng(0).normal(0, 12, image.shape), 0, 255).astype(np.uint8)
        image[0, 0] = 255
    return image


# values of the package pypiqe 1.2, a port of MATLAB's piqe, on the gray levels of these pictures
@pytest.mark.parametrize(("number", "noise", "expected"), [
    (0, False, 87.13103419697256), (0, True, 10.020116148334766), (1, False, 85.1118606986575), (1, True, 18.611092017084093)])
def test_piqe_is_that_of_pypiqe(number, noise, expected):
    assert noreference.piqe(noreference.gray(blurred(number, noise))) == pytest.approx(expected, abs=1e-6)


def slow_fade(image):
    """FADE patch by patch, with general-purpose filters and explicit covariance matrices."""
    rgb = image.astype(float)
    red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    gray = noreference.gray(image)
    window = np.exp(-0.5 * (np.arange(-3, 4) / (7 / 6)) ** 2)
    window = np.outer(window, window) / np.outer(window, window).sum()
    mean = ndimage.correlate(gray, window, mode="nearest")
    deviation = np.sqrt(np.abs(ndimage.correlate(gray ** 2, window, mode="nearest") - mean ** 2))
    coefficient = (gray - mean) / (deviation + 1)
    pairs = coefficient * np.vstack([coefficient[-1:], coefficient[:-1]])
    energies = []
    for plane, threshold in ((0.299 * red + 0.587 * green + 0.114 * blue, 9.225496406318721e-4),
                             (0.5 * (red + green) - blue, 8.969246659629488e-4), (red - green, 2.069284034165411e-4)):
        x = np.arange(20) - 9.75
        kernel = (x ** 2 / 3.25 ** 4 - 1 / 3.25 ** 2) * np.exp(-x ** 2 / 2 / 3.25 ** 2) / np.exp(-x ** 2 / 2 / 3.25 ** 2).sum()
        kernel -= kernel.mean()
        kernel /= (x ** 2 * kernel).sum() / 2
        grown = np.vstack([plane[:10], plane, plane[-10:]])
        grown = np.hstack([grown[:, :10], grown, grown[:, -10:]])
        across, down = (np.apply_along_axis(lambda line, k=kernel: np.convolve(line, k)[10:10 + len(line)], axis, grown)
                        for axis in (1, 0))
        energy = np.hypot(across, down)[10:-10, 10:-10]
        response = energy * energy.max() / (energy + 0.1 * energy.max()) - threshold * 255
        energies.append(np.where(response > 1e-7, response, 0))
    distances = []
    for top in range(0, image.shape[0] // 8 * 8, 8):
        for left in range(0, image.shape[1] // 8 * 8, 8):
            part = np.s_[top:top + 8, left:left + 8]
            positive, negative = (pairs[part][keep] for keep in (pairs[part] >= 0, pairs[part] <= 0))
            levels = np.unique(gray[part], return_counts=True)[1] / 64
            tile = rgb[part] / 255
            opponent = ((red - green)[part], (0.5 * (red + green) - blue)[part])
            features = [coefficient[part].var(ddof=1), positive.var(ddof=1), negative.var(ddof=1), deviation[part].mean(),
                        (deviation / mean)[part].mean(), *(energy[part].mean() for energy in energies),
                        -(levels * np.log2(levels)).sum(), tile.min(-1).mean(),
                        (1 - tile.min(-1) / np.maximum(tile.max(-1), 1e-12)).mean(),
                        np.sqrt(sum(o.var(ddof=1) for o in opponent)) + 0.3 * np.sqrt(sum(o.mean() ** 2 for o in opponent))]
            features = np.log(1 + np.array(features))
            row = []
            for model_mean, covariance in fade_module._models():
                joint = (np.full((12, 12), features.var(ddof=1)) + covariance) / 2
                row.append(np.sqrt((model_mean - features) @ np.linalg.inv(joint) @ (model_mean - features)))
            distances.append(row)
    clear, foggy = np.array(distances).mean(0)
    return clear / (foggy + 1)


def test_fade_is_its_formula_written_out():
    image = cv2.GaussianBlur(picture(1, 48, 64), (7, 7), 2.0)
    image = np.clip(image + np.random.default_rng(3).normal(0, 3, image.shape), 1, 255).astype(np.uint8)
    assert noreference.fade(image) == pytest.approx(slow_fade(image), rel=1e-8)
    assert noreference.fade(np.vstack([image, image[:5]])) > 0                  # odd rows are left out


def test_fade_grows_with_fog():
    rng = np.random.default_rng(0)
    scene = cv2.resize(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8), (160, 120), interpolation=cv2.INTER_CUBIC) / 255.0
    scene = np.clip(scene + rng.normal(0, 0.03, scene.shape), 0, 1)
    values = [noreference.fade(np.uint8(255 * (scene * t + 0.9 * (1 - t)))) for t in (1.0, 0.7, 0.4, 0.2)]
    assert values == sorted(values) and values[-1] > 3 * values[0]


@pytest.mark.skipif(not (SHARED / "data").is_dir(), reason="the shared photos are not beside this checkout")
def test_fade_tells_hazy_from_clear_photos():
    from restore.image import read_rgb8
    folder = SHARED / "data" / "train" / "haze" / "sots_indoor"
    hazy = sorted(p for p in folder.rglob("*") if p.suffix in (".png", ".jpg") and p.parent.name == "hazy")[:6]
    assert hazy
    for path in hazy:
        clear = path.parents[1] / "clear" / f"{path.stem.split('_')[0]}{path.suffix}"
        assert noreference.fade(read_rgb8(path)) > 1.2 * noreference.fade(read_rgb8(clear))


def test_simple_measures_by_hand():
    half = np.zeros((64, 64, 3), np.uint8)
    half[:, 32:] = 255
    assert noreference.entropy(half) == pytest.approx(1.0)
    assert noreference.contrast(half) == pytest.approx(0.5)
    assert noreference.entropy(np.full((8, 8, 3), 7, np.uint8)) == 0.0
    ramp = np.repeat(np.arange(0, 128, 2, dtype=np.uint8)[None, :, None], 64, 0).repeat(3, 2)
    assert noreference.tenengrad(ramp) == pytest.approx((16.0 ** 2) * 62 / 64)        # Sobel of slope 2 is 8 * 2, 0 at the ends
    image = blurred(1, False)
    softer = cv2.GaussianBlur(image, (9, 9), 3.0)
    assert noreference.laplacian(image) > 2 * noreference.laplacian(softer)
    assert noreference.tenengrad(image) > noreference.tenengrad(softer)


def test_pyiqa_is_optional(monkeypatch):
    import sys

    from restore.benchmark.catalog import Metric
    from restore.errors import RestoreError
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    with pytest.raises(RestoreError, match="pip install pyiqa"):
        noreference.measure(Metric("niqe", "pyiqa", model="niqe-of-nobody"), picture(0))
