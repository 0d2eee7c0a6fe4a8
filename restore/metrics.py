"""PSNR and SSIM against a clean image, in the variants that papers use, on the CPU and on a GPU.

Every function takes images in [0, 1], a NumPy array or a torch tensor of any float type, channels first: ``(c, h, w)``,
or ``(h, w)`` for a single channel. Everything is computed in float64, on the CPU or on the GPU where the images lie (float32
where a device has no float64). Nothing is clipped or rounded here: a protocol does that (:mod:`restore.benchmark.protocol`).
"""

import math
import sys

import numpy as np

WINDOWS = ("uniform7", "skimage", "gaussian11", "pooled")
C1, C2 = 0.01 ** 2, 0.03 ** 2                   # Wang et al. 2004 with a data range of 1
_LUMA = (65.481, 128.553, 24.966)


def psnr(image, clean, limit=math.inf):
    """Peak signal-to-noise ratio in dB with peak 1, over all channels together; never more than ``limit``."""
    image, clean = _pair(image, clean)
    mse = float(((image - clean) ** 2).mean())
    if not math.isfinite(mse):
        raise ValueError("an image with values that are not finite has no PSNR")
    floor = 10 ** (-limit / 10)
    return math.inf if max(mse, floor) == 0 else float(-10.0 * np.log10(max(mse, floor)))


def ssim(image, clean, window="uniform7"):
    """Structural similarity (Wang et al. 2004), the mean over channels and over all whole windows.

    ``window`` is one of

    ``"uniform7"``
        scikit-image's default: a uniform 7x7 window with the unbiased sample covariance.
    ``"skimage"``
        the same by scikit-image itself (on a CPU), for the last of 16 digits, at more than twice the time.
    ``"gaussian11"``
        the original: an 11x11 Gaussian window of sigma 1.5
        (scikit-image: ``gaussian_weights=True, sigma=1.5, use_sample_covariance=False``).
    ``"pooled"``
        gUNet's and DehazeFormer's evaluation: both images are first average-pooled by ``round(min(h, w) / 256)``, then
        ``"gaussian11"``. It comes out higher than the other two on large images; never compare it with them.

    Raises ``ValueError`` for an image smaller than its window.
    """
    image, clean = _pair(image, clean)
    if window not in WINDOWS:
        raise ValueError(f"SSIM window {window!r} is not one of {', '.join(WINDOWS)}")
    size = 7 if window in ("uniform7", "skimage") else 11
    if min(image.shape[-2:]) < size:
        raise ValueError(f"SSIM with a {size}x{size} window needs an image of at least {size}x{size}, "
                         f"not {image.shape[-2]}x{image.shape[-1]}")
    if window == "pooled":
        image, clean = _pool(image), _pool(clean)
    if isinstance(image, np.ndarray):
        similarity = {"uniform7": _ssim_uniform, "skimage": _ssim_skimage}.get(window, _ssim_gaussian)
        # channels last, as images lie in memory
        return float(similarity(*(np.ascontiguousarray(np.moveaxis(p.reshape(-1, *p.shape[-2:]), 0, -1))
                                  for p in (clean, image))))
    return _ssim_torch(image, clean, window)


def luma(image):
    """BT.601 luma of an RGB image ``(3, h, w)`` as MATLAB's ``rgb2ycbcr`` has it: 16/255 to 235/255, shape ``(h, w)``."""
    if image.shape[0] != 3:
        raise ValueError(f"luma needs an RGB image (3, h, w), not {tuple(image.shape)}")
    if isinstance(image, np.ndarray):
        return (16.0 + np.moveaxis(image.astype(np.float64, copy=False), 0, -1) @ np.array(_LUMA)) / 255.0
    weights = image.new_tensor(_LUMA).reshape(3, 1, 1)
    return (16.0 + (image * weights).sum(0)) / 255.0


def _pair(image, clean):
    """Both as float64 arrays, or as tensors on their GPU."""
    image, clean = _wide(image), _wide(clean)
    if tuple(image.shape) != tuple(clean.shape):
        raise ValueError(f"images of different shapes: {tuple(image.shape)} and {tuple(clean.shape)}")
    if len(image.shape) not in (2, 3):
        raise ValueError(f"an image is (c, h, w) or (h, w), not {tuple(image.shape)}")
    if isinstance(image, np.ndarray) != isinstance(clean, np.ndarray):
        raise ValueError("one image is on the CPU and the other on a GPU")
    return image, clean


def _wide(image):
    if isinstance(image, np.ndarray):
        if image.dtype.kind != "f":
            raise ValueError(f"images are floats in [0, 1] here, not {image.dtype}; divide by their maximum first")
        return image.astype(np.float64, copy=False)
    torch = sys.modules["torch"]
    if not image.is_floating_point():
        raise ValueError(f"images are floats in [0, 1] here, not {image.dtype}; divide by their maximum first")
    image = image.detach()
    if image.device.type == "cpu":
        return image.to(torch.float64).numpy()
    return image.float() if image.device.type == "mps" else image.double()


def _ssim_uniform(x, y, strip=64):
    """Images ``(h, w, c)`` in strips of rows that stay in the cache: half the time of whole planes."""
    import cv2
    total, height = 0.0, x.shape[0] - 6
    for top in range(0, height, strip):
        part = slice(top, min(top + strip, height) + 6)
        total += _similarity(x[part], y[part], lambda plane: cv2.boxFilter(plane, -1, (7, 7))[3:-3, 3:-3], 49 / 48).sum()
    return total / (height * (x.shape[1] - 6) * x.shape[2])


def _ssim_gaussian(x, y):
    import cv2
    kernel = gaussian_kernel()
    return _similarity(x, y, lambda plane: cv2.sepFilter2D(plane, -1, kernel, kernel)[5:-5, 5:-5], 1.0).mean()


def _similarity(x, y, blur, norm):
    """SSIM at every place of two images; what is not needed any more is written over."""
    square = x * x
    square += y * y
    ux, uy, square, product = blur(x), blur(y), blur(square), blur(x * y)
    means = ux * uy
    ux *= ux
    uy *= uy
    ux += uy                                     # ux^2 + uy^2
    square -= ux
    square *= norm
    square += C2                                 # vx + vy + C2
    product -= means
    product *= 2 * norm
    product += C2                                # 2 vxy + C2
    means *= 2
    means += C1
    ux += C1
    means *= product
    ux *= square
    means /= ux
    return means


def _ssim_skimage(x, y):
    from skimage.metrics import structural_similarity
    return float(structural_similarity(x, y, data_range=1.0, channel_axis=-1))


def _ssim_torch(image, clean, window):
    torch = sys.modules["torch"]
    functional = torch.nn.functional
    channels = torch.stack([clean, image]).reshape(2, -1, 1, *image.shape[-2:])
    x, y = channels[0], channels[1]
    stack = torch.cat([x, y, x * x, y * y, x * y])
    if window in ("uniform7", "skimage"):
        local, norm = functional.avg_pool2d(stack, 7, stride=1), 49 / 48
    else:
        kernel, norm = stack.new_tensor(gaussian_kernel()), 1.0
        # as a sum of shifted slices: no TF32 and no algorithm choice, unlike a convolution
        size = kernel.numel()
        rows = sum(k * stack[..., i:stack.shape[-2] - size + 1 + i, :] for i, k in enumerate(kernel))
        local = sum(k * rows[..., i:stack.shape[-1] - size + 1 + i] for i, k in enumerate(kernel))
    ux, uy, uxx, uyy, uxy = local.chunk(5)
    vx, vy, vxy = norm * (uxx - ux * ux), norm * (uyy - uy * uy), norm * (uxy - ux * uy)
    top = (2 * ux * uy + C1) * (2 * vxy + C2)
    return float((top / ((ux * ux + uy * uy + C1) * (vx + vy + C2))).mean())


def gaussian_kernel(sigma=1.5, radius=5):
    """The 11 weights of SSIM's Gaussian window along one side, float64; their sum is 1."""
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    return kernel / kernel.sum()


def _pool(image):
    """Average-pool as ``adaptive_avg_pool2d(image, (int(h / r), int(w / r)))`` with ``r = max(1, round(min(h, w) / 256))``."""
    import torch
    height, width = image.shape[-2:]
    ratio = max(1, round(min(height, width) / 256))
    if ratio == 1:
        return image
    planes = torch.from_numpy(np.ascontiguousarray(image)) if isinstance(image, np.ndarray) else image
    pooled = torch.nn.functional.adaptive_avg_pool2d(planes.reshape(1, -1, height, width),
                                                     (int(height / ratio), int(width / ratio)))
    pooled = pooled.reshape(*image.shape[:-2], *pooled.shape[-2:])
    return pooled.numpy() if isinstance(image, np.ndarray) else pooled
