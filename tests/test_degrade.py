"""`restore degrade`: files, names, seeds, depth maps, errors, the contact sheet."""

import numpy as np
import pytest
import torch
from PIL import Image

from restore.cli import main
from restore.image import from_array, read_image
from restore.sheet import contact_sheet, cover, fit


@pytest.fixture
def photo(tmp_path):
    rows, columns = np.mgrid[:60, :80]
    pixels = np.stack([rows * 4, columns * 3, 120 + 60 * np.sin(columns / 5)], -1).astype(np.uint8)
    path = tmp_path / "photo.png"
    Image.fromarray(pixels).save(path)
    return path


def pixels(path):
    return np.asarray(Image.open(path))


def degrade(*args):
    return main(["degrade", *map(str, args)])


class TestFiles:
    def test_every_kind_into_a_folder(self, photo, tmp_path):
        assert degrade(photo, "-o", tmp_path / "out") == 0
        assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
            f"photo.{kind}.png" for kind in ("haze", "jpeg", "mask", "noise", "rain")]
        for path in (tmp_path / "out").iterdir():
            assert pixels(path).shape == (60, 80, 3) and not np.array_equal(pixels(path), pixels(photo))

    def test_one_image_and_one_kind_into_a_file(self, photo, tmp_path):
        assert degrade(photo, "--kind", "mask", "--patch", 20, "--ratio", "0.25", "-o", tmp_path / "masked.png") == 0
        black = (pixels(tmp_path / "masked.png") == 0).all(-1).reshape(3, 20, 4, 20).all((1, 3))
        assert black.sum() == 3                     # a quarter of 3 x 4 patches

    def test_the_seed_and_the_name_decide(self, photo, tmp_path):
        other = tmp_path / "other" / "b.png"
        other.parent.mkdir()
        Image.open(photo).save(other)
        for folder, seed, names in (("a", 0, [photo]), ("b", 0, [other, photo]), ("c", 1, [photo])):
            assert degrade(*names, "--kind", "rain", "--seed", seed, "-o", tmp_path / folder) == 0
        first, second, third = (pixels(tmp_path / folder / "photo.rain.png") for folder in "abc")
        assert np.array_equal(first, second) and not np.array_equal(first, third)
        assert not np.array_equal(first, pixels(tmp_path / "b" / "b.rain.png"))

    def test_folder_tree_is_kept_and_equal_stems_stay_apart(self, photo, tmp_path):
        tree = tmp_path / "tree" / "sub"
        tree.mkdir(parents=True)
        Image.open(photo).save(tree / "x.png")
        Image.open(photo).save(tree / "x.bmp")
        assert degrade(tmp_path / "tree", "--kind", "noise", "-o", tmp_path / "out") == 0
        assert sorted(p.name for p in (tmp_path / "out" / "sub").iterdir()) == ["x.noise.png", "x.png.noise.png"]

    def test_bit_depth_alpha_and_gray_are_kept(self, tmp_path):
        gray = np.full((40, 50), 30000, np.uint16)
        Image.fromarray(gray).save(tmp_path / "gray16.png")
        Image.fromarray(np.full((40, 50, 4), 128, np.uint8)).save(tmp_path / "alpha.png")
        assert degrade(tmp_path / "gray16.png", tmp_path / "alpha.png", "--kind", "noise", "-o", tmp_path / "out") == 0
        result = read_image(tmp_path / "out" / "gray16.noise.png")
        assert result.gray and result.bits == 16
        noise = (result.pixels[0] - 30000 / 65535) * 255
        assert float(noise.std()) == pytest.approx(25, rel=0.1)      # not averaged over channels
        assert float(read_image(tmp_path / "out" / "alpha.noise.png").alpha[0, 0]) == pytest.approx(128 / 255)

    def test_no_original_is_overwritten_and_no_result_lost(self, photo, tmp_path, capsys):
        before = photo.read_bytes()
        assert degrade(photo, "--kind", "rain", "-o", photo) == 1
        assert photo.read_bytes() == before and "would be overwritten" in capsys.readouterr().err
        assert degrade(photo, "--kind", "rain", "haze", "-o", tmp_path / "one.png") == 1
        assert "there are 2 results" in capsys.readouterr().err and not (tmp_path / "one.png").exists()

    def test_a_bad_file_does_not_stop_the_rest(self, photo, tmp_path, capsys):
        bad = tmp_path / "bad.png"
        bad.write_bytes(b"no image")
        assert degrade(bad, photo, "--kind", "jpeg", "-o", tmp_path / "out") == 1
        assert [p.name for p in (tmp_path / "out").iterdir()] == ["photo.jpeg.png"]
        assert "bad.png" in capsys.readouterr().err


class TestDepthMap:
    def haze(self, photo, depth, tmp_path, *more):
        Image.fromarray(depth).save(tmp_path / "depth.png")
        code = degrade(photo, "--kind", "haze", "--depth-map", tmp_path / "depth.png", "--haze", "indoor",
                       "--beta", 2, "--airlight", "0.9", "-o", tmp_path / "hazy.png", *more)
        return code and None, code or pixels(tmp_path / "hazy.png")

    def test_scattering_by_the_map(self, photo, tmp_path):
        depth = np.tile(np.arange(80, dtype=np.uint8) * 2, (60, 1))
        _, hazy = self.haze(photo, depth, tmp_path)
        transmission = np.exp(-2.0 * (depth / depth.max()))[..., None]
        expected = pixels(photo) * transmission + 0.9 * 255 * (1 - transmission)
        assert np.abs(hazy - expected).max() < 0.51

    def test_disparity_is_turned_into_depth(self, photo, tmp_path):
        disparity = np.full((60, 80), 200, np.uint8)
        disparity[:, 40:] = 50                       # four times as far
        _, hazy = self.haze(photo, disparity, tmp_path, "--disparity")
        transmission = np.where(np.arange(80) < 40, np.exp(-0.5), np.exp(-2.0))[None, :, None]
        expected = pixels(photo) * transmission + 0.9 * 255 * (1 - transmission)
        assert np.abs(hazy - expected).max() < 0.51

    def test_another_size_is_resized_and_another_shape_refused(self, photo, tmp_path, capsys):
        assert self.haze(photo, np.full((30, 40), 99, np.uint8), tmp_path)[0] is not True
        assert (tmp_path / "hazy.png").exists()
        assert self.haze(photo, np.full((30, 80), 99, np.uint8), tmp_path)[1] == 1
        assert "depth.png: is 80x30 and the image 80x60" in capsys.readouterr().err


@pytest.mark.parametrize("options, message", [
    (["--quality", "0"], "--quality 0: must be in 1..100"),
    (["--ratio", "1.5"], "--ratio 1.5: must be in 0..1"),
    (["--disparity"], "--depth-map"),
    (["--depth-map", "missing.png", "--kind", "haze"], "missing.png: cannot be read"),
    (["missing.jpg"], "missing.jpg: no such file"),
    (["--sheet", "-o", "sheet.xyz"], "not an image format"),
])
def test_errors_name_the_option_or_file(photo, options, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert degrade(photo, *options) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("degra*/*"))


class TestSheet:
    def test_of_given_photos(self, photo, tmp_path):
        assert degrade(photo, "--sheet", "--kind", "rain", "haze", "-o", tmp_path / "sheet.png") == 0
        sheet = pixels(tmp_path / "sheet.png")
        # clean, three rains, two hazes: six tiles of 60 x 80 below each other, and text
        found = [row for row in range(sheet.shape[0] - 60) if np.array_equal(sheet[row:row + 60, 8:88], pixels(photo))]
        assert len(found) == 1
        assert (sheet < 200).any(axis=(1, 2)).sum() > 6 * 60

    def test_of_the_samples(self, tmp_path):
        assert degrade("--kind", "mask", "-o", tmp_path) == 0
        sheet = pixels(tmp_path / "degradations.png")
        assert sheet.shape[1] > 4 * 300 and (sheet == 0).all(-1).sum() > 4 * 0.4 * 225 * 225

    def test_places(self):
        red, blue = np.zeros((20, 30, 3), np.uint8), np.zeros((90, 60, 3), np.uint8)
        red[..., 0], blue[..., 2] = 255, 255
        sheet = contact_sheet([[(red, "a"), None], [None, (blue, "b\nc")]], tile=(45, 40), gap=8)
        is_red, is_blue = ((sheet == color).all(-1) for color in ([255, 0, 0], [0, 0, 255]))
        assert is_red.sum() == 20 * 30 and is_red[8:28, 8:38].all()           # as it is
        assert is_blue.sum() == 45 * 30                                        # reduced to fit, proportions kept
        rows, columns = is_blue.nonzero()
        assert rows.min() > 28 and columns.min() == 8 + 40 + 8

    def test_fit_and_cover(self):
        image = np.arange(60 * 90 * 3, dtype=np.uint32).reshape(60, 90, 3).astype(np.uint8)
        assert fit(image, (60, 90)) is image and fit(image, (100, 100)) is image
        assert fit(image, (30, 90)).shape == (30, 45, 3)
        assert np.array_equal(cover(image, (60, 50)), image[:, 20:70])
        assert np.array_equal(cover(image, (40, 90)), image[:40])
        assert cover(image, (30, 45)).shape == (30, 45, 3) and cover(image[..., 0], (120, 30)).shape == (120, 30)
        flat = from_array(cover(np.full((50, 80, 3), 77, np.uint8), (20, 20)))
        assert torch.equal(flat, torch.full((3, 20, 20), 77 / 255))
