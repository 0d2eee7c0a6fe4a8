"""JPEG files: pixels, quality, gray, CMYK with and without a profile."""

import struct

import numpy as np
import pytest
from PIL import Image as Pillow
from skimage.color import lab2rgb

from restore.image import read_image, read_rgb8, to_array, write_image

from pictures import smooth, round_trip


def test_jpeg_pixels_are_those_of_libjpeg(tmp_path):
    Pillow.fromarray(smooth(37, 53)).save(tmp_path / "a.jpg", quality=80, subsampling=2)
    with Pillow.open(tmp_path / "a.jpg") as reference:
        expected = np.asarray(reference)
    np.testing.assert_array_equal(to_array(read_image(tmp_path / "a.jpg").pixels), expected)
    np.testing.assert_array_equal(read_rgb8(tmp_path / "a.jpg"), expected)


@pytest.mark.parametrize(("stored", "asked", "expected"), [(50, None, 95), (98, None, 98), (98, 70, 70), (100, None, 100)])
def test_jpeg_quality(tmp_path, stored, asked, expected):
    Pillow.fromarray(smooth(64, 64)).save(tmp_path / "a.jpg", quality=stored)
    image = read_image(tmp_path / "a.jpg")
    assert abs(image.quality - stored) <= 1
    write_image(tmp_path / "b.jpg", image, quality=asked)
    Pillow.fromarray(smooth(64, 64)).save(tmp_path / "c.jpg", quality=expected)
    with Pillow.open(tmp_path / "b.jpg") as back, Pillow.open(tmp_path / "c.jpg") as reference:
        assert back.quantization == reference.quantization
        full = b"\x03\x01\x11" in (tmp_path / "b.jpg").read_bytes()[:1000] and back.layer[0][1:3] == (1, 1)
        assert full is (expected >= 90)


def test_gray_jpeg(tmp_path):
    Pillow.fromarray(smooth(20, 24, 1)[:, :, 0]).save(tmp_path / "a.jpg", quality=95)
    with Pillow.open(round_trip(tmp_path / "a.jpg")) as back:
        assert back.mode == "L"


def test_cmyk_jpeg_without_profile(tmp_path):
    picture = Pillow.fromarray(smooth(32, 40)).convert("CMYK")
    picture.save(tmp_path / "a.jpg", quality=100, subsampling=0)
    image = read_image(tmp_path / "a.jpg")
    with Pillow.open(tmp_path / "a.jpg") as reference:
        np.testing.assert_array_equal(to_array(image.pixels), np.asarray(reference.convert("RGB")))
    assert "CMYK" in image.notes[0]
    with Pillow.open(round_trip(tmp_path / "a.jpg")) as back:
        assert back.mode == "RGB"
    np.testing.assert_allclose(read_rgb8(tmp_path / "a.jpg").astype(int), to_array(image.pixels), atol=3)


def cmyk_profile(corners):
    """A CMYK profile made by hand (ICC.1:2001-04): ``corners[c, m, y, k]`` is the Lab color of each mixture of full inks."""
    lab = corners.reshape(16, 3) * [255 / 100, 1, 1] + [0, 128, 128]
    ramp = bytes(range(256))
    table = (b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + struct.pack(">9i", *(np.eye(3, dtype=int).ravel() << 16).tolist())
             + ramp * 4 + np.rint(lab).astype(np.uint8).tobytes() + ramp * 3)
    white = b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061)
    text = b"desc" + bytes(4) + struct.pack(">I", 5) + b"inks\0" + bytes(78)
    owner = b"text" + bytes(4) + b"none\0"
    tags, body, at = [(b"desc", text), (b"cprt", owner), (b"wtpt", white), (b"A2B0", table), (b"A2B1", table)], b"", 132 + 5 * 12
    entries = struct.pack(">I", len(tags))
    for name, data in tags:
        data += bytes(-len(data) % 4)
        entries += name + struct.pack(">II", at + len(body), len(data))
        body += data
    header = (struct.pack(">I4sI4s4s4s", at + len(body), bytes(4), 0x02400000, b"prtr", b"CMYK", b"Lab ")
              + struct.pack(">6H", 2024, 1, 1, 0, 0, 0) + b"acsp" + bytes(24) + struct.pack(">I3i", 1, 63190, 65536, 54061))
    return header.ljust(128, b"\0") + entries + body


def test_cmyk_goes_through_its_profile_and_the_profile_goes(tmp_path):
    generator = np.random.default_rng(7)
    corners = np.stack([generator.uniform(40, 70, (2,) * 4), *generator.uniform(-12, 12, (2, 2, 2, 2, 2))], -1)
    corners[0, 0, 0, 0], corners[..., 1, :] = (100, 0, 0), (0, 0, 0)         # paper, and black ink over anything
    profile = cmyk_profile(corners)
    inks = np.array(list(np.ndindex(2, 2, 2, 2)), np.uint8).reshape(4, 4, 4) * 255
    patches = np.kron(inks, np.ones((16, 16, 1), np.uint8))
    Pillow.fromarray(patches, "CMYK").save(tmp_path / "a.jpg", icc_profile=profile, quality=100, subsampling=0)
    Pillow.fromarray(patches, "CMYK").save(tmp_path / "a.tif", icc_profile=profile)
    expected = np.rint(255 * lab2rgb(corners.reshape(4, 4, 3)))
    for name in ("a.jpg", "a.tif"):
        image = read_image(tmp_path / name)
        np.testing.assert_allclose(to_array(image.pixels)[8::16, 8::16], expected, atol=4, err_msg=name)
        assert image.icc == b""
        assert image.notes == ["CMYK was turned into sRGB through its profile"]
