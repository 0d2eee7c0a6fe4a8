"""The page of ``restore serve`` in headless Chromium (slow; pip install selenium, chromium and its driver)."""

import shutil
import signal
import time
import urllib.error
import urllib.request

import pytest
from PIL import Image as Pillow
from skimage import data
from web_page import PATIENCE, Served, Window, files, photos, save_tiny_network

from restore.cli import main

pytestmark = [pytest.mark.slow, pytest.mark.timeout(10 * PATIENCE)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_network(tmp_path_factory.mktemp("model") / "tiny.safetensors")


@pytest.fixture
def served(model, tmp_path, tmp_path_factory):
    pytest.importorskip("gradio", reason="needs the extra [web]")
    (tmp_path / "tmp").mkdir()
    served = Served(model, tmp_path / "tmp", tmp_path_factory.getbasetemp() / "cache")
    yield served
    if served.process.poll() is None:
        served.end()


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
    begun = time.monotonic()
    while files(served.folder) and time.monotonic() - begun < PATIENCE:   # until the program notices that the page is closed
        time.sleep(0.2)
    assert files(served.folder) == []


def test_two_users_at_once_a_narrow_window_and_cancelling(served, browser, tmp_path):
    for name, part, side in (("first.png", slice(0, 300), 256), ("second.png", slice(200, 512), 256), ("large.png", slice(0, 512), 900)):
        Pillow.fromarray(data.astronaut()[part]).resize((side, side)).save(tmp_path / name)
    one, two = browser().open(served.address), browser(390, 844).open(served.address)
    two.take(tmp_path / "large.png")
    two.cancel()
    one.take(tmp_path / "first.png")
    two.take(tmp_path / "second.png")
    one.click("#restore")
    two.click("#restore")
    for window, name in ((one, "first"), (two, "second")):
        window.wait(lambda window=window: window.text("a.download"))
        assert window.text("a.download") == [f"Download {name}.restored.png"]
    addresses = [{picture[3] for picture in window.pictures()} for window in (one, two)]
    assert not addresses[0] & addresses[1] and len({url.split("/")[4] for urls in addresses for url in urls}) == 2
    for window in (one, two):
        assert window.driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")
