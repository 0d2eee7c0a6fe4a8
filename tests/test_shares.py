"""Several processes of restore run share the files without gaps or doubles."""

import os
import subprocess
import sys

import numpy as np
import pytest

from restore import create_model, save


@pytest.mark.parametrize("resume", [False, True])
def test_every_file_once(tmp_path, resume):
    import cv2
    save(create_model("dynet", width=8, refinement=1, prompt_sizes=(8, 8, 4)), tmp_path / "m.safetensors")
    names = [f"{i % 2}/{i}.png" for i in range(7)]
    for i, name in enumerate(names):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / "in" / name), np.full((9, 8, 3), 30 * i, np.uint8))
    out, marker = tmp_path / "out", 12345
    if resume:
        (out / "0").mkdir(parents=True)
        (out / names[0]).write_bytes((tmp_path / "in" / names[0]).read_bytes())
        os.utime(out / names[0], (marker, marker))
    args = [sys.executable, "-m", "restore", "run", str(tmp_path / "in"), "-o", str(out), "-m", str(tmp_path / "m.safetensors"),
            *["--resume"] * resume]
    ranks = [subprocess.Popen(args, env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "3", "LOCAL_RANK": str(rank)},
                              stderr=subprocess.PIPE, text=True) for rank in range(3)]
    errors = [rank.communicate()[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * 3, errors
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*.png")) == sorted(names)
    if resume:
        assert os.path.getmtime(out / names[0]) == marker
