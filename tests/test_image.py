"""Image files: depth, alpha, metadata and orientation survive; what cannot be read says so. Judged by Pillow, OpenCV
and tifffile, which did not write the files under test."""

import struct
import zlib

import cv2
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image as Pillow
from PIL import ImageCms, ImageOps, PngImagePlugin
from skimage.color import lab2rgb

from restore.codecs.containers import jpeg_segments, png_chunk
from restore.errors import ImageError
from restore.image import from_array, image_size, read_image, read_rgb8, to_array, write_image

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="1" dc:title="t"/></x:xmpmeta>'
SHAPES = [(1, 1), (3, 5), (37, 53)]


def smooth(height, width, channels=3, dtype=np.uint8, seed=0):
    """A smooth random picture over the whole range of ``dtype``."""
    small = np.random.default_rng(seed).random((4, 4, channels))
    full = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC).reshape(height, width, channels)
    full = (full - full.min()) / max(np.ptp(full), 1e-9)
    return np.rint(full * np.iinfo(dtype).max).astype(dtype) if np.dtype(dtype).kind == "u" else full.astype(dtype)


def squeeze(array):
    return array[:, :, 0] if array.shape[2] == 1 else array


def exif_block(orientation=1, size=None, xmp=None):
    exif = Pillow.Exif()
    exif[0x0112], exif[0x010F] = orientation, "Maker"
    inner = exif.get_ifd(0x8769)
    inner[0x9003], inner[0x927C] = "2024:01:02 03:04:05", b"maker's note " * 9
    if size:
        inner[0xA002], inner[0xA003] = size
    if xmp:
        exif[700] = xmp                      # where a TIFF has it
    return exif.tobytes()


def round_trip(path, target=None):
    target = target or path.with_name("out" + path.suffix)
    write_image(target, read_image(path))
    return target


def raw_png(array, color_type, extra=b"", interlaced=False):
    """A PNG written by the book, without filters: the independent source of 16-bit files."""
    height, width = array.shape[:2]
    big = array.astype(array.dtype.newbyteorder(">")).reshape(height, width, -1)
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    parts = [big[y::dy, x::dx] for y, x, dy, dx in passes] if interlaced else [big]
    raw = b"".join(b"\0" + row.tobytes() for part in parts if part.size for row in part)
    header = struct.pack(">IIBBBBB", width, height, 8 * array.dtype.itemsize, color_type, 0, 0, int(interlaced))
    return (b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + extra + png_chunk(b"IDAT", zlib.compress(raw))
            + png_chunk(b"IEND", b""))


# ---------------------------------------------------------------- arrays and tensors

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


# ---------------------------------------------------------------- pixels, format by format

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


# ---------------------------------------------------------------- JPEG

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


# ---------------------------------------------------------------- metadata

METADATA = {"exif": exif_block(), "icc_profile": SRGB, "xmp": XMP, "dpi": (300, 200)}


@pytest.mark.parametrize("source", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("target", [".jpg", ".png", ".webp", ".tif"])
def test_metadata_survives_from_any_format_to_any(tmp_path, source, target):
    path = tmp_path / f"a{source}"
    options = dict(METADATA)
    if source == ".png":
        info = PngImagePlugin.PngInfo()
        info.add_itxt("XML:com.adobe.xmp", XMP.decode(), zip=True)
        info.add_text("Author", "somebody")
        options["pnginfo"] = info
    if source == ".tif":
        del options["xmp"]
        options["exif"] = exif_block(xmp=XMP)
    Pillow.fromarray(smooth(16, 24)).save(path, **options)
    image = read_image(path)
    assert image.icc == SRGB
    assert image.xmp == XMP
    if source != ".tif":                     # a TIFF stores the tags of EXIF among its own
        assert image.exif == METADATA["exif"][6:]
    out = round_trip(path, tmp_path / f"out{target}")
    with Pillow.open(out) as back:
        exif = back.getexif()
        assert exif[0x010F] == "Maker"
        inner = exif.get_ifd(0x8769)
        assert (inner[0x9003], inner[0x927C]) == ("2024:01:02 03:04:05", b"maker's note " * 9)
        assert back.info["icc_profile"] == SRGB
        xmp = back.info["xmp"] if target != ".tif" else back.tag_v2[700]
        assert (xmp.encode() if isinstance(xmp, str) else xmp) == XMP
        if source != ".webp" and target != ".webp":
            assert np.allclose([float(v) for v in back.info["dpi"]], (300, 200), rtol=1e-3)
        assert (back.info.get("Author") == "somebody") is (source == target == ".png")
    if target != ".tif" and source != ".tif":
        assert METADATA["exif"][6:] in out.read_bytes()


def test_large_profile_is_split_over_jpeg_segments(tmp_path):
    profile = SRGB + np.random.default_rng(4).bytes(150_000)
    Pillow.fromarray(smooth(16, 24)).save(tmp_path / "a.jpg", icc_profile=profile)
    with Pillow.open(round_trip(tmp_path / "a.jpg")) as back:
        assert back.info["icc_profile"] == profile


@pytest.mark.filterwarnings("ignore:.*MPO:UserWarning")
def test_jpeg_comment_and_iptc_survive_and_further_pictures_do_not(tmp_path):
    Pillow.fromarray(smooth(16, 24)).save(tmp_path / "a.jpg", comment=b"hello")
    data = (tmp_path / "a.jpg").read_bytes()
    iptc = b"Photoshop 3.0\x008BIM\x04\x04\0\0\0\0\0\0"
    more = b"\xff\xed" + struct.pack(">H", len(iptc) + 2) + iptc + b"\xff\xe2\0\x0aMPF\0abcd"
    (tmp_path / "a.jpg").write_bytes(data[:2] + more + data[2:])
    segments = list(jpeg_segments(round_trip(tmp_path / "a.jpg").read_bytes()))
    assert (0xED, iptc) in segments
    assert (0xFE, b"hello") in segments
    assert not any(payload.startswith(b"MPF") for _, payload in segments)


def test_second_generation_of_tiff_keeps_exif(tmp_path):
    Pillow.fromarray(smooth(16, 24)).save(tmp_path / "a.jpg", **METADATA)
    first = round_trip(tmp_path / "a.jpg", tmp_path / "b.tif")
    second = round_trip(first, tmp_path / "c.tif")
    for path in (first, second):
        with tifffile.TiffFile(path) as tiff:
            tags = {tag.code: tag.value for tag in tiff.pages[0].tags}
            assert tags[271] == "Maker"
            assert tags[34665]["MakerNote"] == b"maker's note " * 9
            assert len(tiff.pages) == 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_orientation_is_baked_in_and_reset(tmp_path, orientation, suffix):
    xmp = XMP.replace(b'Orientation="1"', b'Orientation="%d"' % orientation)
    block = exif_block(orientation, (24, 16), xmp if suffix == ".tif" else None)
    path = tmp_path / f"a{suffix}"
    options = {"lossless": True} if suffix == ".webp" else {}
    if suffix in (".jpg", ".webp"):
        options["xmp"] = xmp
    Pillow.fromarray(smooth(16, 24)).save(path, exif=block, dpi=(300, 200), **options)
    with Pillow.open(path) as source:
        upright = np.asarray(ImageOps.exif_transpose(source).convert("RGB"))
    image = read_image(path)
    np.testing.assert_array_equal(to_array(image.pixels), upright)
    assert image_size(path) == upright.shape[:2]
    assert image_size(path, orientation=False) == (16, 24)
    out = round_trip(path)
    with Pillow.open(out) as back:
        exif = back.getexif()
        assert exif.get(0x0112, 1) == 1
        inner = exif.get_ifd(0x8769)
        assert inner[0x9003] == "2024:01:02 03:04:05"
        assert (inner[0xA003], inner[0xA002]) == upright.shape[:2]
        assert back.size == upright.shape[1::-1]
        if suffix != ".webp":
            assert np.allclose([float(v) for v in back.info["dpi"]], (300, 200) if orientation < 5 else (200, 300), rtol=1e-3)
    if suffix != ".png":
        assert XMP in out.read_bytes()
    np.testing.assert_array_equal(read_rgb8(path), upright)
    assert read_rgb8(path, orientation=False).shape == (16, 24, 3)
    difference = sum(a != b for a, b in zip(image.exif, block[6:], strict=False))
    assert suffix == ".tif" or difference <= 5


# ---------------------------------------------------------------- files that are wrong

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
