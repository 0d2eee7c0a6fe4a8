"""`restore demo`, the sample photos it takes, and the measuring of what a depth costs."""

import json
import math
import re

import cv2
import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio

from restore import cost, samples
from restore.checkpoint import save
from restore.cli import main
from restore.commands import demo
from restore.errors import RestoreError
from restore.models import create_model

TASKS = ("noise", "rain", "haze")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    tiny = {"width": 8, "refinement": 1, "prompt_channels": (8, 8, 8), "prompt_sizes": (8, 8, 8)}
    depths = {"shallow": (1, 1, 1, 1), "deep": (2, 2, 2, 3)}
    save(create_model("dynet", depths=depths, default_depth="deep", **tiny), path)
    return path


class TestSamples:
    @pytest.mark.parametrize("name", samples.PHOTOS)
    def test_photos_are_there_in_colour(self, name):
        photo = samples.photo(name)
        assert photo.dtype == np.uint8 and photo.shape[2] == 3 and min(photo.shape[:2]) >= 288
        assert np.abs(photo[..., 0].astype(int) - photo[..., 2]).mean() > 5

    def test_depth_is_the_calibrated_one(self):
        depth = samples.depth("motorcycle")
        assert depth.shape == samples.photo("motorcycle").shape[:2] and np.isfinite(depth).all()
        from skimage.data import stereo_motorcycle
        disparity = stereo_motorcycle()[2]
        row, column = np.argwhere(np.isfinite(disparity))[12345]
        # Middlebury: Z = baseline * focal length / (disparity + doffs), in millimetres
        millimetres = 193.001 * 994.978 / (disparity[row, column] + 31.086)
        assert depth[row, column] == pytest.approx(millimetres / 1000, rel=1e-6)
        assert 1.5 < depth.min() < 2.5 and 4 < depth.max() < 7          # a motorcycle in a garage
        assert samples.depth("coffee") is None

    def test_a_missing_photo_is_said(self, monkeypatch):
        monkeypatch.setitem(samples.PHOTOS, "coffee", "no_such_file.png")
        with pytest.raises(RestoreError, match=r"no_such_file.png is not in this installation of scikit-image"):
            samples.photo("coffee")


class TestCost:
    def test_is_measured_in_a_process_of_its_own(self, weights):
        held = np.ones(120_000_000)                                     # 960 MB here do not count there
        measured = cost.measure_cost(weights, "shallow", 96, 128, device="cpu", runs=1)
        assert 0 < measured.seconds < 60 and measured.device_peak is None
        assert 50e6 < measured.start < measured.peak < held.nbytes + 50e6

    def test_failure_tells_why(self, tmp_path):
        with pytest.raises(RestoreError, match=r"nothing.safetensors.*no such file"):
            cost.measure_cost(tmp_path / "nothing.safetensors", None, 8, 8, device="cpu")


class TestDemo:
    @pytest.fixture(scope="class")
    def folder(self, weights, tmp_path_factory):
        folder = tmp_path_factory.mktemp("demo") / "new" / "out"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(demo, "SIZE", (72, 96))
            patch.setattr(cost, "measure_cost", lambda name, depth, *a, **k: cost.Cost(
                {"shallow": 0.25, "deep": 0.5}[depth], 800_000_000, 500_000_000, None))
            assert main(["demo", "--model", str(weights), "--device", "cpu", "-o", str(folder)]) == 0
        return folder

    def test_report(self, folder):
        report = json.loads((folder / "demo.json").read_text())
        assert list(report["costs"]) == ["shallow", "deep"]             # the cheaper one first
        assert report["costs"]["shallow"]["gmacs"] < report["costs"]["deep"]["gmacs"]
        assert report["costs"]["deep"]["ms"] == 500 and report["costs"]["deep"]["peak_mb"] == 800
        assert [(s["photo"], s["task"]) for s in report["scores"]] == [(p, t) for p in samples.PHOTOS for t in TASKS]
        for score in report["scores"]:
            assert all(math.isfinite(score[key]["psnr"]) and -1 <= score[key]["ssim"] <= 1
                       for key in ("input", "shallow", "deep"))
            assert 8 < score["input"]["psnr"] < 30

    def test_contact_sheet_holds_what_was_scored(self, folder):
        report = json.loads((folder / "demo.json").read_text())
        sheet = cv2.imread(str(folder / "demo.png"))
        clean, noisy = sheet[34:34 + 72, 8:8 + 96], sheet[34:34 + 72, 112:112 + 96]
        assert report["scores"][0]["task"] == "noise"
        # the noisy input was rounded to 8 bits before it was scored, as the sheet has it
        expected = peak_signal_noise_ratio(clean, noisy, data_range=255)
        assert report["scores"][0]["input"]["psnr"] == pytest.approx(expected, abs=1e-3)

    def test_page_is_one_file(self, folder):
        page = (folder / "demo.html").read_text()
        assert page.count("data:image/jpeg;base64,") == 12 * 2 * 2      # photos and tasks, depths, before and after
        assert not re.findall(r"""(?:src|href)=["'](?!data:)""", page) and "astronaut" in page

    def test_inputs_are_the_same_every_time(self, monkeypatch):
        monkeypatch.setattr(demo, "SIZE", (40, 60))
        first, second = list(demo._cases()), list(demo._cases())
        assert len(first) == 12
        for a, b in zip(first, second):
            assert torch.equal(a["input"], b["input"]) and not torch.equal(a["input"], a["clean"])
            assert float((a["input"] * 255 - (a["input"] * 255).round()).abs().max()) < 1e-4      # as a file would be

    def test_text_table_has_means(self, folder, capsys):
        report = json.loads((folder / "demo.json").read_text())
        text = demo._text(report)
        noise = [s["deep"]["psnr"] for s in report["scores"] if s["task"] == "noise"]
        mean = next(line for line in text.splitlines() if line.startswith("noise  mean"))
        assert f"{np.mean(noise):.2f}" in mean
        assert "peak memory" in text and "GPU" not in text

    def test_errors(self, tmp_path, capsys):
        (tmp_path / "file").write_text("")
        assert main(["demo", "-o", str(tmp_path / "file")]) == 1
        assert "-o takes a folder" in capsys.readouterr().err
        assert main(["demo", "--model", "no_such_model", "-o", str(tmp_path / "out")]) == 1
        assert "no_such_model: no such file" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()

    def test_a_network_of_one_depth_is_refused(self, tmp_path, capsys):
        save(create_model("gunet_t"), tmp_path / "gunet.safetensors")
        assert main(["demo", "--model", str(tmp_path / "gunet.safetensors"), "-o", str(tmp_path / "out")]) == 1
        assert "the demo compares two" in capsys.readouterr().err
