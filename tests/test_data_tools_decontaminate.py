"""Copies of test images are recognised after everything that the issue names, other pictures are not."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from work_folder import measured, photo, write

from data_tools import decontaminate, join
from data_tools.decontaminate import Reference, describe, thumbnail
from restore.degradations.haze import random_haze
from restore.degradations.rain import rain
from restore.errors import RestoreError

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def through(function):
    """A degradation of ``restore`` on a uint8 BGR picture."""
    def degraded(image, seed):
        tensor = torch.from_numpy(image[:, :, ::-1].copy()).permute(2, 0, 1).float() / 255
        result = function(tensor, torch.Generator().manual_seed(seed))
        return (result * 255).round().byte().permute(1, 2, 0).numpy()[:, :, ::-1].copy()
    return degraded


def noisy(image, seed):
    return np.clip(image + np.random.default_rng(seed).normal(0, 25, image.shape), 0, 255).astype(np.uint8)


def jpeg(image, seed):
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 50])[1], cv2.IMREAD_COLOR)


def scaled(factor):
    way = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    return lambda image, seed: cv2.resize(image, None, fx=factor, fy=factor, interpolation=way)


def cropped(image, seed):
    rng = np.random.default_rng(seed)
    height, width = (int(0.8 * side) for side in image.shape[:2])
    y, x = rng.integers(0, image.shape[0] - height + 1), rng.integers(0, image.shape[1] - width + 1)
    return image[y:y + height, x:x + width]


TRANSFORMS = {
    "as is": lambda image, seed: image, "noise 25": noisy, "haze": through(random_haze), "rain": through(rain), "JPEG 50": jpeg,
    "2x down": scaled(0.5), "1.5x up": scaled(1.5), "mirror": lambda image, seed: image[:, ::-1],
    "80 % crop": cropped, "crop, mirror, noise, JPEG": lambda image, seed: jpeg(noisy(cropped(image, seed)[:, ::-1], seed), seed),
}


def matches(reference, images):
    grays = [cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_BGR2GRAY) for image in images]
    return reference.match([describe(g) for g in grays], [g.shape[1] for g in grays], [g.shape[0] for g in grays])


@pytest.fixture(scope="module")
def tests(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tests")
    for seed in range(8):
        write(folder / f"{seed}.png", photo(seed) if seed % 2 else photo(seed, 481, 321))
    return folder


@pytest.fixture(scope="module")
def reference(tests):
    return Reference([("set", tests)])


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transformed_copies_are_found(reference, tests, name):
    images = [TRANSFORMS[name](cv2.imread(str(tests / f"{seed}.png")), seed) for seed in range(8)]
    found = matches(reference, images)
    assert [match and match.name for match in found] == [f"set/{seed}.png" for seed in range(8)]
    assert all(("mirror" in match.turned) == ("mirror" in name) for match in found)
    if "crop" in name:
        assert all(abs(match.share - 0.64) < 0.05 for match in found)


def test_other_pictures_are_not(reference):
    assert matches(reference, [photo(seed) for seed in range(100, 160)]) == [None] * 60


def test_plain_pictures_are_not(reference):
    """Flat and graded pictures have no content that could agree."""
    ramp = np.tile(np.linspace(0, 255, 481).astype(np.uint8)[None, :, None], (321, 1, 3))
    sky = np.clip(ramp.transpose(1, 0, 2)[:321, :481 // 2] // 2 + 100, 0, 255)
    flat = [np.full((321, 481, 3), level, np.uint8) for level in (0, 128, 255)]
    assert matches(reference, [*flat, ramp, sky, np.full((1, 1, 3), 7, np.uint8)]) == [None] * 6


def test_turned_copies_when_asked_for(tests):
    image = cv2.imread(str(tests / "1.png"))
    turns = [cv2.rotate(image, way) for way in (cv2.ROTATE_90_CLOCKWISE, cv2.ROTATE_180, cv2.ROTATE_90_COUNTERCLOCKWISE)]
    found = matches(Reference([("set", tests)], turned=True), turns)
    assert [match.name for match in found] == ["set/1.png"] * 3
    assert len({match.turned for match in found}) == 3


def test_batches_do_not_matter(reference, tests):
    images = [cropped(cv2.imread(str(tests / f"{seed}.png")), seed) for seed in range(8)] + [photo(200)]
    together = matches(reference, images)
    assert together == [matches(reference, [image])[0] for image in images]
    assert reference.match([None], [10], [10]) == [None]


def test_descriptor_round_trip():
    gray = cv2.cvtColor(photo(3), cv2.COLOR_BGR2GRAY)
    expected = cv2.resize(gray, (48, 48), interpolation=cv2.INTER_AREA).astype(float)
    assert np.abs(thumbnail(describe(gray)) - expected).max() < 0.8
    with pytest.raises(ValueError, match="2306 bytes"):
        thumbnail(b"short")


def test_same_test_image_is_kept_once(tmp_path):
    write(tmp_path / "set" / "clean" / "1.png", photo(1))
    write(tmp_path / "set" / "noisy" / "1.png", noisy(photo(1), 0))
    assert Reference([tmp_path / "set"]).names == ["set/clean/1.png"]


def test_folders_are_checked(tmp_path):
    with pytest.raises(RestoreError, match="no such folder"):
        Reference([tmp_path / "missing"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(RestoreError, match="no image that can be read"):
        Reference([tmp_path / "empty"])


def test_join_marks_them_and_compares_new_parts_only(tmp_path, tests, monkeypatch):
    source = tmp_path / "web"
    write(source / "a.jpg", jpeg(cropped(cv2.imread(str(tests / "2.png")), 5), 0))
    write(source / "b.jpg", photo(300))
    store, recipe = measured([source], tmp_path / "work", join__benchmarks=[str(tests)])
    said = join.join(store, recipe)
    rows = dict(zip(store.read("scan")["name"].to_pylist(), store.read("join").to_pylist()))
    assert rows["a.jpg"]["contaminated_by"] == f"{tests.name}/2.png"
    assert "% of test image" in rows["a.jpg"]["reason"]
    assert rows["b.jpg"]["contaminated_by"] is None
    assert said.endswith("1 copies of 8 test images")
    monkeypatch.setattr(decontaminate.Reference, "match", lambda *_: pytest.fail("compared again"))
    monkeypatch.setattr(decontaminate.Reference, "__init__", lambda self, folders, turned: None)
    recipe.join.near_distance = 20
    join.join(store, recipe)
    assert store.read("join")["contaminated_by"].null_count == 1


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "bench").is_dir(), reason="needs CBSD68, Rain100L and BSDS beside the checkout")
def test_the_benchmarks_of_the_field():
    """Every CBSD68 and Rain100L image after every transformation; none of the 365 other BSDS images, nor 56 of Sun-Hays."""
    folders = [SHARED / "bench/denoise/cbsd68", SHARED / "bench/derain/rain100l"]
    reference = Reference(folders, turned=True)            # as the join does
    images = [cv2.imread(str(p)) for p in [*sorted(folders[0].glob("*.png")), *sorted((folders[1] / "clean").glob("*.png"))]]
    assert len(images) == 102
    for name, transform in TRANSFORMS.items():
        found = matches(reference, [transform(image, seed) for seed, image in enumerate(images)])
        assert all(found), (name, found.index(None))
    assert all(matches(reference, [cv2.imread(str(p)) for p in sorted((folders[1] / "rainy").glob("*.png"))]))
    others = sorted((SHARED / "train/clean").glob("*/*.jpg"))
    assert len(others) == 421
    assert not any(matches(reference, [cv2.imread(str(p)) for p in others]))
