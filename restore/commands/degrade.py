"""Degrade images: noise, JPEG, masking, rain, haze.

With images (files, folders, globs) the results go to the folder OUT, or to the file OUT if there is one image and
one kind. The result for a photo depends on its name and --seed alone. Without images, or with --sheet, one contact
sheet shows every kind and its variants, at fixed strengths, side by side.

  restore degrade                                     contact sheet of sample photos: degradations.png
  restore degrade photo.jpg --kind rain -o rainy.png
  restore degrade photos/ --kind noise haze -o out/   out/NAME.noise.png, out/NAME.haze.png
  restore degrade photo.png --kind haze --depth-map depth.png
"""

import sys
import zlib
from functools import partial
from pathlib import Path

from ..errors import RestoreError
from ..files import IMAGE_SUFFIXES, expand

KINDS = ("noise", "jpeg", "mask", "rain", "haze")
_TILE = (225, 300)                       # height and width of a photo on the contact sheet
_MOST = 8                                # photos on a sheet


def add_arguments(parser):
    parser.add_argument("images", nargs="*", metavar="IN", help="files, folders or globs (default: sample photos)")
    parser.add_argument("-o", "--output", metavar="OUT", type=Path,
                        help="folder or file (default: degraded, or degradations.png for a sheet)")
    parser.add_argument("--kind", nargs="+", choices=(*KINDS, "all"), default=["all"], help="default: all")
    parser.add_argument("--seed", type=int, default=0, help="another seed, another rain (default: 0)")
    parser.add_argument("--sheet", action="store_true", help="one contact sheet instead of a file for each image")
    strength = parser.add_argument_group("strength (what is not given is drawn, or as in brackets)")
    strength.add_argument("--sigma", type=float, default=25, help="of Gaussian noise, on the 0..255 scale [25]")
    strength.add_argument("--truncate", action="store_true", help="noise truncated to 8 bits as in the benchmarks")
    strength.add_argument("--quality", type=int, default=20, help="of JPEG, 1..100 [20]")
    strength.add_argument("--patch", type=int, default=16, help="side of the masked squares in pixels [16]")
    strength.add_argument("--ratio", type=float, default=0.5, help="share that is masked, 0..1 [0.5]")
    strength.add_argument("--rain", choices=("light", "heavy", "natural"), help="which rain")
    strength.add_argument("--haze", choices=("indoor", "outdoor"), help="which haze")
    strength.add_argument("--beta", type=float, help="optical thickness of the haze at the farthest point")
    strength.add_argument("--airlight", type=float, help="grey value of the haze, 0..1")
    strength.add_argument("--depth-map", metavar="FILE", type=Path,
                          help="depth of the one image, as a grey image of its size: black is here, white is farthest")
    strength.add_argument("--disparity", action="store_true", help="the map is a disparity: white is nearest")


def run(args):
    check(args)
    kinds = [kind for kind in KINDS if kind in args.kind or "all" in args.kind]
    images = expand(args.images)
    if args.depth_map and len(images) != 1:
        raise RestoreError("--depth-map FILE belongs to one image; give exactly one")
    if args.sheet or not images:
        return _sheet(args, kinds, images)
    return _files(args, kinds, images)


def check(args):
    """Raise :class:`RestoreError` for a strength out of its range."""
    for name, low, high in (("sigma", 0, 1e4), ("quality", 1, 100), ("patch", 1, 1e6), ("ratio", 0, 1),
                            ("beta", 0, 1e3), ("airlight", 0, 1)):
        value = getattr(args, name)
        if value is not None and not low <= value <= high:
            raise RestoreError(f"--{name} {value:g}: must be in {low:g}..{high:g}")
    if args.disparity and not args.depth_map:
        raise RestoreError("--disparity says how to read --depth-map FILE; give that too")


def _files(args, kinds, images):
    from tqdm import tqdm

    from ..image import read_image, write_image
    output = args.output or Path("degraded")
    as_file = output.suffix.lower() in IMAGE_SUFFIXES and not output.is_dir()
    if as_file and len(images) * len(kinds) > 1:
        raise RestoreError(f"-o {output}: is one file, and there are {len(images) * len(kinds)} results; give a folder")
    failed, taken = 0, set()
    for path, relative in tqdm(images, unit="image", disable=None):
        try:
            image = read_image(path)
            depth = _depth_map(args, image.pixels) if args.depth_map else None
            for kind in kinds:
                target = output if as_file else output / relative.with_name(f"{relative.stem}.{kind}.png")
                if target in taken:          # a.jpg and a.png beside each other
                    target = target.with_name(f"{relative.name}.{kind}.png")
                taken.add(target)
                if target.exists() and target.samefile(path):
                    raise RestoreError(f"{path}: would be overwritten by its degraded version; choose another -o")
                write_image(target, degraded(image, kind, args, relative.name, depth))
        except RestoreError as error:
            tqdm.write(f"restore degrade: error: {error}", file=sys.stderr)
            failed += 1
    return int(failed > 0)


def degraded(image, kind, args, name, depth=None):
    """The :class:`restore.image.Image` ``image`` with one of :data:`KINDS`, its strength and seed from the parsed ``args``.

    ``name`` is the photo's file name, on which what is drawn depends; ``depth`` ``(h, w)`` is for haze.
    """
    result = _degraders(args, name, depth)[kind](image.pixels)
    if image.gray:                           # one channel of the result, so that grey noise keeps its strength
        result = result[1:2].expand(3, -1, -1)
    return image.with_pixels(result)


def _degraders(args, name, depth=None):
    """``kind -> function of the pixels``, with the strength from the command line and a generator for ``name``."""
    from ..degradations import haze, masking, noise, rain
    from ..degradations.jpeg import jpeg

    seeded = partial(_generator, args.seed, name)
    rains = [getattr(rain, args.rain.upper())] if args.rain else rain.KINDS
    hazes = [getattr(haze, args.haze.upper())] if args.haze else haze.KINDS
    fixed = {key: value for key, value in (("beta", args.beta), ("airlight", args.airlight)) if value is not None}

    return {
        "noise": lambda x: noise.gaussian(x, seeded(), sigma=args.sigma, truncate=args.truncate),
        "jpeg": lambda x: jpeg(x, quality=args.quality),
        "mask": lambda x: masking.mask(x, seeded(), patch=args.patch, ratio=args.ratio),
        "rain": lambda x: rain.random_rain(x, seeded(), kinds=rains),
        "haze": lambda x: haze.random_haze(x, seeded(), kinds=hazes, depth=depth, **fixed),
    }


def _generator(seed, name):
    """A fresh generator that depends on the seed and the photo's name only, so that a batch may grow or shrink."""
    import torch
    return torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))     # torch looks at 32 bits only


def _depth_map(args, pixels):
    """The depth map file as a tensor (h,w), 1 at the farthest point."""
    import torch.nn.functional as F

    from ..image import read_image
    values = read_image(args.depth_map).pixels.mean(0)
    (height, width), (rows, columns) = pixels.shape[-2:], values.shape
    if abs(rows * width - columns * height) > 0.02 * rows * width:
        raise RestoreError(f"{args.depth_map}: is {columns}x{rows} and the image {width}x{height}; "
                           "a depth map has the image's proportions")
    if (rows, columns) != (height, width):
        values = F.interpolate(values[None, None], (height, width), mode="bilinear")[0, 0]
    if args.disparity:
        values = 1 / values.clamp(min=1 / 255)
    if values.max() <= 0:
        raise RestoreError(f"{args.depth_map}: is black all over; white is the farthest point")
    return values / values.max()


def _variants(args, kinds, name, depth):
    """``(label, function of the pixels)`` for the contact sheet: each kind in the forms that are there."""
    from ..degradations import haze, masking, noise, rain
    from ..degradations.jpeg import jpeg

    seeded = partial(_generator, args.seed, name)
    table = {
        "noise": [("Gaussian noise, sigma 25", lambda x: noise.gaussian(x, seeded(), sigma=25)),
                  ("Gaussian noise, sigma 50, truncated",
                   lambda x: noise.gaussian(x, seeded(), sigma=50, truncate=True)),
                  ("Poisson-Gaussian noise, 50 photons, sigma 5",
                   lambda x: noise.poisson_gaussian(x, seeded(), photons=50, sigma=5)),
                  ("uniform noise, +-60", lambda x: noise.uniform(x, seeded(), amplitude=60))],
        "jpeg": [("JPEG, quality 10, 4:2:0", lambda x: jpeg(x, quality=10)),
                 ("JPEG, quality 10, 4:4:4", lambda x: jpeg(x, quality=10, chroma="4:4:4"))],
        "mask": [("masking, 16 pixels, 50 %", lambda x: masking.mask(x, seeded(), patch=16, ratio=0.5)),
                 ("masking, 4 pixels, 75 %", lambda x: masking.mask(x, seeded(), patch=4, ratio=0.75, fill=0.5))],
        "rain": [(f"rain, {label}", lambda x, kind=kind: rain.random_rain(x, seeded(), kinds=[kind]))
                 for label, kind in (("light", rain.LIGHT), ("heavy", rain.HEAVY), ("natural", rain.NATURAL))],
        "haze": [(f"haze, {label}, pseudo-depth", lambda x, kind=kind: haze.random_haze(x, seeded(), kinds=[kind]))
                 for label, kind in (("indoor", haze.INDOOR), ("outdoor", haze.OUTDOOR))],
    }
    if depth is not None:
        table["haze"] += [("haze, measured depth, t 0.3 at the farthest",
                           lambda x: haze.haze(x, depth=depth, beta=1.2, airlight=0.95))]
    return [pair for kind in kinds for pair in table[kind]]


def _sheet(args, kinds, images):
    """Write the contact sheet: a column for each photo, a row for each variant."""
    import torch

    from .. import samples
    from ..image import Image, check_writable, from_array, read_image, to_array, write_image
    from ..sheet import contact_sheet, fit
    output = args.output or Path("degradations.png")
    if output.is_dir():
        output = output / "degradations.png"
    check_writable(output)
    photos = []
    if len(images) > _MOST:
        print(f"restore degrade: the sheet shows the first {_MOST} of {len(images)} images", file=sys.stderr)
    for path, _ in images[:_MOST]:
        pixels = read_image(path).pixels
        photos.append((path.name, pixels, _depth_map(args, pixels) if args.depth_map else None))
    if not images:
        for name in samples.PHOTOS:
            depth = samples.depth(name)
            depth = None if depth is None else torch.from_numpy(depth / depth.max())
            photos.append((name, from_array(samples.photo(name)), depth))
    columns = []
    for name, pixels, depth in photos:
        # reduced first, so that the sheet shows the degradations pixel by pixel
        pixels = from_array(fit(to_array(pixels), _TILE))
        if depth is not None:
            depth = torch.from_numpy(fit(depth.numpy(), _TILE))
        shown = [(to_array(pixels), name)]
        shown += [(to_array(change(pixels)), label) for label, change in _variants(args, kinds, name, depth)]
        columns.append(shown)
    longest = max(map(len, columns))
    rows = [[column[i] if i < len(column) else None for column in columns] for i in range(longest)]
    sheet = contact_sheet(rows, f"restore degrade --seed {args.seed}", _TILE)
    write_image(output, Image(pixels=from_array(sheet)))
    print(output)
