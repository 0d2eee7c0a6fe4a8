"""Image files: pixels, depth and alpha survive, format by format. Judged by Pillow, OpenCV and tifffile, which did not
write the files under test.
"""

import struct
import zlib

import cv2
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image as Pillow

from restore.codecs.containers import png_chunk
from restore.errors import ImageError
from restore.image import from_array, image_size, read_image, to_array, write_image

from pictures import SHAPES, smooth, squeeze, round_trip, raw_png


@pytest.mark.parametrize(("dtype", "bits"), [(np.uint8, 8), (np.uint16, 16), (np.float32, 32)])
@pytest.mark.parametrize("channels", [1, 3])
def test_arrays_return_exactly(dtype, bits, channels):
    array = smooth(41, 29, channels, dtype)
    tensor = from_array(array)
    assert tensor.shape == (3, 41, 29)
    assert tensor.dtype == torch.float32
    assert tensor.is_contiguous()
    np.testing.assert_array_equal(to_array(tensor, bits)[:, :, :channels], array)


def test_every_value_of_sixteen_bits_returns():
    array = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    np.testing.assert_array_equal(to_array(from_array(array), 16)[:, :, 1], array)


def test_arrays_are_rounded_and_clipped():
    tensor = torch.tensor([-1.0, 0.4 / 255, 0.6 / 255, 2.0]).expand(3, 1, 4)
    assert to_array(tensor)[0, :, 0].tolist() == [0, 0, 1, 255]


@pytest.mark.parametrize("array", [np.zeros((4, 4, 2), np.uint8), np.zeros((0, 4, 3), np.uint8),
                                   np.zeros((4, 4, 3), np.int32), np.zeros(4, np.uint8)])
def test_arrays_that_are_no_image_are_refused(array):
    with pytest.raises(ImageError):
        from_array(array)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("suffix", "mode"), [(suffix, mode) for suffix, modes in {
    ".png": ("L", "LA", "RGB", "RGBA"), ".tif": ("L", "LA", "RGB", "RGBA"), ".webp": ("RGB", "RGBA"), ".bmp": ("L", "RGB"),
    ".ppm": ("L", "RGB")}.items() for mode in modes])
def test_eight_bits_return_exactly(tmp_path, shape, mode, suffix):
    array = squeeze(smooth(*shape, len(mode)))
    source = tmp_path / f"a{suffix}"
    Pillow.fromarray(array, mode).save(source, **({"lossless": True, "exact": True} if suffix == ".webp" else {}))
    image = read_image(source)
    assert (image.bits, image.gray) == (8, mode in ("L", "LA"))
    with Pillow.open(round_trip(source)) as back:
        assert back.mode == mode
        np.testing.assert_array_equal(np.asarray(back), array)
    assert image_size(source) == shape


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("channels", "color_type"), [(1, 0), (3, 2), (2, 4), (4, 6)])
@pytest.mark.parametrize("interlaced", [False, True])
def test_sixteen_bit_png(tmp_path, shape, channels, color_type, interlaced):
    array = smooth(*shape, channels, np.uint16)
    (tmp_path / "a.png").write_bytes(raw_png(array, color_type, interlaced=interlaced))
    image = read_image(tmp_path / "a.png")
    assert (image.bits, image.gray) == (16, channels < 3)
    np.testing.assert_array_equal(to_array(image.pixels, 16), array[:, :, :3] if channels > 2 else array[:, :, [0] * 3])
    write_image(tmp_path / "b.png", image)
    back = cv2.imread(str(tmp_path / "b.png"), cv2.IMREAD_UNCHANGED)
    assert back.dtype == np.uint16
    order = {1: [0], 2: [0, 0, 0, 1], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[channels]
    np.testing.assert_array_equal(back, squeeze(array[:, :, order]))
    assert (tmp_path / "b.png").read_bytes()[25] == color_type


def test_png_filter_works_across_bands(tmp_path, monkeypatch):
    monkeypatch.setattr("restore.codecs.png._BAND", 500)
    array = np.random.default_rng(1).integers(0, 256, (50, 60, 3), np.uint8)
    Pillow.fromarray(array).save(tmp_path / "a.png")
    np.testing.assert_array_equal(np.asarray(Pillow.open(round_trip(tmp_path / "a.png"))), array)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_transparent_color_of_gray_png(tmp_path, bits):
    values = np.random.default_rng(2).integers(0, 2 ** bits, (8, 8)).astype(np.uint16)
    key = int(values[3, 4])
    if bits == 16:
        raw = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    else:
        lines = ("".join(f"{v:0{bits}b}" for v in row) for row in values)
        raw = b"".join(b"\0" + int(line, 2).to_bytes(bits, "big") for line in lines)
    data = (b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, bits, 0, 0, 0, 0))
            + png_chunk(b"tRNS", struct.pack(">H", key)) + png_chunk(b"IDAT", zlib.compress(raw)) + png_chunk(b"IEND", b""))
    (tmp_path / "a.png").write_bytes(data)
    image = read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(image.alpha.numpy(), values != key)
    np.testing.assert_allclose(image.pixels[0].numpy(), values / (2 ** bits - 1), atol=1e-6)
    assert (image.gray, image.bits) == (True, 16 if bits == 16 else 8)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_transparent_color_of_rgb_png(tmp_path, dtype):
    array = smooth(9, 7, 3, dtype)
    key = tuple(int(v) for v in array[2, 3])
    (tmp_path / "a.png").write_bytes(raw_png(array, 2, png_chunk(b"tRNS", struct.pack(">HHH", *key))))
    image = read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(image.alpha.numpy() == 0, (array == key).all(2))


def test_palette_png_with_transparency(tmp_path):
    image = Pillow.fromarray(smooth(20, 30)).quantize(16)
    image.save(tmp_path / "a.png", transparency=bytes(range(0, 256, 16)))
    with Pillow.open(tmp_path / "a.png") as source, Pillow.open(round_trip(tmp_path / "a.png")) as back:
        assert (source.mode, back.mode) == ("P", "RGBA")
        np.testing.assert_array_equal(np.asarray(back), np.asarray(source.convert("RGBA")))


def test_palette_and_bitmap_without_alpha(tmp_path):
    picture = Pillow.fromarray(smooth(20, 30))
    for name, image in {"p.png": picture.quantize(16), "p.bmp": picture.quantize(16), "p.tif": picture.quantize(16),
                        "1.png": picture.convert("1"), "1.tif": picture.convert("1"), "1.bmp": picture.convert("1")}.items():
        image.save(tmp_path / name)
        with Pillow.open(round_trip(tmp_path / name)) as back:
            assert back.mode == ("RGB" if name[0] == "p" else "L"), name
            np.testing.assert_array_equal(np.asarray(back), np.asarray(image.convert(back.mode)), err_msg=name)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [np.uint16, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_deep_tiff(tmp_path, shape, dtype, channels):
    array = squeeze(smooth(*shape, channels, dtype))
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="rgb" if channels > 2 else "minisblack", byteorder=">",
                     planarconfig="contig", extrasamples=["unassalpha"] if channels in (2, 4) else None, compression=None)
    image = read_image(tmp_path / "a.tif")
    assert image.bits == (16 if dtype == np.uint16 else 32)
    back = tifffile.imread(round_trip(tmp_path / "a.tif"))
    assert back.dtype == (np.uint16 if dtype == np.uint16 else np.float32)
    np.testing.assert_array_equal(back, array.astype(back.dtype))
    assert image_size(tmp_path / "a.tif") == shape


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_tiff_in_lzw_and_in_planes(tmp_path, dtype):
    array = smooth(40, 50, 3, dtype)
    assert cv2.imwrite(str(tmp_path / "lzw.tif"), array[:, :, ::-1], [cv2.IMWRITE_TIFF_COMPRESSION, 5])
    tifffile.imwrite(tmp_path / "planes.tif", array.transpose(2, 0, 1), photometric="rgb", planarconfig="separate",
                     compression="zlib")
    for name in ("lzw.tif", "planes.tif"):
        back = cv2.imread(str(round_trip(tmp_path / name)), cv2.IMREAD_UNCHANGED)      # also: OpenCV reads what we write
        np.testing.assert_array_equal(back[:, :, ::-1], array, err_msg=name)


def test_tiff_is_read_by_pillow_in_strips(tmp_path):
    array = smooth(700, 900, 4)
    Pillow.fromarray(array).save(tmp_path / "a.tif", compression="tiff_lzw")
    with Pillow.open(round_trip(tmp_path / "a.tif")) as back:
        assert len(back.tag_v2[273]) > 1
        np.testing.assert_array_equal(np.asarray(back), array)


def test_tiff_white_is_zero_and_premultiplied_alpha(tmp_path):
    array = smooth(10, 12, 1, np.uint16)[:, :, 0]
    tifffile.imwrite(tmp_path / "w.tif", array, photometric="miniswhite")
    np.testing.assert_array_equal(to_array(read_image(tmp_path / "w.tif").pixels, 16)[:, :, 0], 65535 - array)
    straight, alpha = smooth(10, 12, 3, np.uint16), smooth(10, 12, 1, np.uint16, 5).clip(30000)
    multiplied = np.rint(straight * (alpha / 65535)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "m.tif", np.concatenate([multiplied, alpha], 2), photometric="rgb", extrasamples=["assocalpha"])
    image = read_image(tmp_path / "m.tif")
    assert np.abs(to_array(image.pixels, 16).astype(int) - straight).max() <= 2
    np.testing.assert_array_equal(to_array(image.alpha.expand(3, -1, -1), 16)[:, :, 0], alpha[:, :, 0])


def test_first_page_of_a_tiff_is_taken_and_said(tmp_path):
    pages = [smooth(10, 12, seed=k) for k in range(3)]
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for page in pages:
            writer.write(page, photometric="rgb")
    image = read_image(tmp_path / "a.tif")
    assert image.notes == ["of 3 pages only the first is taken"]
    np.testing.assert_array_equal(to_array(image.pixels), pages[0])


def test_floating_point_beyond_the_range(tmp_path):
    array = smooth(40, 50, 3, np.float32)
    array[0, 0], array[1, 1] = -0.25, 1.5
    tifffile.imwrite(tmp_path / "few.tif", array, photometric="rgb")
    image = read_image(tmp_path / "few.tif")
    assert "clipped" in image.notes[0]
    np.testing.assert_array_equal(image.pixels.permute(1, 2, 0).numpy(), array.clip(0, 1))
    tifffile.imwrite(tmp_path / "many.tif", array * 255, photometric="rgb")
    with pytest.raises(ImageError, match=r"many\.tif.*scale it first"):
        read_image(tmp_path / "many.tif")
    for value in (np.nan, np.inf):
        array[2, 2, 2] = value
        tifffile.imwrite(tmp_path / "nan.tif", array, photometric="rgb")
        with pytest.raises(ImageError, match=r"nan\.tif.*not numbers"):
            read_image(tmp_path / "nan.tif")


@pytest.mark.parametrize("dtype", [np.int16, np.uint32, np.int8])
def test_other_tiff_samples_are_refused(tmp_path, dtype):
    tifffile.imwrite(tmp_path / "a.tif", np.ones((8, 8), dtype), photometric="minisblack")
    with pytest.raises(ImageError, match=r"a\.tif"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("top", [1, 100, 255, 1000, 65535])
@pytest.mark.parametrize("channels", [1, 3])
def test_ppm_with_any_maximum(tmp_path, top, channels):
    array = np.random.default_rng(3).integers(0, top + 1, (5, 7, channels))
    stored = array.astype("u1" if top < 256 else ">u2").tobytes()
    (tmp_path / "a.ppm").write_bytes(b"P%d # a comment 9 9\n7\t5\n%d\n" % (5 if channels == 1 else 6, top) + stored)
    image = read_image(tmp_path / "a.ppm")
    np.testing.assert_allclose(image.pixels.permute(1, 2, 0).numpy()[:, :, :channels], array / top, atol=0.5 / 255)
    assert image.bits == (8 if top < 256 else 16)
    back = cv2.imread(str(round_trip(tmp_path / "a.ppm")), cv2.IMREAD_UNCHANGED).reshape(5, 7, channels)
    np.testing.assert_array_equal(back[:, :, ::-1], to_array(image.pixels, image.bits)[:, :, :channels])


def test_alpha_in_bmp_and_gray_in_webp(tmp_path):
    array = smooth(9, 11, 4)
    cv2.imwrite(str(tmp_path / "a.bmp"), array[:, :, [2, 1, 0, 3]])
    back = cv2.imread(str(round_trip(tmp_path / "a.bmp")), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(back[:, :, [2, 1, 0, 3]], array)
    gray = smooth(9, 11, 2)
    Pillow.fromarray(gray, "LA").save(tmp_path / "g.png")
    for suffix in (".webp", ".bmp"):
        target = round_trip(tmp_path / "g.png", tmp_path / f"g{suffix}")
        np.testing.assert_array_equal(to_array(read_image(target).alpha.expand(3, -1, -1))[:, :, 0], gray[:, :, 1])


def test_webp_stays_lossy_or_lossless(tmp_path):
    array = smooth(60, 80)
    for name, lossless in {"a.webp": False, "b.webp": True}.items():
        Pillow.fromarray(array).save(tmp_path / name, lossless=lossless, quality=80)
        assert (b"VP8L" in round_trip(tmp_path / name).read_bytes()) is lossless


def test_depth_follows_the_format(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", smooth(9, 11, 3, np.float32), photometric="rgb")
    image = read_image(tmp_path / "a.tif")
    write_image(tmp_path / "a.png", image)
    write_image(tmp_path / "a.jpg", image)
    assert (read_image(tmp_path / "a.png").bits, read_image(tmp_path / "a.jpg").bits) == (16, 8)


def test_gray_stays_gray_and_is_averaged(tmp_path):
    Pillow.fromarray(smooth(8, 8, 1)[:, :, 0]).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert torch.equal(image.pixels[0], image.pixels[2])
    tinted = torch.stack([torch.full((8, 8), value / 255) for value in (30.0, 60.0, 90.0)])
    write_image(tmp_path / "b.png", image.with_pixels(tinted))
    with Pillow.open(tmp_path / "b.png") as back:
        assert back.mode == "L"
        assert set(np.asarray(back).ravel()) == {60}
