"""JPEG artefacts, by compressing with libjpeg-turbo and decompressing again (on the CPU)."""

import numpy as np
import simplejpeg
import torch

from .common import per_image

CHROMA = {"4:4:4": "444", "4:2:2": "422", "4:2:0": "420"}


@per_image
def jpeg(image, generator=None, *, quality=30, chroma="4:2:0"):
    """The image after JPEG compression at ``quality`` (1..100, the usual libjpeg scale).

    ``chroma`` is the subsampling of the colour channels, a key of :data:`CHROMA`. The image is rounded to 8 bits
    first. Nothing is random here; ``generator`` is there so that all degradations are called alike.
    """
    if chroma not in CHROMA:
        raise ValueError(f"chroma must be one of {', '.join(CHROMA)}, not {chroma!r}")
    if not 1 <= quality <= 100:
        raise ValueError(f"quality must be in 1..100, not {quality}")
    pixels = image.mul(255).round_().clamp_(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().cpu().numpy()
    coded = simplejpeg.encode_jpeg(pixels, quality=int(quality), colorspace="RGB", colorsubsampling=CHROMA[chroma],
                                   fastdct=False)
    decoded = simplejpeg.decode_jpeg(coded, colorspace="RGB", fastdct=False, fastupsample=False)
    planes = torch.from_numpy(np.ascontiguousarray(decoded.transpose(2, 0, 1)))
    return planes.to(image.device).float().div_(255)
