"""The page of ``restore serve`` for the tests: the program in a process of its own, a browser with the page in it, photos."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image as Pillow
from PIL import ImageCms
from skimage import data

from restore.checkpoint import save
from restore.models import create_model

PATIENCE = 300                               # seconds; waiting ends with what is waited for, and slow machines are slow


def save_tiny_network(path):
    """Write a network of two depths to ``path`` and return that as text."""
    torch.manual_seed(0)
    save(create_model("dynet", width=8, heads=(1, 1, 1, 1), prompt_channels=(8, 8, 8), prompt_sizes=(8, 4, 2),
                      depths={"small": (1, 1, 1, 1), "large": (2, 2, 2, 2)}), path)
    return str(path)


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


def files(folder):
    """Every file below ``folder`` but the lock of the program."""
    return sorted(path for path in Path(folder).rglob("*") if path.is_file() and path.name != "alive")


class Served:
    """``restore serve`` in a process of its own: its temporary files in ``folder``, what it has timed in ``cache``."""

    def __init__(self, model, folder, cache):
        self.folder = folder
        environment = {**os.environ, "TMPDIR": str(folder), "ANYDEPTH_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen([sys.executable, "-m", "restore", "serve", "--port", "0", "-m", model, "--device", "cpu",
                                         "--max-upload", "3MB", "--max-pixels", "1"], env=environment, text=True,
                                        stdout=subprocess.PIPE)
        self.address = self.process.stdout.readline().split()[3]

    def end(self, how=signal.SIGTERM):
        self.process.send_signal(how)
        status = self.process.wait(timeout=PATIENCE)
        self.process.stdout.close()
        return status


class Window:
    """A browser with the page in it, and what a user does there."""

    def __init__(self, driver):
        self.driver = driver

    def all(self, selector):
        return self.driver.find_elements("css selector", selector)

    def wait(self, condition, seconds=PATIENCE):
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
        """Of everything that is seen and not empty; in one call, so that nothing is replaced meanwhile."""
        script = ("return [...document.querySelectorAll(arguments[0])].filter(one => one.getClientRects().length)"
                  ".map(one => one.innerText.trim()).filter(text => text)")
        return self.driver.execute_script(script, selector)

    def click(self, selector, text=None):
        script = ("[...document.querySelectorAll(arguments[0])]"
                  ".find(one => arguments[1] === null || one.innerText.trim() === arguments[1]).click()")
        self.driver.execute_script(script, selector, text)

    def cancel(self):
        """Restore, and cancel by the page itself as soon as the button for it is seen."""
        self.driver.execute_script("""
            const watch = new MutationObserver(() => {
              const button = document.querySelector('#cancel');
              if (button?.offsetParent) { watch.disconnect(); button.click(); }
            });
            watch.observe(document.body, { childList: true, subtree: true, attributes: true });
            document.querySelector('#restore').click();""")
        self.wait(lambda: "Cancelled." in self.text("#status .card"))

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
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
