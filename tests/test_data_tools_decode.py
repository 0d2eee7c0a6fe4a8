"""Headers and the strict decode: what is read must be right, what is damaged must be refused with its kind."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from data_tools.decode import decode, orient
from data_tools.header import Refused, jpeg_quality, misnamed, read_header, sniff


def picture(height=48, width=64, seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 2)


def saved(pixels, kind="PNG", mode="RGB", **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels[:, :, ::-1] if pixels.ndim == 3 else pixels).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def kind_of(data, **options):
    with pytest.raises(Refused) as caught:
        decode(data, **options)
    return str(caught.value).split(":")[0]


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "GIF", "WEBP"])
def test_lossless_formats_decode_as_pillow_does(kind):
    data = saved(picture(), kind, **({"lossless": True} if kind == "WEBP" else {}))
    header, pixels, transparent = decode(data)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(image.convert("RGB"))[:, :, ::-1]
    assert (header.format, header.width, header.height) == (kind, 64, 48) and transparent == 0
    np.testing.assert_array_equal(pixels if pixels.ndim == 3 else pixels[:, :, None].repeat(3, 2), expected)


@pytest.mark.parametrize("quality", [10, 30, 50, 75, 90, 95])
def test_jpeg_quality_by_its_tables(quality):
    for progressive in (False, True):
        header = read_header(saved(picture(), "JPEG", quality=quality, progressive=progressive))
        assert (header.format, header.width, header.height, header.progressive) == ("JPEG", 64, 48, progressive)
        assert abs(jpeg_quality(header.tables[0]) - quality) <= 1


def test_bit_rot_and_truncation_are_refused():
    data = saved(picture(240, 320), "JPEG", quality=90)
    assert decode(data)[1].shape == (240, 320, 3)
    assert kind_of(data[:len(data) * 6 // 10]) == "truncated"
    rotten, refused = np.random.default_rng(0), 0
    for _ in range(20):
        damaged = bytearray(data)
        for at in rotten.integers(len(data) // 3, len(data) - 2, 20):
            damaged[at] ^= 1 << int(rotten.integers(8))
        try:
            decode(bytes(damaged))
        except Refused:
            refused += 1
    assert refused >= 18                                  # Pillow opens nearly all of them without a word


def test_every_chunk_of_a_png_is_checked():
    data = saved(picture())
    for at in (19, 60, len(data) // 2, len(data) - 20):
        damaged = bytearray(data)
        damaged[at] ^= 4
        assert kind_of(bytes(damaged)) in ("corrupt", "truncated")
    assert kind_of(data[:-12]) == "truncated" and kind_of(data[:len(data) // 2]) == "truncated"


def png_header(width, height):
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


def test_bombs_are_refused_from_the_header():
    assert kind_of(png_header(30000, 30000)) == "bomb"
    jpeg = bytearray(saved(picture(), "JPEG"))
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5:at + 9] = struct.pack(">HH", 65500, 65500)
    assert kind_of(bytes(jpeg)) == "bomb"
    assert kind_of(saved(picture()), max_megapixels=0.001) == "bomb"


@pytest.mark.parametrize("data, kind", [
    (b"", "empty"), (b"<html>not here</html>", "not-an-image"), (b"\0" * 100, "not-an-image"),
    (b"\xff\xd8\xff", "truncated"), (b"GIF89a", "corrupt"), (b"\x89PNG\r\n\x1a\n", "truncated")])
def test_what_is_no_image_says_so(data, kind):
    assert kind_of(data) == kind


def test_reasons_hold_no_addresses_so_that_they_are_the_same_again():
    floats = cv2.imencode(".tiff", np.zeros((8, 8, 3), np.float32))[1].tobytes()
    with pytest.raises(Refused) as refused:
        read_header(floats)
    assert "cannot identify image file" in str(refused.value) and "0x" not in str(refused.value)


def test_deep_cmyk_alpha_and_animated_images():
    ramp = np.linspace(0, 65535, 64 * 48).reshape(48, 64).astype(np.uint16)
    deep = cv2.imencode(".png", ramp)[1].tobytes()
    header, pixels, _ = decode(deep)
    assert header.bits == 16
    np.testing.assert_array_equal(pixels, ramp >> 8)
    buffer = io.BytesIO()
    Image.fromarray(picture()[:, :, ::-1]).convert("CMYK").save(buffer, "JPEG", quality=95)
    header, pixels, _ = decode(buffer.getvalue())
    assert header.mode == "CMYK" and np.abs(pixels.astype(int) - picture()).mean() < 6
    transparent = np.dstack([picture(), np.full((48, 64), 255, np.uint8)])
    transparent[:, :16, 3] = 0
    header, pixels, share = decode(cv2.imencode(".png", transparent)[1].tobytes())
    assert share == 0.25 and (pixels[:, :16] == 255).all()
    np.testing.assert_array_equal(pixels[:, 16:], picture()[:, 16:])
    frames = [Image.fromarray(picture(seed=k)) for k in range(3)]
    for kind in ("GIF", "WEBP", "PNG"):
        buffer = io.BytesIO()
        frames[0].save(buffer, kind, save_all=True, append_images=frames[1:])
        assert read_header(buffer.getvalue()).frames == 3, kind


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_as_pillow_applies_it(orientation):
    from PIL import ImageOps
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(picture(), "JPEG", quality=95, exif=exif)
    header, pixels, _ = decode(data)
    assert header.orientation == orientation
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))[:, :, ::-1]
    luma, wanted = (cv2.cvtColor(np.ascontiguousarray(bgr), cv2.COLOR_BGR2GRAY).astype(int)
                    for bgr in (pixels, expected))
    assert luma.shape == wanted.shape and np.abs(luma - wanted).mean() < 1     # chroma is upsampled the fast way
    np.testing.assert_array_equal(orient(picture(), 1), picture())


def test_names_that_lie():
    assert sniff(saved(picture(), "JPEG")) == "JPEG"
    assert misnamed("a.png", "JPEG") and not misnamed("a.JPG", "JPEG") and not misnamed("a", "JPEG")
