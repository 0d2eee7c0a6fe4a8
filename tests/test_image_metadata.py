"""Metadata and orientation survive from any format to any."""

import struct

import numpy as np
import pytest
import tifffile
from PIL import Image as Pillow
from PIL import ImageOps, PngImagePlugin

from restore.codecs.containers import jpeg_segments
from restore.image import image_size, read_image, read_rgb8, to_array

from pictures import SRGB, XMP, smooth, exif_block, round_trip


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
