"""WebP, lossy or lossless as it came."""

from .containers import EXIF_HEADER, riff_chunks
from .pillow import arrays, opened
from .raster import Raster

BITS, ALPHA = (8,), True


def read(data):
    """The image in the bytes of a WebP. An animation is an error."""
    chunks = dict(riff_chunks(data))
    if b"ANIM" in chunks:
        raise ValueError("it is an animation; restore its frames one by one")
    raster = Raster(format="WEBP", lossless=b"VP8L" in chunks, icc=chunks.get(b"ICCP", b""),
                    xmp=chunks.get(b"XMP ", b""), exif=chunks.get(b"EXIF", b"").removeprefix(EXIF_HEADER))
    with opened(data, "WEBP") as image:
        raster.color, raster.alpha, _ = arrays(image)
    return raster


def write(raster, file, quality=None):
    """Write lossless if the image came so and no ``quality`` (1 to 100) is asked for, else at ``quality`` or 95."""
    from PIL import Image
    if max(raster.color.shape[:2]) > 16383:
        raise ValueError("a WebP has at most 16,383 pixels a side; write PNG or TIFF")
    array = raster.stacked()
    if array.shape[2] < 3:
        array = array[:, :, [0, 0, 0, 1][:array.shape[2] + 2]]
    icc = b"" if raster.icc[16:20] == b"GRAY" else raster.icc      # a profile of gray says nothing about RGB
    metadata = {"exif": raster.exif, "icc_profile": icc, "xmp": raster.xmp}
    Image.fromarray(array).save(file, "WEBP", lossless=raster.lossless and quality is None, exact=True,
                                quality=quality or 95, **{k: v for k, v in metadata.items() if v})
