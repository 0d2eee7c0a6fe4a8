"""Draw what each depth of a checkpoint gives and costs: quality, MACs, milliseconds and memory, as a table and a PNG.

Quality is the checkpoint's own validation (mean PSNR), or with --data the mean PSNR in RGB on your pairs: a folder with
two folders `input` and `target` that hold images of the same names. Depths beside the named ones come with --depth;
their quality is known with --data alone.
"""

import json
import sys
from pathlib import Path

from ..errors import RestoreError
from .info import parse_size


def add_arguments(parser):
    parser.add_argument("model", metavar="MODEL", help="bundled name, checkpoint folder or .safetensors")
    parser.add_argument("--data", metavar="PAIRS", type=Path, help="a folder with input/ and target/")
    parser.add_argument("-d", "--depth", action="append", default=[], metavar="D", help="a depth beside the named ones")
    parser.add_argument("--size", default="256x256", metavar="HxW", help="that costs are for (default: %(default)s)")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16", "fp16"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("-o", "--output", metavar="OUT.png", type=Path, default=Path("depths.png"),
                        help="the curve (default: %(default)s); the table is printed in any case")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args):
    height, width = parse_size(args.size)
    if args.output.suffix != ".png":
        raise RestoreError(f"-o {args.output}: the curve is a PNG, give a name that ends in .png")
    from ..files import paired_files
    pairs = paired_files(args.data) if args.data else []
    from ..checkpoint import load
    from ..depth import format_depth
    from ..memory import keep_freed_memory
    from ..restorer import Restorer
    keep_freed_memory()
    model = load(args.model)
    restorer = Restorer(model, None, args.device, args.precision)
    rows = []
    for label in [*sorted(model.depths, key=lambda name: sum(model.depths[name])), *args.depth] or [None]:
        at = restorer.at(label)
        rows.append({"depth": label or "fixed", "repeats": format_depth(at.depth) or None, **_cost(at, height, width),
                     "psnr": _on_pairs(at, pairs) if pairs else _validated(model, label)})
    source = f"{len(pairs)} pairs of {args.data}" if pairs else "the checkpoint's validation"
    facts = {"model": args.model, "size": [height, width], "device": str(restorer.device), "precision": args.precision,
             "quality": f"mean PSNR in RGB, {source}", "rows": rows}
    print(json.dumps(facts, indent=1) if args.json else _text(facts))
    if any(row["psnr"] is not None for row in rows):
        draw(facts, args.output)
        print(f"{args.output}: the curve", file=sys.stderr)
    else:
        print("no curve: no depth has a validated quality; give pairs with --data", file=sys.stderr)


def _cost(restorer, height, width):
    from ..budget import cost
    return {kind: cost(restorer, kind, height, width) for kind in ("macs", "seconds", "bytes")}


def _validated(model, label):
    from ..budget import quality
    mean = quality(model, label)[0] if label in model.depths else None
    return mean if mean is not None and mean > 0 else None


def _on_pairs(restorer, pairs):
    from tqdm import tqdm

    from ..image import read_image
    from ..metrics import psnr
    scores = []
    for source, target in tqdm(pairs, desc="pairs", disable=None, leave=False):
        given, wanted = read_image(source).pixels, read_image(target).pixels
        if given.shape != wanted.shape:
            raise RestoreError(f"{source} and {target} differ in size")
        scores.append(float(psnr(restorer.restore(given), wanted)))
    return sum(scores) / len(scores)


def _text(facts):
    from ..text import table
    height, width = facts["size"]
    rows = [(row["depth"], row["repeats"] or "", "" if row["psnr"] is None else f"{row['psnr']:.2f}", f"{row['macs'] / 1e9:.2f}",
             f"{row['seconds'] * 1e3:.0f}", f"{row['bytes'] / 1e6:.0f}") for row in facts["rows"]]
    return "\n".join([f"{facts['model']}: {height}x{width}, {facts['device']}, {facts['precision']}; PSNR: {facts['quality']}",
                      *table(("depth", "repeats", "PSNR dB", "GMACs", "ms", "MB"), rows)])


def draw(facts, path):
    """The quality of each depth over its MACs, its milliseconds and its memory, as a PNG."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot

    from ..files import atomic_path
    rows = [row for row in facts["rows"] if row["psnr"] is not None]
    height, width = facts["size"]
    figure, axes = pyplot.subplots(1, 3, figsize=(12, 3.6), sharey=True, layout="constrained")
    for axis, (key, scale, label) in zip(axes, (("macs", 1e9, "GMACs"), ("seconds", 1e-3, "milliseconds"), ("bytes", 1e6, "MB"))):
        ordered = sorted(rows, key=lambda row: row[key])
        axis.plot([row[key] / scale for row in ordered], [row["psnr"] for row in ordered], "o-")
        for row in ordered:
            axis.annotate(row["depth"], (row[key] / scale, row["psnr"]), textcoords="offset points", xytext=(6, -10), fontsize=9)
        axis.set_xlabel(f"{label} for {width} x {height}")
        axis.margins(y=0.15)
        axis.set_xlim(0, 1.25 * ordered[-1][key] / scale)            # room for the last label
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("mean PSNR (dB)")
    figure.suptitle(f"{Path(facts['model']).name} on {facts['device']}, {facts['precision']}", fontsize=11)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)
    pyplot.close(figure)
