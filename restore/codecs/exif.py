"""EXIF as it is stored: a small TIFF of its own, changed here in place so that every other byte stays as it was."""

import re
import struct

ORIENTATION = 0x0112
_EXIF_IFD, _WIDTH, _HEIGHT = 0x8769, 0xA002, 0xA003
_XMP_ORIENTATION = re.compile(rb"(tiff:Orientation(?:\s*=\s*[\"']|>)\s*)[2-8]")


def orientation(exif):
    """The EXIF orientation, 1 to 8, of an EXIF block that starts with its TIFF header; 1 where there is none."""
    found = _entries(exif, 0).get(ORIENTATION)
    value = found[1] if found else 1
    return value if 1 <= value <= 8 else 1


def upright(exif, xmp):
    """``exif`` and ``xmp`` for pixels that have been turned upright: orientation 1 in both, the rest untouched.

    Where the turn swaps the sides, so do the two EXIF tags that repeat the image's size. The embedded thumbnail is
    unlinked, since it would now be shown lying on its side.
    """
    turned = orientation(exif)
    if turned == 1:
        return exif, xmp
    block = bytearray(exif)
    top = _entries(exif, 0)
    _put(block, *top[ORIENTATION], 1)
    if turned >= 5 and _EXIF_IFD in top:
        inner = _entries(exif, top[_EXIF_IFD][1])
        if _WIDTH in inner and _HEIGHT in inner:
            _put(block, *inner[_WIDTH], inner[_HEIGHT][1])
            _put(block, *inner[_HEIGHT], inner[_WIDTH][1])
    order = _order(exif)
    start = struct.unpack_from(order + "I", exif, 4)[0]
    link = start + 2 + 12 * struct.unpack_from(order + "H", exif, start)[0]
    if link + 4 <= len(block):
        struct.pack_into(order + "I", block, link, 0)
    return bytes(block), _XMP_ORIENTATION.sub(rb"\g<1>1", xmp)


def turn(array, how):
    """``array`` (height, width, ...) with EXIF orientation ``how`` baked in; a view, not a copy."""
    if how >= 5:
        array = array.swapaxes(0, 1)
    down, across = {1: (1, 1), 2: (1, -1), 3: (-1, -1), 4: (-1, 1), 5: (1, 1), 6: (1, -1), 7: (-1, -1), 8: (-1, 1)}[how]
    return array[::down, ::across]


def _order(exif):
    return {b"II*\0": "<", b"MM\0*": ">"}.get(bytes(exif[:4]))


def _entries(exif, start):
    """``{tag: (where its value is, the value, struct format)}`` for the whole numbers (SHORT, LONG) of one directory.

    ``start`` 0 is the first directory. A damaged block has the entries that can be reached, or none.
    """
    order, found = _order(exif), {}
    if order is None or len(exif) < 14:
        return found
    start = start or struct.unpack_from(order + "I", exif, 4)[0]
    if start + 2 > len(exif):
        return found
    for index in range(struct.unpack_from(order + "H", exif, start)[0]):
        at = start + 2 + 12 * index
        if at + 12 > len(exif):
            break
        tag, kind, count = struct.unpack_from(order + "HHI", exif, at)
        if kind in (3, 4) and count == 1:
            form = order + ("H" if kind == 3 else "I")
            found[tag] = (at + 8, struct.unpack_from(form, exif, at + 8)[0], form)
    return found


def _put(block, at, _, form, value):
    struct.pack_into(form, block, at, value)
