"""restore depths: its numbers against those computed by hand, its curve against a blank page."""

import json

import numpy as np
import pytest
import torch
from test_models import TINY

from restore import Restorer, create_model, read_image, save
from restore.cli import main
from restore.depth import count_macs


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    monkeypatch.setenv("ANYDEPTH_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    save(create_model("dynet", **TINY["dynet"]), tmp_path / "m.safetensors",
         provenance={"psnr": {"small": {"mean": 30.5}, "large": {"mean": 31.25}}})
    return tmp_path / "m.safetensors"


def test_validated_numbers_and_costs(checkpoint, tmp_path, capsys):
    import cv2
    assert main(["depths", str(checkpoint), "--size", "64x48", "--json", "-o", str(tmp_path / "curve.png")]) == 0
    rows = {row["depth"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert {name: row["psnr"] for name, row in rows.items()} == {"small": 30.5, "large": 31.25}
    model = create_model("dynet", **TINY["dynet"])
    assert all(row["macs"] == count_macs(model, 64, 48, name) and row["seconds"] > 0 for name, row in rows.items())
    picture = cv2.imread(str(tmp_path / "curve.png"))
    assert picture.shape[1] > 800 and picture.std() > 10


def test_quality_on_own_pairs(checkpoint, tmp_path, capsys):
    import cv2
    from skimage.metrics import peak_signal_noise_ratio
    for i, side in enumerate(("input", "target")):
        (tmp_path / "pairs" / side).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / "pairs" / side / "a.png"), np.random.default_rng(i).integers(0, 256, (24, 32, 3), np.uint8))
    assert main(["depths", str(checkpoint), "--data", str(tmp_path / "pairs"), "-d", "1,1,1,1", "--size", "24x32", "--json",
                 "-o", str(tmp_path / "c.png")]) == 0
    rows = {row["depth"]: row["psnr"] for row in json.loads(capsys.readouterr().out)["rows"]}
    out = Restorer(checkpoint, depth="1,1,1,1", device="cpu").restore(read_image(tmp_path / "pairs/input/a.png").pixels)
    target = read_image(tmp_path / "pairs/target/a.png").pixels
    assert rows["1,1,1,1"] == pytest.approx(peak_signal_noise_ratio(target.numpy(), out.numpy(), data_range=1), abs=1e-3)
    assert set(rows) == {"small", "large", "1,1,1,1"}


def test_pairs_that_do_not_match(checkpoint, tmp_path, capsys):
    for side, name in (("input", "a.png"), ("target", "b.png")):
        (tmp_path / "pairs" / side).mkdir(parents=True)
        (tmp_path / "pairs" / side / name).write_bytes(b"")
    assert main(["depths", str(checkpoint), "--data", str(tmp_path / "pairs")]) == 1
    assert "only one of input/ and target/" in capsys.readouterr().err
