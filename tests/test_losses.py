"""Losses against numbers worked out by hand and against numpy's FFT."""

import numpy as np
import pytest
import torch

from restore.errors import RestoreError
from restore.losses import L1, PSNR, SSIM, Charbonnier, Frequency, FrequencyL1, build_loss


def test_l1_by_hand():
    output = torch.tensor([0.0, 0.5, 2.0, -1.0]).view(1, 1, 2, 2)
    target = torch.tensor([0.5, 0.5, 1.0, 0.0]).view(1, 1, 2, 2)
    assert L1()(output, target).item() == pytest.approx((0.5 + 0 + 1 + 1) / 4)


def test_charbonnier_by_hand():
    output, target = torch.zeros(1, 3, 2, 2), torch.full((1, 3, 2, 2), 3e-3)
    assert Charbonnier(epsilon=4e-3)(output, target).item() == pytest.approx(5e-3)


def test_frequency_against_numpy():
    rng = np.random.default_rng(0)
    output, target = rng.random((2, 3, 6, 5)).astype(np.float32), rng.random((2, 3, 6, 5)).astype(np.float32)
    spectrum = np.fft.rfft2(output.astype(np.float64)) - np.fft.rfft2(target.astype(np.float64))
    expected = np.abs(output - target).mean() + 0.25 * (np.abs(spectrum.real).mean() + np.abs(spectrum.imag).mean()) / 2
    got = FrequencyL1(weight=0.25)(torch.from_numpy(output), torch.from_numpy(target)).item()
    assert got == pytest.approx(expected, rel=1e-5)


def test_frequency_alone_is_what_its_weight_counts():
    output, target = torch.rand(1, 3, 8, 6), torch.rand(1, 3, 8, 6)
    with_it = FrequencyL1(weight=0.5)(output, target) - L1()(output, target)
    assert with_it.item() == pytest.approx(0.5 * Frequency()(output, target).item(), rel=1e-5)


def test_psnr_against_scikit_image():
    from skimage.metrics import peak_signal_noise_ratio
    rng = np.random.default_rng(2)
    target = rng.random((3, 3, 9, 7))
    output = target + rng.standard_normal(target.shape) * np.array([0.05, 0.2, 0.4])[:, None, None, None]
    mean = np.mean([peak_signal_noise_ratio(a, b, data_range=1) for a, b in zip(target, output)])
    assert PSNR(floor=1e-12)(torch.from_numpy(output), torch.from_numpy(target)).item() == pytest.approx(-mean, abs=1e-4)
    assert PSNR(floor=1e-5)(torch.from_numpy(target), torch.from_numpy(target)).item() == pytest.approx(-50, abs=1e-4)


def test_psnr_pulls_at_every_sample_by_the_inverse_of_its_error():
    output = torch.stack([torch.full((3, 4, 4), 0.1), torch.full((3, 4, 4), 0.01)]).requires_grad_()
    PSNR(floor=1e-12)(output, torch.zeros_like(output)).backward()
    pulls = output.grad.flatten(1).sum(1)
    assert (pulls[1] / pulls[0]).item() == pytest.approx(10, rel=1e-4)


def test_ssim_against_scikit_image():
    from skimage.metrics import structural_similarity
    rng = np.random.default_rng(1)
    target = rng.random((2, 3, 24, 20)).astype(np.float32)
    output = (0.8 * target + 0.1 * rng.standard_normal(target.shape)).astype(np.float32)
    whole = [structural_similarity(a, b, data_range=1, channel_axis=0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
             for a, b in zip(output.astype(np.float64), target.astype(np.float64))]
    assert SSIM()(torch.from_numpy(output), torch.from_numpy(target)).item() == pytest.approx(1 - np.mean(whole), abs=1e-5)
    assert SSIM()(torch.from_numpy(target), torch.from_numpy(target)).item() == pytest.approx(0, abs=1e-6)


def test_ssim_has_the_gradient_of_its_values():
    torch.manual_seed(0)
    target, output = torch.rand(1, 1, 12, 13), torch.rand(1, 1, 12, 13, requires_grad=True)
    loss, direction = SSIM(), torch.randn(1, 1, 12, 13)
    loss(output, target).backward()
    with torch.no_grad():
        slope = (loss(output + 1e-2 * direction, target) - loss(output - 1e-2 * direction, target)) / 2e-2
    assert (output.grad * direction).sum().item() == pytest.approx(slope.item(), rel=0.02)


def test_ssim_of_images_below_its_window():
    with pytest.raises(RestoreError, match="11 pixels"):
        SSIM()(torch.rand(1, 3, 10, 40), torch.rand(1, 3, 10, 40))


@pytest.mark.parametrize("name", ["l1", "charbonnier", "frequency"])
def test_saturated_pixels_keep_their_gradient(name):
    output = torch.full((1, 3, 4, 4), 1.5, requires_grad=True)
    build_loss(name)(output, torch.ones(1, 3, 4, 4)).backward()
    assert (output.grad != 0).any(dim=1).all() or name == "frequency"
    assert output.grad.sum() > 0


@pytest.mark.parametrize("name", ["l1", "charbonnier", "frequency"])
def test_half_precision_is_summed_in_float32(name):
    output, target = torch.rand(1, 3, 8, 8).bfloat16(), torch.rand(1, 3, 8, 8)
    assert build_loss(name)(output, target).dtype == torch.float32


def test_unknown_and_impossible():
    with pytest.raises(RestoreError, match="l3"):
        build_loss("l3")
    with pytest.raises(RestoreError, match="epsilon"):
        Charbonnier(epsilon=0)
    with pytest.raises(RestoreError, match="weight"):
        build_loss("frequency", frequency_weight=-1)
