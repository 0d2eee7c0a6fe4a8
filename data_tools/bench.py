"""Speed and accuracy, shown: ``python -m data_tools bench``.

Speed: one-megapixel JPEGs of about 300 KB go through scan, measure, decide and export of the original bytes with one
worker and with two. Per-core figures are *processor time* of supervisor and workers together (a shared machine's wall
clock says little), the part that grows with the number of images: what a run of N images costs more than one of a few.
The floor, measured in the same run, is simplejpeg decoding the same files and nothing else.

Accuracy: ``--labels FILE.csv`` (columns file and labels, as in ``data/dirty``) and ``--clean FOLDER``: per label,
how many images the default thresholds reject, and by the rule that is meant for the label; how many clean ones.
"""

import argparse
import csv
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from restore.errors import RestoreError
from restore.files import list_images

# label -> the rules that are meant for it
MEANT = {"blurry": {"blurry"}, "noisy": {"noisy", "noisy_jpeg", "very_noisy", "noise_suspected"}, "compressed": {"compressed"},
         "flat": {"flat", "dark"}, "dark": {"dark", "flat"}, "product_white": {"product_white"},
         "clipart": {"clipart", "drawing", "product_white"}, "corrupt": {"corrupt", "refused"},
         "misnamed": {"misnamed"}, "misnamed_format": {"misnamed"}, "small": {"small"}, "odd_size": {"odd_size", "small"},
         "borders": {"letterbox"}, "alpha": {"transparent"}, "grayscale": {"gray"}, "watermark": {"watermark"},
         "duplicate": {"duplicate"}, "near_duplicate": {"duplicate"}}


def command(arguments):
    """Run what was asked for: speed by default, accuracy when labels or clean folders are given."""
    parser = argparse.ArgumentParser(prog="python -m data_tools bench", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", metavar="FOLDER", help="photos to make test JPEGs from (default: synthetic)")
    parser.add_argument("--count", type=int, default=600, help="images of the speed run")
    parser.add_argument("--rounds", type=int, default=3, help="how often the speed run is repeated")
    parser.add_argument("--labels", metavar="CSV", help="labelled images; file names are relative to the CSV's folder")
    parser.add_argument("--clean", metavar="FOLDER", action="append", default=[],
                        help="good photos that must not be rejected")
    parser.add_argument("--thresholds", metavar="FILE", help="default: the ones shipped")
    parser.add_argument("--workers", type=int, default=0, help="for the accuracy run; default: one per core")
    options = parser.parse_args(arguments)
    if options.rounds < 1 or options.count < 1:
        raise RestoreError(f"--rounds {options.rounds} --count {options.count}: give one at least")
    if options.labels or options.clean:
        return accuracy(options)
    return speed(options)


# ---- speed -------------------------------------------------------------------------------------------------------

def speed(options):
    """Print images per second beside the decoding floor, for one worker and two, and the peak memory."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        make_images(folder / "many", options.count, options.images)
        few = max(8, options.count // 10)
        (folder / "few").mkdir()
        for path in list_images(folder / "many")[:few]:
            os.link(path, folder / "few" / path.name)
        paths = list_images(folder / "many")
        size = sum(path.stat().st_size for path in paths) / len(paths)
        print(f"{len(paths)} JPEGs of {_megapixels(paths[0]):.2f} megapixels, {size / 1000:.0f} KB on average"
              + ("" if options.images else " (synthetic; --images FOLDER takes photos)"))
        # a shared machine is faster now and slower then: every round has its own floors, and medians of the rounds are shown
        rounds = [{workers: _against_floor(folder, workers, few, paths) for workers in (1, 2)} for _ in range(options.rounds)]
        floors = [cost.floor for costs in rounds for cost in costs.values()]
        print(f"floor, decoding alone        {1 / np.median(floors):7.1f} images/s of processor time "
              f"({1 / max(floors):.1f} to {1 / min(floors):.1f}; medians of {len(rounds)} rounds)")
        for workers in (1, 2):
            costs = [costs[workers] for costs in rounds]
            name = f"whole build, {workers} worker{'s' if workers > 1 else ''}"
            print(f"{name:28} {1 / np.median([c.processor for c in costs]):7.1f} images/s of processor time, "
                  f"{1 / np.median([c.wall for c in costs]):7.1f} by the wall clock  "
                  f"({100 * np.median([c.floor / c.processor for c in costs]):.0f} % of the floor beside it)")
        print(f"two workers / one            {np.median([r[1].wall / r[2].wall for r in rounds]):7.2f} by the wall clock, "
              f"{np.median([2 * r[1].processor / r[2].processor for r in rounds]):.2f} by processor time (2 is perfect); "
              f"load of the machine {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
        peaks = ", ".join(f"{kind} {peak:.0f}" for kind, peak in peak_memory(folder).items())
        print(f"peak MB of a worker, 24 megapixels   {peaks}")
    return 0


@dataclass
class _Cost:
    """Seconds an image: of a whole build by the ``processor`` and by the ``wall`` clock, and of decoding alone, ``floor``."""
    processor: float
    wall: float
    floor: float


def _against_floor(folder, workers, few, paths):
    """The :class:`_Cost` of the images that ``many`` has more than ``few``, with the mean of the floors before and after."""
    before, costs = floor(paths), []
    for name in ("few", "many"):
        with tempfile.TemporaryDirectory(dir=folder) as output:
            costs.append(_run(folder / name, Path(output) / "out", workers))
    processor, wall = ((b - a) / (len(paths) - few) for a, b in zip(*costs))
    return _Cost(processor, wall, (before + floor(paths)) / 2)


def _megapixels(path):
    height, width = cv2.imread(str(path)).shape[:2]
    return height * width / 1e6


def make_images(folder, count, photos=None, width=1152, height=864, target=300_000):
    """Write ``count`` different JPEGs of about ``target`` bytes: cut from photos (enlarged where they are small), or
    random pictures with the spectrum of natural ones."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    sources = list_images(photos) if photos else []
    if photos and not sources:
        raise RestoreError(f"{photos}: no images in it")
    for number in range(count):
        if sources:
            pixels = cv2.imread(str(sources[number % len(sources)]))
            scale = max(width / pixels.shape[1], height / pixels.shape[0], 1)
            pixels = cv2.resize(pixels, None, fx=scale * 1.02, fy=scale * 1.02, interpolation=cv2.INTER_CUBIC)
            top, left = (int(generator.integers(0, a - b + 1)) for a, b in zip(pixels.shape, (height, width)))
            pixels = pixels[top:top + height, left:left + width]
            # enlarging took the finest detail away: put about as much back as a photo of this size has
            pixels = np.clip(pixels + generator.normal(0, 3, pixels.shape), 0, 255).astype(np.uint8)
        else:
            pixels = _natural(generator, height, width)
        low, high = 30, 98
        while low < high:                                 # the highest quality that stays within the target
            middle = (low + high + 1) // 2
            data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, middle])[1]
            low, high = (middle, high) if len(data) <= target else (low, middle - 1)
        data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, low])[1]
        (folder / f"{number:05d}.jpg").write_bytes(data.tobytes())


def _natural(generator, height, width):
    """Random colours with a 1/f amplitude spectrum."""
    y, x = np.meshgrid(np.fft.fftfreq(height), np.fft.rfftfreq(width), indexing="ij")
    falloff = 1 / np.maximum(np.hypot(x, y), 1 / width)
    planes = [np.fft.irfft2(np.fft.rfft2(generator.normal(size=(height, width))) * falloff, (height, width))
              for _ in range(2)]
    luma, tint = (plane / plane.std() for plane in planes)
    return np.clip(128 + 50 * luma[..., None] + 10 * tint[..., None] * np.array([1, 0, -1]), 0, 255).astype(np.uint8)


def floor(paths):
    """Processor seconds per image of decoding alone."""
    import simplejpeg
    data = [path.read_bytes() for path in paths[:200]]
    simplejpeg.decode_jpeg(data[0], "BGR")
    started = time.process_time()
    for encoded in data:
        simplejpeg.decode_jpeg(encoded, "BGR")
    return (time.process_time() - started) / len(data)


def _run(source, output, workers):
    """(processor seconds, wall seconds) of scan, measure, decide and export of the original bytes, in a fresh process.
    """
    code = ("import sys; from data_tools import build, recipe; from data_tools.store import Store\n"
            "made = recipe.load(sys.argv[1], sys.argv[2],\n"
            # many shards, as a large build has them: each is written by one worker
            "    [('workers', int(sys.argv[3])), ('export.formats', ['webdataset']), ('export.shard_mb', 8)])\n"
            "from data_tools import decide\n"
            "made.measure.watermarks = False\n"
            "made.rules = dict.fromkeys(decide.thresholds(), False)   # so that every image is exported\n"
            "store = Store(made.output)\n"
            "for stage in ('scan', 'measure', 'decide', 'export'): build.run_stage(stage, store, made)\n")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code, str(source), str(output), str(workers)], capture_output=True,
                          text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    wall = time.monotonic() - started
    if done.returncode:
        raise RestoreError(f"the build failed:\n{done.stderr[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def peak_memory(folder, width=6000, height=4000):
    """{kind: peak resident megabytes} of a process that measures one 24-megapixel image after another, as a worker does;
    nothing where there is no /proc."""
    if not os.path.exists("/proc/self/status"):
        return {}
    colour = np.tile(_natural(np.random.default_rng(1), 1000, 1000), (height // 1000, width // 1000, 1))
    deep = np.dstack([colour, colour[:, :, :1]]).astype(np.uint16) * 257
    paths = {"JPEG": folder / "large.jpg", "CMYK JPEG": folder / "cmyk.jpg", "RGBA PNG of 16 bits": folder / "deep.png"}
    cv2.imwrite(str(paths["JPEG"]), colour, [cv2.IMWRITE_JPEG_QUALITY, 92])
    Image.fromarray(colour).convert("CMYK").save(paths["CMYK JPEG"], quality=92)
    cv2.imwrite(str(paths["RGBA PNG of 16 bits"]), deep, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    code = ("import sys; from data_tools.engine import prepare; prepare()\n"
            "from data_tools.measuring import measurer\n"
            "one = measurer(max_megapixels=200, max_mb=512, plugins=[])\n"
            "item = {'error': None, 'locator': 'file::' + sys.argv[1], 'name': sys.argv[1]}\n"
            "for _ in range(2): assert not one(item)['error']\n"
            # ru_maxrss would count this process too, which the child began as a copy of
            "status = dict(line.split(':', 1) for line in open('/proc/self/status'))\n"
            "print(int(status['VmHWM'].split()[0]) / 1000)")
    return {kind: float(subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True,
                                       check=True).stdout.split()[-1]) for kind, path in paths.items()}


# ---- accuracy ----------------------------------------------------------------------------------------------------

def accuracy(options):
    """Print recall by label, and what is rejected of the folders of good photos."""
    labelled = _labels(options.labels) if options.labels else {}
    with tempfile.TemporaryDirectory() as folder:
        if labelled:
            decided = _decided(Path(options.labels).parent, Path(folder) / "labelled", options)
            missing = [name for name in labelled if name not in decided]
            if missing:
                raise RestoreError(f"{options.labels}: {missing[0]} is not below {Path(options.labels).parent}"
                                   + (f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""))
            print_table([(labels, group, *decided[name]) for name, (labels, group) in labelled.items()])
        for clean in options.clean:
            decided = _decided(Path(clean), Path(folder) / f"clean-{Path(clean).name}", options)
            bad = {name: rules for name, (rules, _, _) in decided.items() if set(rules) - {"duplicate"}}
            print(f"{clean}: {len(bad)} of {len(decided)} rejected ({100 * len(bad) / max(1, len(decided)):.1f} %)")
            for name, rules in sorted(bad.items()):
                print(f"    {name}: {', '.join(rules)}")
    return 0


def _labels(path):
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return {row["file"]: (row["labels"].split(";"), row.get("group", "")) for row in csv.DictReader(file)}
    except (OSError, KeyError, UnicodeDecodeError) as error:
        raise RestoreError(f"{path}: not a list of labels with columns file and labels ({error})") from None


def _decided(source, output, options):
    """{name: (rules, flags, duplicate group)} after scan, measure, join and decide."""
    from . import build, recipe
    from .store import Store
    made = recipe.load(source, output, [("workers", options.workers)])
    made.thresholds = options.thresholds
    store = Store(made.output)
    for stage in ("scan", "measure", "join", "decide"):
        build.run_stage(stage, store, made)
    names = store.read("scan", ["name"])["name"].to_pylist()
    groups = store.read("join", ["duplicate_group"])["duplicate_group"].to_pylist()
    return {name: (row["rules"], row["flags"], group)
            for name, row, group in zip(names, store.read("decide").to_pylist(), groups)}


def print_table(rows):
    """Per label: images, how many are rejected by any rule, how many are found by a rule meant for the label.

    rows: (labels, labelled group, rules, flags, duplicate group). A duplicate is found when it was put into one
    group with another image of its labelled group; one of them is kept.
    """
    print(f"{'label':16} {'images':>6} {'rejected':>10} {'found':>10}")
    together = {}
    for _, labelled, _, _, group in rows:
        if labelled and group:
            together[labelled, group] = together.get((labelled, group), 0) + 1
    for label, meant in MEANT.items():
        chosen = [row for row in rows if label in row[0]]
        if not chosen:
            continue
        rejected = sum(bool(rules) for _, _, rules, _, _ in chosen)
        if label in ("duplicate", "near_duplicate"):
            found = sum(together.get((labelled, group), 0) > 1 for _, labelled, _, _, group in chosen)
        else:
            found = sum(bool(meant & {*rules, *flags}) for _, _, rules, flags, _ in chosen)
        note = "  (needs 16 marked images of one source)" if label == "watermark" else ""
        print(f"{label:16} {len(chosen):6} {_share(rejected, chosen)} {_share(found, chosen)}{note}")
    clean = [rules for labels, _, rules, _, _ in rows if "clean" in labels]
    if clean:
        wrong = [rules for rules in clean if set(rules) - {"duplicate"}]
        print(f"{'clean':16} {len(clean):6} {_share(len(wrong), clean)}   (must stay; a worse copy is not counted)")


def _share(count, of):
    return f"{count:4} {100 * count / len(of):4.0f}%"
