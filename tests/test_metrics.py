"""restore.metrics against scikit-image, closed forms, and MATLAB's published luma of pure colours."""

import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from restore.metrics import luma, psnr, ssim

SHAPES = [(3, 150, 65), (3, 7, 7), (3, 11, 200), (64, 33)]


def pair(shape, seed=0):
    rng = np.random.default_rng(seed)
    clean = rng.random(shape)
    return np.clip(clean + rng.normal(0, 0.1, shape), 0, 1), clean


def skimage_ssim(image, clean, window):
    options = {} if window == "uniform7" else {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return structural_similarity(clean, image, data_range=1.0, channel_axis=0 if image.ndim == 3 else None, **options)


@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_scikit_image(shape):
    image, clean = pair(shape)
    assert psnr(image, clean) == pytest.approx(peak_signal_noise_ratio(clean, image, data_range=1.0), abs=1e-9)
    assert ssim(image, clean) == pytest.approx(skimage_ssim(image, clean, "uniform7"), abs=1e-12)
    assert ssim(image, clean, "skimage") == pytest.approx(skimage_ssim(image, clean, "uniform7"), abs=1e-15)
    if min(shape[-2:]) >= 11:
        assert ssim(image, clean, "gaussian11") == pytest.approx(skimage_ssim(image, clean, "gaussian11"), abs=1e-9)


def test_tensors_and_arrays_give_the_same(shape=(3, 40, 50)):
    image, clean = (x.astype(np.float32) for x in pair(shape))
    for window in ("uniform7", "gaussian11"):
        assert ssim(torch.from_numpy(image), torch.from_numpy(clean), window) == ssim(image, clean, window)
    assert psnr(torch.from_numpy(image), torch.from_numpy(clean)) == psnr(image, clean)
    assert np.allclose(luma(torch.from_numpy(image)).numpy(), luma(image), atol=1e-6)


@pytest.mark.parametrize("window", ["uniform7", "gaussian11"])
def test_the_gpu_formula_run_on_the_cpu(window):
    from restore.metrics import _ssim_torch
    image, clean = pair((3, 48, 65))
    assert _ssim_torch(torch.from_numpy(image), torch.from_numpy(clean), window) == \
        pytest.approx(skimage_ssim(image, clean, window), abs=1e-9)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("window", ["uniform7", "gaussian11", "pooled"])
def test_gpu_agrees_with_scikit_image(window):
    image, clean = pair((3, 320, 481))
    gpu = [torch.from_numpy(x).float().cuda() for x in (image, clean)]
    if window != "pooled":
        assert ssim(*gpu, window) == pytest.approx(skimage_ssim(image, clean, window), abs=1e-4)
    assert ssim(*gpu, window) == pytest.approx(ssim(image, clean, window), abs=1e-4)
    assert psnr(*gpu) == pytest.approx(peak_signal_noise_ratio(clean, image, data_range=1.0), abs=1e-4)


def test_psnr_of_a_known_error():
    clean = np.zeros((3, 8, 8))
    assert psnr(clean + 0.1, clean) == pytest.approx(20.0, abs=1e-9)
    assert psnr(clean, clean) == math.inf
    assert psnr(clean, clean, limit=100.0) == 100.0
    assert psnr(clean + 1e-6, clean, limit=100.0) == 100.0


def test_luma_is_matlab_rgb2ycbcr():
    # rgb2ycbcr of white, black, red, green, blue: Y = 235, 16, 81.481, 144.553, 40.966
    colours = np.array([[1, 1, 1], [0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=float).T.reshape(3, 1, 5)
    assert luma(colours)[0] * 255 == pytest.approx([235, 16, 81.481, 144.553, 40.966], abs=1e-9)


def test_pooled_is_the_gaussian_ssim_of_block_means():
    image, clean = pair((3, 512, 600))                                             # ratio 2: plain 2x2 means
    means = [x.reshape(3, 256, 2, 300, 2).mean((2, 4)) for x in (image, clean)]
    assert ssim(image, clean, "pooled") == pytest.approx(skimage_ssim(*means, "gaussian11"), abs=1e-9)
    small = pair((3, 300, 320))                                                    # ratio 1: nothing to pool
    assert ssim(*small, "pooled") == ssim(*small, "gaussian11")


def test_bad_input_is_refused():
    image, clean = pair((3, 20, 20))
    with pytest.raises(ValueError, match="different shapes"):
        psnr(image, clean[:, :-1])
    with pytest.raises(ValueError, match="uint8"):
        psnr((image * 255).astype(np.uint8), clean)
    with pytest.raises(ValueError, match="not finite"):
        psnr(image * np.nan, clean)
    with pytest.raises(ValueError, match="at least 11x11"):
        ssim(image[:, :10], clean[:, :10], "gaussian11")
    with pytest.raises(ValueError, match="uniform7, skimage, gaussian11, pooled"):
        ssim(image, clean, "gauss")
