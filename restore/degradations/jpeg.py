"""JPEG artefacts, by compressing with libjpeg-turbo and decompressing again (on the CPU)."""

import cv2
import torch

from .common import per_image

CHROMA = {"4:4:4": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444, "4:2:2": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422,
          "4:2:0": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420}


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
    # cv2 compresses with the accurate DCT as Pillow does (simplejpeg's fast one flips coefficients), and in BGR
    pixels = image.flip(0).mul_(255).round_().clamp_(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous()
    options = [cv2.IMWRITE_JPEG_QUALITY, int(quality), cv2.IMWRITE_JPEG_SAMPLING_FACTOR, CHROMA[chroma]]
    _, coded = cv2.imencode(".jpg", pixels.cpu().numpy(), options)
    planes = torch.from_numpy(cv2.imdecode(coded, cv2.IMREAD_COLOR)).to(image.device).permute(2, 0, 1).flip(0)
    return planes.contiguous().float().div_(255)
