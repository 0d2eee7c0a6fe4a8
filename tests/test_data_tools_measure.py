"""Metrics against what they are meant to tell: brute-force values, and pictures made to have or lack one property."""

import functools

import cv2
import numpy as np
import pytest

from data_tools import niqe, phash, watermark
from data_tools.jpegtrace import grid_phase, pixel_quality
from data_tools.maps import block_maps, halve
from data_tools.measure import METRICS, measure, pixel_metrics, schema


@functools.cache
def natural(seed=0, height=320, width=480):
    """Occluding discs of all sizes with texture: sharp edges, flat parts and fine detail, as photos have them."""
    random = np.random.default_rng(seed)
    image = np.full((2 * height, 2 * width, 3), 120, np.float32)
    for _ in range(400):
        radius = int(4 / random.uniform(0.03, 1) ** 0.9)
        centre = (int(random.integers(2 * width)), int(random.integers(2 * height)))
        cv2.circle(image, centre, radius, random.uniform(20, 235, 3).tolist(), -1)
    y, x = np.meshgrid(np.fft.fftfreq(2 * height), np.fft.rfftfreq(2 * width), indexing="ij")
    grain = np.fft.irfft2(np.fft.rfft2(random.normal(size=(2 * height, 2 * width))) / np.maximum(np.hypot(x, y), 0.01),
                          (2 * height, 2 * width))
    image += 6 * (grain / grain.std())[:, :, None]
    return np.clip(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), 0, 255).astype(np.uint8)


def jpeg(pixels, quality):
    return cv2.imdecode(cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR)


def noisy(pixels, sigma):
    return np.clip(pixels + np.random.default_rng(1).normal(0, sigma, pixels.shape), 0, 255).astype(np.uint8)


def means(values, block=16):
    rows, columns = values.shape[0] // block, values.shape[1] // block
    return values[:rows * block, :columns * block].reshape(rows, block, columns, block).mean((1, 3))


@pytest.mark.parametrize("shape", [(131, 70), (18, 500), (700, 34)])
def test_block_maps_are_plain_block_means(shape):
    gray = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    maps, g = block_maps(gray, 16, grid=True), gray.astype(float)
    dx, dy = np.diff(g, axis=1), np.diff(g, axis=0)
    dxx, dyy = np.diff(dx, axis=1), np.diff(dy, axis=0)
    wanted = [dx[1:-1], dy[1:, 1:-1], dxx[1:-1], dyy[:, 1:-1], np.diff(dyy, 2, 1), g[1:-1, 1:-1]]
    for got, expected in zip(maps.values, wanted):
        np.testing.assert_allclose(got, means(np.abs(expected))[:got.shape[0], :got.shape[1]], atol=1e-4)
    seen = ~np.isnan(maps.rows)
    np.testing.assert_allclose(maps.rows[seen], (np.minimum(np.abs(dy), 24).sum(1) / shape[1])[seen], atol=1e-4)
    np.testing.assert_allclose(maps.columns, np.minimum(np.abs(dx[:seen.sum() + 2]), 24).mean(0), atol=1e-4)


def test_sampled_maps_see_the_whole_height():
    gray = np.zeros((4000, 1000), np.uint8)
    gray[::2] = 200
    maps = block_maps(gray, 16, pixels=100_000)
    assert maps.values.shape[1] * 16 * 1000 < 400_000 and (maps.values[1] > 150).all()


def test_halving_is_the_mean_of_four():
    gray = np.random.default_rng(0).integers(0, 256, (31, 20), np.uint8)
    expected = gray[:30].reshape(15, 2, 10, 2).mean((1, 3))
    assert np.abs(halve(gray) - expected).max() <= 0.5


def test_sharpness_orders_blur_and_knows_steps():
    step = np.zeros((256, 256), np.uint8)
    step[:, 100:] = 200
    assert pixel_metrics(step)["sharpness"] == pytest.approx(2, abs=0.01)      # |d2| / |d1| of a clean step
    values = [pixel_metrics(cv2.GaussianBlur(natural(), (0, 0), s))["sharpness"] for s in (1, 1.5, 2, 3)]
    assert values == sorted(values, reverse=True)
    for sigma, value in zip((1.5, 2, 3), values[1:]):
        assert 0.5 / sigma < value < 1.1 / sigma                               # about 0.8 / sigma


def test_blur_and_enlargement_are_seen_through_noise_and_compression():
    sharp = pixel_metrics(natural())
    assert sharp["sharpness"] > 1.05 and sharp["sharpness_2"] > 1.1
    blurred = pixel_metrics(noisy(cv2.GaussianBlur(natural(), (0, 0), 4), 4))
    assert blurred["sharpness_2"] < 0.9 and blurred["sharpness_4"] < 1.0
    assert pixel_metrics(jpeg(cv2.GaussianBlur(natural(), (0, 0), 2), 60))["sharpness"] < 0.9
    small = cv2.resize(natural(), None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    assert pixel_metrics(cv2.resize(small, (480, 320), interpolation=cv2.INTER_CUBIC))["sharpness"] < 0.98
    shaken = cv2.blur(natural(), (17, 1))
    assert pixel_metrics(shaken)["sharpness_axis"] < 0.8


@pytest.mark.parametrize("sigma", [5, 10, 20, 40])
def test_noise_is_measured_in_levels_and_told_from_texture(sigma):
    flat = np.full((256, 384), 128, np.float32)
    got = pixel_metrics(np.clip(flat + np.random.default_rng(0).normal(0, sigma, flat.shape), 0, 255).astype(np.uint8))
    assert 0.8 * sigma < got["noise"] < 1.05 * sigma                           # a low percentile lies somewhat below
    assert 0.4 < got["noise_ratio"] < 0.65 and got["noise_even"] > 0.8


@pytest.mark.parametrize("quality", [10, 20, 30, 50, 75])
def test_the_strongest_compression_is_read_from_pixels(quality):
    gray = cv2.cvtColor(jpeg(natural(), quality), cv2.COLOR_BGR2GRAY)
    assert abs(pixel_metrics(gray)["pixel_quality"] - quality) <= 7
    if quality <= 50:                                                          # cropped off the grid and saved finely
        again = jpeg(jpeg(natural(), quality)[3:, 5:], 92)
        assert abs(pixel_metrics(again)["pixel_quality"] - quality) <= 9
    assert pixel_metrics(natural())["pixel_quality"] == 100


def test_the_grid_is_found_where_it_is():
    gray = cv2.cvtColor(jpeg(natural(), 20), cv2.COLOR_BGR2GRAY)[2:, 5:]
    maps = block_maps(gray, 16, grid=True)
    assert (grid_phase(maps.columns)[0], grid_phase(maps.rows)[0]) == (3, 6)
    assert pixel_quality(gray, 3, 6) < 35


def test_frames_flatness_and_drawings():
    product = np.full((400, 400, 3), 255, np.uint8)
    product[120:280, 140:260] = natural()[:160, :120]
    got = pixel_metrics(product)
    assert got["white_ring"] == 1 and got["object_share"] == pytest.approx(0.12, abs=0.02) and got["border_share"] == 0
    boxed = natural().copy()
    boxed[:40] = boxed[-40:] = 0
    assert pixel_metrics(boxed)["border_share"] == pytest.approx(0.25, abs=0.02)
    assert pixel_metrics(natural())["border_share"] == 0
    plain = np.full((300, 300, 3), 90, np.uint8)
    got = pixel_metrics(plain)
    assert got["flat"] == 1 and got["entropy"] == 0 and got["contrast"] == 0 and got["colours"] == 1
    assert got["sharpness"] is None
    drawing = np.full((400, 500, 3), 240, np.uint8)
    for k in range(12):
        cv2.circle(drawing, (40 + 37 * k, 60 + 25 * k), 34, (20 * k, 90, 255 - 20 * k), -1, cv2.LINE_AA)
    got = pixel_metrics(drawing)
    assert got["edge_profile"] > 0.3 and got["drawn"] > 0.8 and got["zero_gradient"] > 0.9


def test_a_row_fits_the_schema_and_errors_keep_the_header():
    import pyarrow as pa
    data = cv2.imencode(".jpg", natural())[1].tobytes()
    row = measure(data, "a.png")
    assert set(row) <= set(schema().names) and row["misnamed"] and row["error"] is None
    assert [name for name in METRICS if row[name] is None and name != "sharpness_8"] == []
    cut = measure(data[:len(data) // 2], "a.jpg")
    assert cut["error"].startswith("truncated: ") and (cut["width"], cut["height"]) == (480, 320)
    pa.Table.from_pylist([{**row, "id": "0"}, {**cut, "id": "1"}], schema())


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (7, 200), (200, 7), (17, 17), (64, 64), (1, 5000)])
def test_tiny_and_thin_images_are_measured(shape):
    for pixels in (np.random.default_rng(0).integers(0, 256, shape, np.uint8), np.zeros((*shape, 3), np.uint8)):
        row = pixel_metrics(pixels)
        assert len(row["phash"]) == 32 and np.isfinite(row["entropy"])


def test_hashes_survive_what_copies_go_through():
    gray = [cv2.cvtColor(natural(seed), cv2.COLOR_BGR2GRAY) for seed in range(6)]
    hashes = [phash.pdq(g)[0] for g in gray]
    for g, h in zip(gray, hashes):
        assert phash.distance(h, phash.pdq(cv2.resize(g, (240, 160), interpolation=cv2.INTER_AREA))[0]) <= 20
        assert phash.distance(h, phash.pdq(cv2.imdecode(cv2.imencode(".jpg", g, [1, 40])[1], 0))[0]) <= 20
        turned = phash.pdq_dihedral(g)[0]
        for k, version in enumerate((g, g[:, ::-1], g[::-1], g[::-1, ::-1])):
            assert phash.distance(turned[k].tobytes(), phash.pdq(np.ascontiguousarray(version))[0]) <= 20
    assert min(phash.distance(a, b) for k, a in enumerate(hashes) for b in hashes[:k]) > 70


def test_a_mark_that_a_source_shares_is_found():
    def marked(seed):
        gray = cv2.cvtColor(natural(seed, 260 + 7 * (seed % 5), 400), cv2.COLOR_BGR2GRAY).astype(np.float32)
        mark = np.zeros(gray.shape, np.uint8)
        cv2.putText(mark, "stock", (gray.shape[1] // 2 - 80, gray.shape[0] // 2 + 10), 2, 1.6, 255, 2, cv2.LINE_AA)
        return (gray + (255 - gray) * 0.4 * (mark / 255)).astype(np.uint8)
    filters, scores = watermark.learn([watermark.windows(marked(k)) for k in range(20)])
    assert "centre" in filters and (scores > watermark.FOUND).mean() >= 0.8
    plain = [watermark.windows(cv2.cvtColor(natural(100 + k, 280, 400), cv2.COLOR_BGR2GRAY)) for k in range(20)]
    assert watermark.learn(plain)[0] == {}
    assert np.mean([watermark.best(windows, filters) > watermark.FOUND for windows in plain]) <= 0.05
    assert watermark.best(watermark.windows(marked(50)), filters) > watermark.FOUND


def test_niqe_orders_distortions():
    grays = [cv2.cvtColor(natural(seed), cv2.COLOR_BGR2GRAY) for seed in range(32)]
    model = niqe.fit(grays[:30])
    clean = niqe.score(grays[30], model)
    assert clean < niqe.score(cv2.GaussianBlur(grays[30], (0, 0), 2), model)
    assert clean < niqe.score(noisy(grays[30], 25), model)
    assert np.isnan(niqe.score(grays[0][:90, :90], model))
