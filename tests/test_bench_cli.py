"""``restore bench`` from the command line: what a user types, reads and gets."""

import json
from html.parser import HTMLParser

import cv2
import numpy as np
import pyarrow.parquet
import pytest

from restore.cli import main


def picture(number, height=64, width=80):
    y, x = np.mgrid[:height, :width]
    return np.stack([(x * (3 + c) + y * (5 - c) + (x // 8) * (y // 8) * (number + 2)) % 256 for c in range(3)], -1).astype(np.uint8)


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image[..., ::-1])


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for name in ("kodim01", "kodim02"):
        save(tmp_path / "data" / "Kodak24" / f"{name}.png", picture(int(name[-1])))
    for number in range(2):
        save(tmp_path / "data" / "Rain100L" / "target" / f"{number:03d}.png", picture(number))
        save(tmp_path / "data" / "Rain100L" / "input" / f"{number:03d}.png", np.maximum(picture(number), 90))
    save(tmp_path / "data" / "real" / "haze" / "hill.png", picture(4) // 3 + 120)
    return tmp_path


def test_report_of_two_models(data, capsys):
    assert main(["bench", "denoise", "--model", "input", "--model", "soft=median", "-o", "out", "--crops", "2"]) == 0
    printed = capsys.readouterr()
    assert "partial, 2 of 24" in printed.out and "CBSD68: not found; published at" in printed.err
    assert {p.name for p in (data / "out").iterdir()} == {"report.md", "report.tex", "report.json", "report.html", "results.csv",
                                                          "results.parquet"}
    report = json.loads((data / "out" / "report.json").read_text())
    rows = pyarrow.parquet.read_table(data / "out" / "results.parquet").to_pylist()
    values = [row["psnr"] for row in rows if (row["model"], row["entry"]) == ("soft", "kodak24-25")]
    assert len(values) == 2
    assert report["models"][1]["entries"]["kodak24-25"]["psnr"]["mean"] == pytest.approx(np.mean(values), abs=1e-12)
    assert report["protocol"]["name"] == "lineage" and "simplejpeg" in report["versions"]["jpeg decoder"]
    assert report["models"][0]["mean"]["psnr"] is None                          # three sets are missing: no mean
    page = (data / "out" / "report.html").read_text()
    sources = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attrs):
            sources.extend(value for key, value in attrs if key in ("src", "href"))

    Reader().feed(page)
    assert sources and all(source.startswith("data:image/") for source in sources)
    assert page.count('class="compare"') == 3 * 2 * 2 and "partial, 2 of 24" in page
    before = (data / "out" / "results.csv").read_bytes()
    assert main(["bench", "denoise", "--model", "input", "--model", "soft=median", "-o", "again", "--crops", "2"]) == 0
    assert (data / "again" / "results.csv").read_bytes() == before
    assert "Every result came from the cache" in capsys.readouterr().out


def test_written_inputs_scored_as_restored(data, capsys):
    assert main(["bench", "kodak24", "--only", "kodak24-25", "--write-inputs", "in", "--protocol", "seeded"]) == 0
    assert "2 inputs in in/kodak24-25, crc32" in capsys.readouterr().out
    options = ["bench", "kodak24", "--only", "kodak24-25", "--protocol", "seeded", "--restored", "in", "--model", "input"]
    assert main([*options, "-o", "out"]) == 0
    first, second = json.loads((data / "out" / "report.json").read_text())["models"]
    assert first["entries"]["kodak24-25"]["psnr"] == second["entries"]["kodak24-25"]["psnr"]


def test_photos_without_reference(data, capsys):
    assert main(["bench", "real", "--model", "input", "--model", "dcp", "-o", "out"]) == 0
    report = json.loads((data / "out" / "report.json").read_text())
    values = {m["name"]: m["entries"]["real-haze"] for m in report["models"]}
    assert values["dcp"]["fade"]["mean"] < values["input"]["fade"]["mean"]
    assert set(report["metrics"]) == {"fade", "piqe", "sharpness", "tenengrad", "contrast", "entropy"}
    assert "hazy photos" in (data / "out" / "report.html").read_text()


def test_check_counts_and_names(data, capsys):
    assert main(["bench", "check", "data"]) == 0
    printed = capsys.readouterr().out
    assert "| kodak24 | partial, 2 of 24 | 2 | 24 |" in printed and "kodak24: 22 missing: kodim03" in printed
    assert "| cbsd68 | missing | 0 | 68 |" in printed and "https://github.com/clausmichele/CBSD68-dataset" in printed


def test_a_corrupt_file_is_named_and_the_status_is_1(data, capsys):
    path = data / "data" / "Rain100L" / "input" / "001.png"
    path.write_bytes(b"not an image")
    assert main(["bench", "derain", "-o", "out"]) == 1
    printed = capsys.readouterr().out
    assert "001.png" in printed and "partial, 1 of 100" in printed
    assert len(pyarrow.parquet.read_table(data / "out" / "results.parquet")) == 1


@pytest.mark.parametrize(("arguments", "message"), [
    (["denose"], "did you mean 'denoise'"),
    (["denoise", "--only", "kodak"], "did you mean 'kodak24'"),
    (["denoise", "--protocol", "linage"], "--protocol: no protocol is called 'linage'; did you mean 'lineage'"),
    (["denoise", "--data", "nowhere"], "--data nowhere: no such folder"),
    (["dehaze"], "none of the sets of dehaze lies below data"),
    (["denoise", "--first", "0"], "--first 0: give a number of at least 1"),
    (["denoise", "--protocol", "no-reference"], "protocol no-reference does not fit these sets"),
    (["check"], "restore bench check DIR"),
    (["denoise", "--pyiqa", "niqe"], "--pyiqa adds measures of photos"),
    (["denoise", "--restored", "nowhere"], "--restored nowhere: no such folder")])
def test_errors_are_one_line(data, capsys, arguments, message):
    assert main(["bench", *arguments]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("restore bench: error: ") and message in error
    assert not (data / "out").exists()
