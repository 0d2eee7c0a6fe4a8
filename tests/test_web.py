"""``restore serve``: photos and their folders, the queue, limits; the page itself in headless Chromium (slow)."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from PIL import ImageCms
from skimage import data
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from restore.checkpoint import save
from restore.cli import main
from restore.errors import RestoreError
from restore.image import read_image, to_array
from restore.models import create_model
from restore.web import cards
from restore.web.engine import Cancelled, Engine, Job, Queue
from restore.web.sessions import Limits, Workspace

LIMITS = Limits(upload=3_000_000, pixels=1_000_000)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save(create_model("dynet", width=8, heads=(1, 1, 1, 1), prompt_channels=(8, 8, 8), prompt_sizes=(8, 4, 2),
                      depths={"small": (1, 1, 1, 1), "large": (2, 2, 2, 2)}), path)
    return str(path)


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    workspace = Workspace(LIMITS)
    yield workspace
    workspace.close()


@pytest.fixture(scope="module")
def engine(model):
    engine = Engine([model], device="cpu")
    yield engine
    engine.close()


def photos(folder):
    """Files of many kinds, by name."""
    astronaut = Pillow.fromarray(data.astronaut()[:72, 100:200])
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Pillow.Exif()
    exif[0x112], exif[0x10F] = 6, "Camera & Co"
    astronaut.save(folder / "turned.jpg", exif=exif, icc_profile=icc, quality=90)
    astronaut.convert("CMYK").save(folder / "inks.jpg")
    transparent = astronaut.convert("RGBA")
    transparent.putalpha(Pillow.linear_gradient("L").resize(astronaut.size))
    transparent.save(folder / "alpha.png", icc_profile=icc)
    transparent.save(folder / "alpha.webp", lossless=True)
    import tifffile
    tifffile.imwrite(folder / "deep.tif", np.asarray(astronaut).astype(np.uint16) * 257 + 3, photometric="rgb")
    astronaut.convert("L").save(folder / "grey.png")
    return sorted(folder.iterdir())


def take(workspace, path, key="a"):
    arrived = workspace.uploads / path.name
    shutil.copy(path, arrived)
    return workspace.session(key).take(arrived, path.name)


def files(folder):
    return sorted(path for path in Path(folder).rglob("*") if path.is_file() and path.name != "alive")


# ---------------------------------------------------------------- photos

def test_the_result_is_the_file_that_restore_run_writes(workspace, engine, model, tmp_path):
    (tmp_path / "in").mkdir()
    for path in photos(tmp_path / "in"):
        photo = take(workspace, path)
        restorer = engine.restorer(model, "small")
        photo.restore((model, "small"), lambda pixels: engine.run(restorer, pixels, Job("")))
        assert main(["run", str(path), "-m", model, "-d", "small", "--device", "cpu"]) == 0
        expected = path.with_name(f"{path.stem}.restored{path.suffix}")
        assert photo.result.name == expected.name
        assert photo.result.read_bytes() == expected.read_bytes(), path.name
        assert read_image(photo.pictures["restored"]).pixels.shape == read_image(expected).pixels.shape    # full resolution


def test_facts_of_a_file_reach_the_page(workspace, tmp_path):
    (tmp_path / "in").mkdir()
    by_name = {path.name: path for path in photos(tmp_path / "in")}
    text = cards.facts(take(workspace, by_name["turned.jpg"]))
    assert "72 × 100" in text and "JPEG, 8 bit" in text and "colour profile, metadata" in text
    assert "16 bit" in cards.facts(take(workspace, by_name["deep.tif"]))
    assert "transparency" in cards.facts(take(workspace, by_name["alpha.png"]))
    assert "CMYK" in cards.facts(take(workspace, by_name["inks.jpg"]))


def test_a_name_is_made_harmless_and_shown_escaped(workspace, tmp_path):
    path = tmp_path / "a.jpg"
    Pillow.fromarray(data.astronaut()[:20, :20]).save(path)
    for name, kept in (("../../etc/<b>&.jfif", "_b_&.jpg"), ("ä ö.JPG", "ä ö.JPG"), ("..", "photo.jpg"), ("x" * 300 + ".jpg", None)):
        shutil.copy(path, workspace.uploads / "up")
        photo = workspace.session("a").take(workspace.uploads / "up", name)
        assert photo.source.parent.parent == workspace.session("a").folder and len(photo.source.name) < 130
        assert kept in (None, photo.source.name)
    assert "&amp;.jpg" in cards.facts(_renamed(photo, "_b_&.jpg"))


def _renamed(photo, name):
    photo.source = photo.source.with_name(name)
    return photo


def test_bad_files_are_named_and_leave_nothing(workspace, tmp_path):
    good = tmp_path / "good.jpg"
    Pillow.fromarray(data.astronaut()).save(good)
    kept = take(workspace, good)
    Pillow.new("L", (2000, 1000)).save(tmp_path / "large.png")
    bad = {"a.txt": (b"hello", "is not a photo"), "empty.png": (b"", "is empty"), "IMG.HEIC": (b"\0\0\0\x18ftypheic" + bytes(90), "HEIC"),
           "cut.jpg": (good.read_bytes()[:9000], "cannot be read"), "large.png": ((tmp_path / "large.png").read_bytes(), "limit here is 1 mega"),
           "heavy.bmp": (b"BM" + bytes(3_100_000), "limit here is 3 MB")}
    for name, (content, says) in bad.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(RestoreError, match=says) as caught:
            take(workspace, tmp_path / name)
        assert name in str(caught.value) and str(workspace.root) not in str(caught.value)
    assert workspace.session("a").photo is kept and kept.source.is_file()
    assert {path.parent for path in files(workspace.root)} == {kept.folder}


def test_spoiling_equals_restore_degrade_and_is_scored_against_the_clean_photo(workspace, engine, model, tmp_path):
    path = tmp_path / "cat.png"
    Pillow.fromarray(data.chelsea()[:80, :96]).save(path)
    photo = take(workspace, path)
    for options in (["--kind", "noise", "--sigma", "30", "--seed", "4"], ["--kind", "rain", "--rain", "heavy", "--seed", "1"],
                    ["--kind", "haze", "--haze", "outdoor", "--beta", "1.5", "--seed", "2"], ["--kind", "jpeg", "--quality", "15"]):
        photo.degrade(options)
        expected = tmp_path / photo.input.name
        assert main(["degrade", str(path), *options, "-o", str(expected)]) == 0
        assert photo.input.read_bytes() == expected.read_bytes()
        clean, spoiled = (to_array(read_image(p).pixels) for p in (path, expected))
        psnr, ssim = photo.scores["input"]
        assert psnr == pytest.approx(peak_signal_noise_ratio(clean, spoiled), abs=1e-4)
        assert ssim == pytest.approx(structural_similarity(clean, spoiled, channel_axis=-1), abs=1e-4)
    restorer = engine.restorer(model, "large")
    photo.restore((model, "large"), lambda pixels: engine.run(restorer, pixels, Job("")))
    restored = to_array(read_image(photo.result).pixels)                 # rounded, while the score is of what was not
    assert photo.scores["restored"][0] == pytest.approx(peak_signal_noise_ratio(clean, restored), abs=0.02)
    assert photo.runs[model, "large"][1] == photo.scores["restored"][0]
    assert set(photo.pictures) == {"input", "clean", "restored"}
    photo.degrade(None)
    assert photo.input == photo.source and set(photo.pictures) == {"input"} and not photo.scores


@pytest.mark.parametrize("height", [3, 7, 8, 61, 64])
def test_scores_in_bands_are_those_of_the_whole(height, monkeypatch):
    from restore.web import sessions
    monkeypatch.setattr(sessions, "_BAND", 16 * 40)
    a, b = torch.rand(2, 3, height, 40, generator=torch.Generator().manual_seed(0))
    psnr, ssim = sessions._scores(a, b)
    assert psnr == pytest.approx(peak_signal_noise_ratio(b.numpy(), a.numpy(), data_range=1), abs=1e-5)
    expected = structural_similarity(b.double().numpy(), a.double().numpy(), data_range=1, channel_axis=0) if height >= 7 else None
    assert ssim == (expected and pytest.approx(expected, abs=1e-6))
    assert sessions._scores(a, a)[0] == np.inf


# ---------------------------------------------------------------- pages

def test_pages_do_not_see_each_other_and_leave_nothing(workspace, tmp_path):
    path = tmp_path / "a.png"
    Pillow.fromarray(data.astronaut()[:30, :30]).save(path)
    first, second = take(workspace, path, "first"), take(workspace, path, "second")
    one, two = workspace.session("first"), workspace.session("second")
    picture = first.pictures["input"]
    assert one.find(picture.parent.name, picture.name) == picture and two.find(picture.parent.name, picture.name) is None
    assert one.find(picture.parent.name, "../alive") is None
    assert workspace.by_token(one.token) is one and workspace.by_token("x") is None
    take(workspace, path, "first")
    assert not first.folder.exists()                                      # replaced
    workspace.end("first")
    assert not one.folder.exists() and workspace.by_token(one.token) is None and second.source.is_file()
    (workspace.uploads / "old").write_bytes(b"x")
    (workspace.uploads / "new").write_bytes(b"x")
    os.utime(workspace.uploads / "old", (0, 0))
    workspace.sweep_uploads()
    assert [p.name for p in workspace.uploads.iterdir()] == ["new"]
    workspace.close()
    assert not workspace.root.exists()


def test_what_a_killed_program_left_is_deleted_by_the_next(tmp_path, monkeypatch):
    pytest.importorskip("fcntl")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code = ("import os, signal, sys, tempfile; tempfile.tempdir = sys.argv[1]\n"
            "from restore.web.sessions import Limits, Workspace\n"
            "w = Workspace(Limits(1, 1)); (w.uploads / 'photo').write_bytes(b'x'); os.kill(os.getpid(), signal.SIGKILL)")
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == -signal.SIGKILL
    assert [p.name for p in files(tmp_path)] == ["photo"]
    living = Workspace(LIMITS)
    assert files(tmp_path) == [] and living.root.is_dir()
    other = Workspace(LIMITS)                                             # leaves the living one alone
    assert living.root.is_dir()
    other.close()
    living.close()
    assert not list(tmp_path.glob("anydepth*"))


# ---------------------------------------------------------------- the queue and the engine

def test_work_is_done_in_order_and_tells_how_many_come_before():
    queue, gate, order = Queue(), threading.Event(), []
    jobs = [Job(str(number), expected=number + 1) for number in range(4)]
    queue.submit(jobs[0], gate.wait)
    for job in jobs[1:]:
        queue.submit(job, order.append, job.what)
    assert [queue.ahead(job)[0] for job in jobs] == [0, 1, 2, 3]
    assert queue.ahead(jobs[3])[1] == pytest.approx(1 + 2 + 3, abs=0.9)   # of the first some has passed
    jobs[2].cancel()
    assert queue.ahead(jobs[3])[0] == 2
    gate.set()
    jobs[3].future.result(timeout=30)
    assert order == ["1", "3"] and jobs[2].cancelled
    queue.close()


def test_progress_grows_to_one_over_tiles_and_the_result_is_the_restorers(engine, model):
    restorer = engine.restorer(model, "small").at("small")
    restorer.tile = lambda height, width: (64, 64)
    pixels = torch.rand(3, 96, 128, generator=torch.Generator().manual_seed(0))
    job, seen = Job("test"), []
    check = job.check
    job.check = lambda: (seen.append((job.fraction, job.tile)), check())
    out = engine.run(restorer, pixels, job)
    assert torch.equal(out, restorer.restore(pixels))
    fractions = [fraction for fraction, _ in seen]
    assert job.tiles > 4 and fractions == sorted(fractions) and fractions[-1] == pytest.approx(1)
    assert {tile for _, tile in seen} == set(range(1, job.tiles + 1))
    assert len(set(fractions)) > 5 * job.tiles                            # also within a tile


def test_cancelling_ends_the_network_between_two_blocks(engine, model):
    job, calls = Job("test"), []
    check = job.check

    def cancel_at_the_third():
        calls.append(1)
        if len(calls) == 3:
            job.cancel()
        check()

    job.check = cancel_at_the_third
    with pytest.raises(Cancelled):
        engine.run(engine.restorer(model, "large"), torch.rand(3, 64, 64), job)
    assert len(calls) == 3
    engine.run(engine.restorer(model, "large"), torch.rand(3, 64, 64), Job("next"))     # and the next one is not disturbed


def test_depths_costs_and_the_time_budget(engine, model, tmp_path, monkeypatch):
    from restore.depth import count_macs
    monkeypatch.setenv("ANYDEPTH_CACHE", str(tmp_path))
    assert engine.depths(model) == ["small", "large"]
    network = engine.restorer(model, None).model
    assert [row.seconds for row in engine.costs(model, 100, 150)] == [None, None]
    engine.measure(model)
    small, large = engine.costs(model, 100, 150)
    assert (small.macs, large.macs) == tuple(count_macs(network, 100, 150, name) for name in ("small", "large"))
    assert large.repeats == "2,2,2,2" and small.seconds > 0 and large.seconds > 0
    monkeypatch.setattr("restore.budget.measured_seconds", lambda restorer: {(1, 1, 1, 1): 1, (2, 2, 2, 2): 2}[restorer.depth])
    assert engine.choose(model, 3, 256, 256) == "large" and engine.choose(model, 1.5, 256, 256) == "small"
    with pytest.raises(RestoreError, match="no depth fits"):
        engine.choose(model, 0.5, 256, 256)


# ---------------------------------------------------------------- the program

def test_wrong_options_are_told_before_anything_is_served(capsys, tmp_path):
    for options, says in ((["--port", "99999"], "--port 99999"), (["--max-pixels", "0"], "--max-pixels"),
                          (["--max-upload", "much"], "much"), (["--max-upload", "unlimited"], "--max-upload"),
                          (["-m", str(tmp_path / "none.safetensors")], "none.safetensors: no such file")):
        assert main(["serve", *options]) == 1
        assert says in capsys.readouterr().err


def test_a_taken_port_is_told(capsys):
    import socket
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["serve", "--port", str(port)]) == 1
    assert f"--port {port}" in capsys.readouterr().err


def test_without_gradio_the_extra_is_named(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["serve", "--port", "0"]) == 1
    assert "anydepth[web]" in capsys.readouterr().err


class Served:
    """``restore serve`` in a process of its own, its temporary files below ``folder``."""

    def __init__(self, model, folder, *options):
        self.folder = folder
        environment = {**os.environ, "TMPDIR": str(folder), "ANYDEPTH_CACHE": str(folder.parent / "cache"), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen([sys.executable, "-m", "restore", "serve", "--port", "0", "-m", model, "--device", "cpu",
                                         "--max-upload", "3MB", "--max-pixels", "1", *options], env=environment, text=True,
                                        stdout=subprocess.PIPE)
        self.address = self.process.stdout.readline().split()[3]

    def end(self, how=signal.SIGTERM):
        self.process.send_signal(how)
        status = self.process.wait(timeout=60)
        self.process.stdout.close()
        return status


@pytest.fixture
def served(model, tmp_path):
    pytest.importorskip("gradio", reason="needs the extra [web]")
    (tmp_path / "tmp").mkdir()
    served = Served(model, tmp_path / "tmp")
    yield served
    if served.process.poll() is None:
        served.end()


@pytest.mark.slow
@pytest.mark.parametrize("how, status", [(signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGINT, 130)])
def test_it_listens_here_alone_refuses_large_uploads_and_leaves_nothing(served, how, status):
    assert served.address.startswith("http://127.0.0.1:")
    page = urllib.request.urlopen(served.address)
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy and "http" not in policy
    boundary = b"--b\r\nContent-Disposition: form-data; name=\"files\"; filename=\"a.png\"\r\n\r\n"
    for size, code in ((1000, 200), (3_200_000, 413)):
        request = urllib.request.Request(served.address + "/gradio_api/upload", boundary + bytes(size) + b"\r\n--b--\r\n",
                                         {"Content-Type": "multipart/form-data; boundary=b"})
        try:
            got = urllib.request.urlopen(request).status
        except urllib.error.HTTPError as error:
            got = error.code
        assert got == code
    assert [path.name for path in files(served.folder)] == ["a.png"]
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(served.address + "/photo/token/folder/name")
    assert served.end(how) == status
    assert list(served.folder.iterdir()) == []


# ---------------------------------------------------------------- the page in a browser (pip install selenium; chromium)

@pytest.fixture
def browser():
    """``browser(width, height)`` opens another headless Chromium."""
    pytest.importorskip("gradio", reason="needs the extra [web]")
    pytest.importorskip("selenium", reason="needs selenium")
    from selenium import webdriver
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("needs chromium and chromedriver")
    opened = []

    def start(width=1280, height=900, downloads=None):
        options = webdriver.ChromeOptions()
        options.binary_location = chromium
        for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
            options.add_argument(argument)
        options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
        options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
        opened.append(webdriver.Chrome(options=options, service=webdriver.ChromeService(driver)))
        opened[-1].execute_cdp_cmd("Emulation.setDeviceMetricsOverride",
                                   {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500})
        return Window(opened[-1])

    yield start
    for one in opened:
        one.quit()


class Window:
    """A browser with the page in it, and what a user does there."""

    def __init__(self, driver):
        self.driver = driver

    def all(self, selector):
        return self.driver.find_elements("css selector", selector)

    def wait(self, condition, seconds=60):
        from selenium.webdriver.support.ui import WebDriverWait
        return WebDriverWait(self.driver, seconds, 0.1).until(lambda _: condition())

    def open(self, address):
        self.driver.get(address)
        self.wait(lambda: self.all("photo-drop .choose"))
        return self

    def drop(self, path):
        visible = next(one for one in self.all("photo-drop") if one.is_displayed())
        visible.find_element("css selector", "input").send_keys(str(path))

    def take(self, path):
        self.drop(path)
        self.wait(lambda: self.text("#facts strong") == [path.name])

    def text(self, selector):
        return [one.text for one in self.all(selector) if one.text]

    def click(self, selector, text=None):
        one = next(one for one in self.all(selector) if text is None or one.text.strip() == text)
        self.driver.execute_script("arguments[0].click()", one)

    def restore(self):
        self.click("#restore")
        self.wait(lambda: "Restored" in " ".join(self.text("#status .card")))

    def pictures(self):
        """(label, width, height, address) of what is compared, once it is loaded."""
        script = ("const shown = document.querySelector('photo-compare').shadowRoot.querySelectorAll('img');"
                  "return [...shown].map(one => [one.alt, one.naturalWidth, one.naturalHeight, one.src])")
        self.wait(lambda: all(height for _, _, height, _ in self.driver.execute_script(script)))
        return self.driver.execute_script(script)

    def requested(self):
        """Addresses of everything that the page has asked for."""
        import json
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_from_the_photo_to_the_download(served, browser, model, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "downloads").mkdir()
    paths = {path.name: path for path in photos(tmp_path / "in")}
    window = browser(downloads=tmp_path / "downloads").open(served.address)
    (tmp_path / "cut.jpg").write_bytes(paths["turned.jpg"].read_bytes()[:1500])
    window.drop(tmp_path / "cut.jpg")                                     # a bad file, and the page goes on
    window.wait(lambda: "cut.jpg: cannot be read" in " ".join(window.text("photo-drop .bad")))
    window.take(paths["turned.jpg"])
    assert not window.text("photo-drop .message")                         # nothing of the upload is left standing
    window.restore()
    assert [picture[:3] for picture in window.pictures()] == [["Restored", 72, 100], ["Before", 72, 100]]
    window.click("a.download")
    target = tmp_path / "downloads" / "turned.restored.jpg"
    window.wait(target.exists)
    expected = paths["turned.jpg"].with_name("turned.restored.jpg")
    assert main(["run", str(paths["turned.jpg"]), "-m", model, "--device", "cpu"]) == 0
    assert target.read_bytes() == expected.read_bytes()
    window.click("#test button")
    window.wait(lambda: "Noise" in window.text("#kind label"))
    window.click("#kind label", "Noise")
    window.wait(lambda: len(window.all(".scores tbody tr")) == 1)
    window.restore()
    window.wait(lambda: len(window.all(".scores tbody tr")) == 2)
    window.click("#mode label", "Time limit")
    window.wait(lambda: window.all("#limit input") and window.all("#limit input")[0].is_displayed())
    outside = [url for url in window.requested() if not url.startswith((served.address, "data:", "blob:", "chrome"))]
    assert outside == []
    assert not [entry for entry in window.driver.get_log("browser") if entry["level"] == "SEVERE" and "favicon" not in entry["message"]]
    assert len(files(served.folder)) >= 4
    window.driver.quit()
    deadline = time.time() + 60
    while files(served.folder) and time.time() < deadline:                # the page was closed
        time.sleep(0.2)
    assert files(served.folder) == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_users_at_once_a_narrow_window_and_cancelling(served, browser, tmp_path):
    for name, part in (("first.png", slice(0, 300)), ("second.png", slice(200, 512))):
        Pillow.fromarray(data.astronaut()[part]).resize((900, 900)).save(tmp_path / name)
    one, two = browser().open(served.address), browser(390, 844).open(served.address)
    one.take(tmp_path / "first.png")
    two.take(tmp_path / "second.png")
    one.click("#restore")
    two.click("#restore")
    for window, name in ((one, "first"), (two, "second")):
        window.wait(lambda window=window: window.all("a.download"), 120)
        assert window.text("a.download") == [f"Download {name}.restored.png"]
    addresses = [{picture[3] for picture in window.pictures()} for window in (one, two)]
    assert not addresses[0] & addresses[1] and len({url.split("/")[4] for urls in addresses for url in urls}) == 2
    for window in (one, two):
        assert window.driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    two.click("#restore")
    two.wait(lambda: two.all("#status .bar") and two.all("#cancel"))
    two.click("#cancel")
    two.wait(lambda: "Cancelled." in two.text("#status .card"))
    two.restore()                                                         # and once more, to the end
