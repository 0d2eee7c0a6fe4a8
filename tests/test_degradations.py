"""Noise, JPEG, masking, rain and haze, against numpy, PIL and closed forms."""

import io
import math
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.filters import gaussian as gaussian_filter

from restore.degradations import haze, masking, noise, rain
from restore.degradations.jpeg import jpeg

ALL = {
    "gaussian": partial(noise.gaussian, sigma=25.0),
    "gaussian truncated": partial(noise.gaussian, sigma=25.0, truncate=True),
    "uniform": partial(noise.uniform, amplitude=40.0),
    "poisson_gaussian": noise.poisson_gaussian,
    "jpeg": partial(jpeg, quality=20),
    "mask": partial(masking.mask, patch=8, ratio=0.5),
    "rain": partial(rain.rain, layers=(rain.Streaks(), rain.Streaks(angle=70)), veil=0.2),
    "random_rain": rain.random_rain,
    "haze": haze.haze,
    "random_haze": haze.random_haze,
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def photo(height=96, width=128, batch=None):
    """An 8-bit image with gradients and edges, in [0,1]; a batch of different ones if asked."""
    if batch:
        return torch.stack([photo(height, width).roll(7 * i, -1) for i in range(batch)])
    rows, columns = np.mgrid[:height, :width] / max(height, width)
    planes = np.stack([rows, columns, 0.5 + 0.4 * np.sin(20 * rows * columns)])
    planes[:, (rows - 0.4) ** 2 + (columns - 0.5) ** 2 < 0.04] = 0.8
    return torch.from_numpy(np.round(planes * 255).astype(np.uint8)).float().div_(255)


def psnr(a, b):
    return -10 * math.log10(float(((a - b).double() ** 2).mean()))


@pytest.mark.parametrize("name", ALL)
class TestContract:
    """What every degradation promises."""

    @pytest.mark.parametrize("size", [(1, 1), (1, 9), (5, 3), (16, 16), (33, 70)])
    def test_any_size_stays_in_range(self, name, size):
        image = photo(*size)
        for seed in range(8):
            result = ALL[name](image, generator(seed))
            assert result.shape == image.shape and result.dtype == torch.float32
            assert bool(torch.isfinite(result).all()) and result.min() >= 0 and result.max() <= 1

    def test_changes_the_image_and_not_the_input(self, name):
        image = photo()
        before = image.clone()
        result = ALL[name](image, generator(3))
        assert torch.equal(image, before)
        assert not torch.equal(result, image)
        assert result.untyped_storage().data_ptr() != image.untyped_storage().data_ptr()

    def test_same_seed_same_bits_on_any_number_of_threads(self, name):
        image = photo(300, 400)                    # large enough for torch to split the work
        threads = torch.get_num_threads()
        try:
            results = []
            for count in (1, 3):
                torch.set_num_threads(count)
                results.append(ALL[name](image, generator(11)))
        finally:
            torch.set_num_threads(threads)
        assert torch.equal(*results)

    def test_a_batch_is_its_images_in_order(self, name):
        batch = photo(40, 48, batch=3)
        one_by_one, together = generator(5), generator(5)
        expected = torch.stack([ALL[name](image, one_by_one) for image in batch])
        assert torch.equal(ALL[name](batch, together), expected)
        assert torch.equal(one_by_one.get_state(), together.get_state())

    def test_views_that_are_not_contiguous(self, name):
        image = photo(48, 64)
        turned = image.transpose(1, 2).contiguous().transpose(1, 2)
        assert torch.equal(ALL[name](turned, generator(2)), ALL[name](image, generator(2)))

    @pytest.mark.parametrize("wrong", [torch.zeros(1, 8, 8), torch.zeros(8, 8), torch.zeros(3, 0, 4)])
    def test_wrong_shapes_are_refused(self, name, wrong):
        with pytest.raises(ValueError, match="takes an image"):
            ALL[name](wrong, generator())

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    def test_on_a_gpu(self, name):
        image = photo(64, 80).cuda()
        results = [ALL[name](image, torch.Generator("cuda").manual_seed(1)) for _ in range(2)]
        assert results[0].is_cuda and torch.equal(*results) and not torch.equal(results[0], image)


@pytest.mark.parametrize("name", [name for name in ALL if name != "jpeg"])
def test_another_seed_gives_another_image(name):
    assert not torch.equal(ALL[name](photo(), generator(1)), ALL[name](photo(), generator(2)))


class TestNoise:
    @pytest.mark.parametrize("sigma", [0, 15, 25, 50])
    def test_truncation_is_numpys_bit_for_bit(self, sigma):
        image = photo()
        drawn = torch.randn(image.shape, generator=generator(4)).numpy()
        clean = (image.numpy().astype(np.float64) * 255).round().astype(np.uint8)
        expected = np.clip(clean + drawn * np.float32(sigma), 0, 255).astype(np.uint8)
        result = noise.gaussian(image, generator(4), sigma=sigma, truncate=True)
        assert torch.equal(result, torch.from_numpy(expected).float() / 255)

    def test_truncation_darkens_by_half_a_level(self):
        grey = torch.full((3, 200, 200), 128 / 255)
        plain = noise.gaussian(grey, generator(1), sigma=20)
        cut = noise.gaussian(grey, generator(1), sigma=20, truncate=True)
        assert float((cut - plain).mean()) * 255 == pytest.approx(-0.5, abs=0.01)

    def test_gaussian_has_the_sigma_asked_for(self):
        residual = (noise.gaussian(torch.full((3, 256, 256), 0.5), generator(), sigma=25) - 0.5) * 255
        assert float(residual.std()) == pytest.approx(25, rel=0.01) and abs(float(residual.mean())) < 0.2

    def test_uniform_fills_its_interval(self):
        residual = (noise.uniform(torch.full((3, 256, 256), 0.5), generator(), amplitude=30) - 0.5) * 255
        assert float(residual.abs().max()) == pytest.approx(30, abs=0.05)
        assert float(residual.std()) == pytest.approx(30 / math.sqrt(3), rel=0.01)

    def test_poisson_gaussian_variance_is_linear_in_the_signal(self):
        for level in (0.1, 0.3, 0.6):
            result = noise.poisson_gaussian(torch.full((3, 256, 256), level), generator(2), photons=400, sigma=4)
            assert float(result.mean()) == pytest.approx(level, abs=1e-3)
            assert float(result.var()) == pytest.approx(level / 400 + (4 / 255) ** 2, rel=0.02)

    def test_photons_come_in_whole_numbers(self):
        counts = noise.poisson_gaussian(torch.full((3, 64, 64), 0.2), generator(3), photons=20, sigma=0) * 20
        assert float((counts - counts.round()).abs().max()) < 1e-4 and len(counts.round().unique()) > 5

    def test_no_photons_is_an_error(self):
        with pytest.raises(ValueError, match="photons"):
            noise.poisson_gaussian(photo(), generator(), photons=0)


class TestJpeg:
    def test_agrees_with_pillow(self):
        image = photo()
        for quality in (10, 50, 90):
            for chroma, code in (("4:4:4", 0), ("4:2:2", 1), ("4:2:0", 2)):
                file = io.BytesIO()
                pixels = np.ascontiguousarray((image * 255).round().byte().permute(1, 2, 0).numpy())
                Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling=code)
                expected = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1).float() / 255
                result = jpeg(image, quality=quality, chroma=chroma)
                # the two carry different versions of libjpeg-turbo, which may round a level apart
                assert float((result - expected).abs().max()) * 255 < 1.5
                assert float((result - image).abs().max()) * 255 > 5

    def test_better_quality_is_nearer(self):
        image = noise.gaussian(photo(), generator(), sigma=5)
        scores = [psnr(jpeg(image, quality=q), image) for q in (5, 10, 20, 40, 60, 80, 95)]
        assert scores == sorted(scores) and scores[0] < 30 < scores[-1]

    def test_chroma_subsampling_spares_the_grey(self):
        image = photo()
        red = torch.zeros(3, 32, 32)
        red[0, :, 1::2] = 1                         # stripes of one pixel: half-size chroma cannot hold them
        assert psnr(jpeg(red, quality=95, chroma="4:4:4"), red) > psnr(jpeg(red, quality=95), red) + 5
        grey = image.mean(0, keepdim=True).expand(3, -1, -1).contiguous()
        assert torch.equal(jpeg(grey, chroma="4:4:4"), jpeg(grey, chroma="4:2:0"))

    @pytest.mark.parametrize("wrong", [{"quality": 0}, {"quality": 101}, {"chroma": "4:1:1"}])
    def test_wrong_strength_is_an_error(self, wrong):
        with pytest.raises(ValueError, match="must be"):
            jpeg(photo(), **wrong)


class TestMasking:
    def test_exact_share_of_whole_patches(self):
        for seed in range(5):
            hidden = masking.mask_pattern(64, 96, generator(seed), patch=16, ratio=0.5)
            patches = hidden.view(4, 16, 6, 16).permute(0, 2, 1, 3).flatten(2).float().mean(2)
            assert int(patches.sum()) == 12 and set(patches.unique().tolist()) == {0.0, 1.0}

    def test_share_is_right_on_average_where_it_is_not_whole(self):
        # 3x3 patches at 40 % are 3.6: three or four of them
        counts = [int(masking.mask_pattern(3, 3, generator(s), patch=1, ratio=0.4).sum()) for s in range(500)]
        assert set(counts) == {3, 4} and np.mean(counts) == pytest.approx(3.6, abs=0.07)
        single = [bool(masking.mask_pattern(1, 1, generator(s), patch=16, ratio=0.3)) for s in range(500)]
        assert np.mean(single) == pytest.approx(0.3, abs=0.06)

    def test_every_patch_has_its_turn(self):
        often = sum(masking.mask_pattern(4, 4, generator(s), patch=1, ratio=0.25).float() for s in range(400)) / 400
        assert float((often - 0.25).abs().max()) < 0.1

    def test_fills_the_pattern_and_leaves_the_rest(self):
        image = photo(50, 70)                       # neither side a multiple of the patch
        hidden = masking.mask_pattern(50, 70, generator(8), patch=16, ratio=0.6)
        result = masking.mask(image, generator(8), patch=16, ratio=0.6, fill=(0.1, 0.2, 0.3))
        assert torch.equal(result[:, ~hidden], image[:, ~hidden])
        assert torch.equal(result[:, hidden], torch.tensor([0.1, 0.2, 0.3])[:, None].expand(-1, int(hidden.sum())))

    def test_none_and_all(self):
        assert torch.equal(masking.mask(photo(), generator(), ratio=0.0), photo())
        assert not masking.mask(photo(), generator(), ratio=1.0).any()

    @pytest.mark.parametrize("wrong", [{"patch": 0}, {"ratio": 1.5}, {"ratio": -0.1}])
    def test_wrong_strength_is_an_error(self, wrong):
        with pytest.raises(ValueError, match="patch must be"):
            masking.mask(photo(), generator(), **wrong)


def direction(layer):
    """Angle from the vertical in degrees, positive for "/", by the structure tensor; and its coherence in 0..1."""
    smooth = gaussian_filter(layer.double().numpy(), 2)      # differences of sharp lines would lean towards 45 degrees
    down, across = np.gradient(smooth)
    xx, yy, xy = (across ** 2).sum(), (down ** 2).sum(), (across * down).sum()
    return math.degrees(0.5 * math.atan2(2 * xy, xx - yy)), math.hypot(2 * xy, xx - yy) / (xx + yy)


class TestRain:
    def test_one_streak_row_by_row(self):
        # one upright streak of 1 x 8 pixels and brightness 0.5 with ramps of two rows, by hand
        streaks = rain.Streaks(angle=0, length=(8, 8), width=(1, 1), density=0.004, brightness=(0.5, 0.5),
                               taper=(0.25, 0.25), blur=0)
        profiles = [layer.sum(1) for layer in (rain.streak_layer(40, 30, generator(s), streaks) for s in range(50))]
        alone = [p for p in profiles if p.max() == 0.5 and len(p.nonzero()) == 7 and not p[0] and not p[-1]]
        assert len(alone) > 5                       # few streaks fall, so that many a layer has one, wholly inside
        assert all(p[p > 0].tolist() == [0.25, 0.5, 0.5, 0.5, 0.5, 0.5, 0.25] for p in alone)

    @pytest.mark.parametrize("angle", [-80, -50, -30, 0, 20, 44, 46, 65, 90])
    def test_direction(self, angle):
        layer = rain.streak_layer(200, 220, generator(1), rain.Streaks(angle=angle, length=(40, 60), density=0.15))
        found, coherence = direction(layer)
        assert abs((found - angle + 90) % 180 - 90) < 2 and coherence > 0.8

    @pytest.mark.parametrize("angle", [0, 35, 70])
    @pytest.mark.parametrize("density", [0.02, 0.3])
    def test_density_is_the_light_that_falls(self, angle, density):
        # without overlap limit the mean is density x brightness x the share of a streak that its ramps leave
        streaks = rain.Streaks(angle=angle, length=(20, 40), width=(1, 3), density=density, brightness=(0.2, 0.2),
                               taper=(0.2, 0.2), blur=0.5, ceiling=1e9)
        mean = np.mean([float(rain.streak_layer(150, 170, generator(s), streaks).mean()) for s in range(12)])
        assert mean == pytest.approx(density * 0.2 * 0.8, rel=0.12)

    def test_length_and_width(self):
        def correlation(layer, lag):
            layer = layer - layer.mean()
            return float((layer[:-lag] * layer[lag:]).mean() / (layer ** 2).mean())

        short, long = (rain.streak_layer(256, 256, generator(2), rain.Streaks(angle=0, length=(n, n), density=0.1,
                                                                              brightness=(0.3, 0.3), taper=(0, 0)))
                       for n in (10, 60))
        assert correlation(short, 20) < 0.1                       # a box of n correlates with itself as 1 - lag / n
        assert correlation(long, 20) == pytest.approx(2 / 3, abs=0.1)
        thin, thick = (rain.streak_layer(256, 256, generator(2), rain.Streaks(angle=0, width=(n, n), density=0.1)).T
                       for n in (1, 6))
        assert correlation(thin, 3) < 0.15 and correlation(thick, 3) > 0.35

    def test_ceiling_and_blur(self):
        dense = rain.Streaks(density=5, brightness=(0.3, 0.3), blur=0)
        assert float(rain.streak_layer(64, 64, generator(), dense).max()) > 1 - 1e-6
        capped = rain.streak_layer(64, 64, generator(), rain.Streaks(**{**vars(dense), "ceiling": 0.4}))
        assert float(capped.max()) == pytest.approx(0.4)
        blurred = rain.streak_layer(64, 64, generator(), rain.Streaks(**{**vars(dense), "blur": 1.5}))
        sharp = rain.streak_layer(64, 64, generator(), dense)
        assert blurred.diff(dim=1).abs().mean() < 0.7 * sharp.diff(dim=1).abs().mean()

    def test_added_streaks_only_brighten_and_screened_ones_spare_the_sky(self):
        image = photo()
        added = rain.rain(image, generator(1))
        layer = rain.streak_layer(*image.shape[1:], generator(1), rain.Streaks())
        assert torch.equal(added, (image + layer).clamp(0, 1))
        screened = rain.rain(image, generator(1), screen=True, colour=0.9)
        assert torch.allclose(screened, image * (1 - layer) + 0.9 * layer, atol=1e-6)
        sky = torch.full((3, 50, 50), 0.9)
        assert torch.allclose(rain.rain(sky, generator(1), screen=True, colour=0.9), sky)

    def test_veil_is_a_blend_with_the_air(self):
        black = torch.zeros(3, 200, 200)
        misty = rain.rain(black, generator(3), layers=(), veil=0.3, colour=0.8)
        assert float(misty.mean()) == pytest.approx(0.3 * 0.8, abs=0.06)
        assert float(misty.diff(dim=-1).abs().max()) < 0.02

    @pytest.mark.parametrize("kind, low, high", [(rain.LIGHT, 18, 40), (rain.HEAVY, 7, 18), (rain.NATURAL, 10, 32)])
    def test_kinds_are_as_strong_as_their_models(self, kind, low, high):
        image = photo(128, 128) * 0.7
        scores = [psnr(rain.random_rain(image, generator(s), kinds=(kind,)), image) for s in range(40)]
        assert low < np.percentile(scores, 10) and np.percentile(scores, 90) < high
        assert np.std(scores) > 1.5                # variety

    def test_weights_choose_the_kind(self):
        never = rain.Rainfall(weight=0, brightness=(0.9, 0.9), density=(3, 3))
        faint = rain.Rainfall(brightness=(0.01, 0.01))
        image = torch.zeros(3, 32, 32)
        for seed in range(20):
            assert float(rain.random_rain(image, generator(seed), kinds=(never, faint)).max()) < 0.1


class TestHaze:
    def test_scattering_equation(self):
        image = photo(20, 30)
        depth = torch.linspace(0, 3, 30).expand(20, 30)
        result = haze.haze(image, depth=depth, beta=0.7, airlight=(0.9, 0.8, 1.0))
        transmission = np.exp(-0.7 * depth.numpy().astype(np.float64))
        airlight = np.array([0.9, 0.8, 1.0])[:, None, None]
        expected = image.numpy() * transmission + airlight * (1 - transmission)
        assert np.abs(result.numpy() - expected).max() < 1e-6

    def test_limits(self):
        image = photo(8, 9)
        assert torch.allclose(haze.haze(image, depth=torch.zeros(8, 9), beta=5.0), image)
        far = haze.haze(image, depth=torch.full((8, 9), 1e3), airlight=(0.5, 0.6, 0.7))
        assert torch.allclose(far, torch.tensor([0.5, 0.6, 0.7])[:, None, None].expand(3, 8, 9))

    def test_depth_of_another_size_is_an_error(self):
        with pytest.raises(ValueError, match="depth is"):
            haze.haze(photo(8, 9), depth=torch.zeros(9, 8))

    def test_pseudo_depth_range_and_slope(self):
        image = photo(96, 128)
        for seed in range(5):
            depth = haze.pseudo_depth(image, generator(seed), slope=2.0, objects=0.1, relief=0.1)
            assert float(depth.min()) == 0 and float(depth.max()) == pytest.approx(1)
            assert float(depth[:20].mean()) > float(depth[-20:].mean()) + 0.4

    def test_pseudo_depth_steps_at_edges_and_is_smooth_elsewhere(self):
        # two halves of different colour: across their border the depth changes more than inside them
        image = torch.full((3, 96, 96), 0.2)
        image[:, :, 48:] = 0.8
        at_edge = inside = 0.0
        for seed in range(20):
            change = haze.pseudo_depth(image, generator(seed), slope=0.0, objects=1.0, relief=0.0).diff(dim=1).abs()
            at_edge += float(change[:, 47].mean())
            inside += float(torch.cat([change[:, 8:40], change[:, 56:88]], 1).mean())
        assert at_edge > 3 * inside

    @pytest.mark.parametrize("kind", haze.KINDS)
    def test_random_haze_spans_the_usual_strengths(self, kind):
        image = photo(128, 128) * 0.8
        scores = [psnr(haze.random_haze(image, generator(s), kinds=(kind,)), image) for s in range(60)]
        assert np.percentile(scores, 25) < 14 and np.percentile(scores, 75) > 11 and 5 < min(scores) < max(scores) < 35
        assert np.std(scores) > 2
