"""Image files that are wrong: what cannot be read says so, and nothing is half written."""

import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image as Pillow

from restore.codecs.containers import png_chunk
from restore.errors import ImageError
from restore.image import image_size, read_image, read_rgb8, to_array, write_image

from pictures import smooth, raw_png


def every_format(folder):
    array = smooth(60, 80)
    for suffix in (".jpg", ".png", ".webp", ".bmp", ".ppm"):
        Pillow.fromarray(array).save(folder / f"good{suffix}")
    Pillow.fromarray(array).save(folder / "lzw.tif", compression="tiff_lzw")
    tifffile.imwrite(folder / "deep.tif", smooth(60, 80, 3, np.uint16), photometric="rgb")
    (folder / "deep.png").write_bytes(raw_png(smooth(60, 80, 3, np.uint16), 2))
    Pillow.fromarray(array).convert("CMYK").save(folder / "cmyk.jpg")
    Pillow.fromarray(array).save(folder / "progressive.jpg", progressive=True)
    return sorted(p for p in folder.iterdir() if p.is_file())


@pytest.mark.parametrize("share", [0.0, 0.02, 0.1, 0.5, 0.9, "last"])
def test_truncated_files(tmp_path, share, capfd):
    for path in every_format(tmp_path):
        data = path.read_bytes()
        keep = len(data) - 3 if share == "last" else int(len(data) * share)
        if share == "last" and path.suffix == ".tif":
            keep = len(data) // 3            # a directory at the end may lose its padding without harm
        path.write_bytes(data[:keep])
        with pytest.raises(ImageError, match=path.name):
            read_image(path)
        with pytest.raises(ImageError, match=path.name):
            read_rgb8(path)
    assert capfd.readouterr().err == ""


def test_files_that_are_no_images(tmp_path):
    for name, data in {"text.jpg": b"hello, this is text\n" * 50, "zeros.png": bytes(5000), "html.webp": b"<!doctype html>",
                       "magic.png": b"\x89PNG\r\n\x1a\n" + bytes(300), "magic.jpg": b"\xff\xd8\xff\xe0" + bytes(300),
                       "magic.tif": b"II*\0" + bytes(300), "magic.bmp": b"BM" + bytes(300), "magic.ppm": b"P6 junk" * 9,
                       "magic.webp": b"RIFF\x50\0\0\0WEBP" + bytes(300), "a.gif": b"GIF89a" + bytes(90)}.items():
        (tmp_path / name).write_bytes(data)
        for function in (read_image, read_rgb8, image_size):
            with pytest.raises(ImageError, match=name):
                function(tmp_path / name)
    for name in ("missing.png", "."):
        with pytest.raises(ImageError):
            read_image(tmp_path / name)


@pytest.mark.filterwarnings("ignore:.*:UserWarning:PIL")
def test_flipped_bits_never_raise_anything_else(tmp_path):
    generator = np.random.default_rng(6)
    for path in every_format(tmp_path):
        good = path.read_bytes()
        for _ in range(12):
            data = bytearray(good)
            for at in generator.integers(0, min(len(data), 900), 3):
                data[at] ^= 1 << int(generator.integers(8))
            path.write_bytes(data)
            try:
                assert read_image(path, max_pixels=10 ** 6).pixels.shape[0] == 3
            except ImageError as error:
                assert path.name in str(error)


def test_flipped_bits_in_a_png_or_jpeg_scan_are_noticed(tmp_path):
    for name in ("good.png", "deep.png", "good.jpg"):
        every_format(tmp_path)
        data = bytearray((tmp_path / name).read_bytes())
        data[-40:-30] = b"\xff" * 10
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ImageError, match=name):
            read_image(tmp_path / name)


def test_enormous_images_are_refused_by_their_header(tmp_path):
    limit = Pillow.MAX_IMAGE_PIXELS
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header)
                                        + png_chunk(b"IDAT", zlib.compress(bytes(1000))) + png_chunk(b"IEND", b""))
    with pytest.raises(ImageError, match=r"bomb\.png.*60000 x 60000.*1,000 megapixels"):
        read_image(tmp_path / "bomb.png")
    Pillow.fromarray(smooth(100, 100)).save(tmp_path / "a.jpg")
    data = bytearray((tmp_path / "a.jpg").read_bytes())
    at = data.index(b"\xff\xc0") + 5
    data[at:at + 4] = struct.pack(">HH", 60_000, 60_000)
    (tmp_path / "a.jpg").write_bytes(data)
    for function in (read_image, read_rgb8):
        with pytest.raises(ImageError, match=r"60000 x 60000"):
            function(tmp_path / "a.jpg")
    Pillow.fromarray(smooth(100, 100)).save(tmp_path / "b.png")
    with pytest.raises(ImageError, match="limit"):
        read_image(tmp_path / "b.png", max_pixels=9_999)
    assert read_image(tmp_path / "b.png", max_pixels=10_000).pixels.shape == (3, 100, 100)
    assert limit == Pillow.MAX_IMAGE_PIXELS                  # of the whole process: ours to leave alone


def test_animations_are_refused(tmp_path):
    frames = [Pillow.fromarray(smooth(20, 20, seed=k)) for k in range(3)]
    for name in ("a.webp", "a.png"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        with pytest.raises(ImageError, match=rf"{name}.*animation"):
            read_image(tmp_path / name)


def test_a_wrong_suffix_is_read_by_content_and_said(tmp_path):
    Pillow.fromarray(smooth(20, 20)).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.jpg")
    image = read_image(tmp_path / "a.jpg")
    assert image.notes == ["it is a PNG in spite of its name"]
    np.testing.assert_array_equal(to_array(image.pixels), smooth(20, 20))


def test_writing_refuses_what_it_cannot_do(tmp_path):
    Pillow.fromarray(smooth(20, 20, 4)).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    for name, message in {"b.jpg": "transparency", "b.ppm": "transparency", "b.gif": "format", "b": "format"}.items():
        with pytest.raises(ImageError, match=message):
            write_image(tmp_path / name, image)
    with pytest.raises(ImageError, match="quality"):
        write_image(tmp_path / "b.webp", image, quality=0)
    with pytest.raises(ImageError, match="cannot be written"):
        write_image(tmp_path / "a.png" / "b.png", image)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    Pillow.fromarray(smooth(20, 20)).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("restore.codecs.png._paeth", full)
    with pytest.raises(ImageError, match=r"b\.png.*No space left") as caught:
        image.save(tmp_path / "b.png")
    assert caught.value.__cause__.errno == 28
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_read_rgb8_takes_bytes_and_reduces(tmp_path):
    array = smooth(20, 30, 4)
    Pillow.fromarray(array).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_rgb8((tmp_path / "a.png").read_bytes()), array[:, :, :3])
    deep = smooth(20, 30, 3, np.uint16)
    assert np.abs(read_rgb8(raw_png(deep, 2)).astype(float) - deep / 257).max() <= 1
    Pillow.fromarray(array[:, :, 0]).save(tmp_path / "g.png")
    np.testing.assert_array_equal(read_rgb8(tmp_path / "g.png"), array[:, :, [0, 0, 0]])
