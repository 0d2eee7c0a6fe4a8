"""The blocks that image files are made of: JPEG segments, PNG chunks, RIFF chunks. Nothing here looks at pixels."""

import struct
import zlib

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
EXIF_HEADER = b"Exif\0\0"
_NO_PAYLOAD = {0x01, *range(0xD0, 0xD9)}


def jpeg_segments(data):
    """``(marker, payload)`` for every segment of a JPEG before its first scan. Raises ``ValueError`` if cut short."""
    at = 2
    while True:
        while data[at:at + 2] == b"\xff\xff":                       # fill bytes are allowed before a marker
            at += 1
        if len(data) < at + 4 or data[at] != 0xFF:
            raise ValueError("the JPEG header is cut short or damaged")
        marker = data[at + 1]
        if marker in _NO_PAYLOAD:
            at += 2
            continue
        if marker == 0xDA:
            return
        length = struct.unpack_from(">H", data, at + 2)[0]
        if length < 2 or at + 2 + length > len(data):
            raise ValueError("the JPEG header is cut short or damaged")
        yield marker, bytes(data[at + 4:at + 2 + length])
        at += 2 + length


def jpeg_segment(marker, payload):
    """One JPEG segment; the payload holds at most 65,533 bytes."""
    return struct.pack(">BBH", 0xFF, marker, len(payload) + 2) + payload


def png_chunks(data):
    """``(type, payload)`` for every chunk of a PNG, its checksum verified. Raises ``ValueError`` if one is damaged."""
    at, kind = len(PNG_SIGNATURE), b""
    view = memoryview(data)
    while kind != b"IEND":
        if at + 12 > len(data):
            raise ValueError("the PNG is cut short")
        length, kind = struct.unpack_from(">I4s", data, at)
        if at + 12 + length > len(data):
            raise ValueError("the PNG is cut short")
        if zlib.crc32(view[at + 4:at + 8 + length]) != struct.unpack_from(">I", data, at + 8 + length)[0]:
            raise ValueError("the PNG is damaged: a checksum is wrong")
        yield kind, view[at + 8:at + 8 + length]
        at += 12 + length


def png_chunk(kind, payload):
    """One PNG chunk with its length and checksum."""
    checksum = zlib.crc32(payload, zlib.crc32(kind))
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", checksum)


def riff_chunks(data):
    """``(type, payload)`` for every chunk of a RIFF file such as a WebP. Raises ``ValueError`` if it is cut short."""
    at, end = 12, struct.unpack_from("<I", data, 4)[0] + 8
    if end > len(data):
        raise ValueError("the file is cut short")
    while at + 8 <= end:
        kind, length = struct.unpack_from("<4sI", data, at)
        yield kind, bytes(data[at + 8:at + 8 + length])
        at += 8 + length + length % 2


def kind_of(data):
    """The format that the first bytes speak of, such as ``"PNG"``; None for one that is not read here."""
    if data[:3] == b"\xff\xd8\xff":
        return "JPEG"
    if data[:8] == PNG_SIGNATURE:
        return "PNG"
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "TIFF"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[:2] == b"BM":
        return "BMP"
    if data[:1] == b"P" and data[1:2] in b"123456" and data[2:3].isspace():
        return "PPM"
    return None


def find_exif(data):
    """The EXIF block of a JPEG or PNG without its header; empty where there is none."""
    kind = kind_of(data)
    if kind == "JPEG":
        return next((p[6:] for m, p in jpeg_segments(data) if m == 0xE1 and p.startswith(EXIF_HEADER)), b"")
    if kind == "PNG":
        return next((bytes(p) for k, p in png_chunks(data) if k == b"eXIf"), b"")
    return b""
