"""How fast a network runs here, at every depth, beside what this machine's matrix products and memory can do.

GFLOP/s counts two operations for each multiply-accumulate of `restore info`. "of matrix rate" compares with a product
of large matrices in the same precision, "of copy rate" the bytes that the network's modules read and write with a plain
copy, both measured in the same run. --plain times the untouched forward of the same network in float32 beside it (always on
CUDA, where the defaults are bf16 at 1280x720 and 4K), and --against any other implementation, in turn on the same input: FILE.py:NAME, a function of a batch (1, 3, h, w) in [0, 1]
and, if it takes a second argument, the depth. Memory is the peak of the whole process.
"""

import json
import sys

from ..errors import RestoreError
from .info import parse_size


def add_arguments(parser):
    parser.add_argument("-m", "--model", default="dynet", metavar="M",
                        help="checkpoint, bundled name or the name of a network (default: %(default)s)")
    parser.add_argument("-d", "--depth", action="append", metavar="D", help="a depth to measure (default: every named one)")
    parser.add_argument("--size", action="append", metavar="HxW",
                        help="image size; may be given several times (default: 256x256; on CUDA 720x1280 and 2160x3840)")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), help="default: fp32; on CUDA bf16")
    parser.add_argument("--compile", action="store_true", help="on CUDA: fuse kernels with torch.compile")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda ... (default: %(default)s)")
    parser.add_argument("--threads", type=int, metavar="N", help="of the processor (default: what PyTorch takes)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="how often each is timed (default: %(default)s)")
    parser.add_argument("--runtime", action="append", default=[], metavar="R", choices=("onnxruntime", "openvino"),
                        help="time onnxruntime or openvino beside it; may be given twice")
    parser.add_argument("--plain", action="store_true", help="time the plain float32 forward beside it")
    parser.add_argument("--against", metavar="FILE.py:NAME", help="another implementation to time beside it")
    parser.add_argument("--release-memory", action="store_true",
                        help="let glibc give freed memory back, as it does by itself: slower, for all that is timed")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args):
    sizes = [parse_size(size) for size in args.size or ()]
    for option, value in (("--threads", args.threads), ("--rounds", args.rounds)):
        if value is not None and value < 1:
            raise RestoreError(f"{option} {value}: give a number from 1")
    from ..memory import keep_freed_memory
    kept = not args.release_memory and keep_freed_memory()
    import torch

    from .. import speed
    from ..restorer import Restorer, choose_device
    from .info import open_model
    if args.threads:
        torch.set_num_threads(args.threads)
    other = speed.load_callable(args.against) if args.against else None
    model = open_model(args.model)
    clock = speed.Clock(choose_device(args.device))
    cuda = clock.device.type == "cuda"
    args.precision, args.plain = args.precision or ("bf16" if cuda else "fp32"), args.plain or cuda
    labels = args.depth or sorted(model.depths, key=lambda name: sum(model.depths[name])) or [None]
    restorer = Restorer(model, labels[0], clock.device, args.precision, "unlimited", compiled=args.compile)

    rows = []
    for height, width in sizes or ([(720, 1280), (2160, 3840)] if cuda else [(256, 256)]):
        image = torch.rand(3, height, width, generator=torch.Generator().manual_seed(0)).to(clock.device)
        for label in labels:
            rows += _measure(label, restorer.at(label), other, image, clock, args, speed)
    facts = {"model": args.model, "device": _device_name(clock.device), "threads": torch.get_num_threads(),
             "precision": args.precision, "clock": clock.what, "freed_memory_kept": kept, "rows": rows}
    print(json.dumps(facts, indent=1) if args.json else _text(facts))


def _measure(label, restorer, other, image, clock, args, speed):
    """The rows of one depth: ours, and what it is compared with."""
    import torch

    from ..depth import count_macs, format_depth
    batch = image[None]
    sides = {"restore": lambda: restorer.restore(image)}
    if args.plain:
        sides["plain"] = lambda: restorer.model(batch, restorer.depth)
    for name in args.runtime:
        elsewhere = restorer.on(name)
        sides[name] = lambda elsewhere=elsewhere: elsewhere.restore(image)
    if other:
        sides["against"] = lambda: other(batch, restorer.depth)
    rates = (lambda: speed.matrix_rate(clock, args.precision), lambda: speed.matrix_rate(clock),
             lambda: speed.copy_rate(clock))
    height, width = image.shape[1:]
    print(f"measuring {label or 'the fixed depth'} on {height}x{width} ...", file=sys.stderr)
    with torch.no_grad():
        timings, (matrix, matrix32, copy) = speed.race(sides, clock, args.rounds, rates)
    macs = count_macs(restorer.model, height, width, restorer.depth)
    moved = speed.traffic(getattr(restorer.network, "plain", restorer.network), batch, restorer.depth)
    rows = []
    for name, timing in timings.items():
        rate = 2 * macs / timing.seconds
        rows.append({"size": [height, width], "depth": label, "repeats": format_depth(restorer.depth) or None, "side": name,
                     "macs": macs, "seconds": timing.seconds, "megapixels": height * width / 1e6 / timing.seconds, "flops": rate, "matrix_rate": matrix, "matrix_rate_fp32": matrix32,
                     "of_matrix_rate": rate / (matrix32 if name in ("plain", "against") else matrix), "copy_rate": copy,
                     "of_copy_rate": moved / timing.seconds / copy if name == "restore" else None, "peak": timing.peak,
                     "speedup": timing.seconds / timings["restore"].seconds})
    return rows


def _device_name(device):
    import torch
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _text(facts):
    from ..text import table
    first = facts["rows"][0]
    sides = " and ".join(dict.fromkeys(row["side"] for row in facts["rows"]))
    kept = f"freed memory kept for reuse: {'yes' if facts['freed_memory_kept'] else 'no'} (for {sides})"
    machine = f"{facts['device']}, {facts['threads']} thread{'s' * (facts['threads'] > 1)}, {facts['clock']}"
    rates = f"matrix product {first['matrix_rate'] / 1e9:.0f} GFLOP/s, copy {first['copy_rate'] / 1e9:.1f} GB/s"
    if facts["precision"] != "fp32":
        rates += f"; matrix product in fp32 {first['matrix_rate_fp32'] / 1e9:.0f} GFLOP/s"
    lines = [f"{facts['model']}, {facts['precision']}, {machine}; {kept}", rates]
    rows = [("x".join(map(str, row["size"])), row["depth"] or "fixed", row["repeats"] or "", row["side"], f"{row['macs'] / 1e9:.1f}", f"{row['seconds'] * 1e3:.0f}",
             f"{row['megapixels']:.3g}", f"{row['flops'] / 1e9:.0f}", f"{row['of_matrix_rate']:.0%}",
             "" if row["of_copy_rate"] is None else f"{row['of_copy_rate']:.0%}",
             "" if row["peak"] is None else f"{row['peak'] / 1e6:.0f}", f"{row['speedup']:.2f}") for row in facts["rows"]]
    head = ("size", "depth", "repeats", "side", "GMACs", "ms", "MP/s", "GFLOP/s", "of matrix rate", "of copy rate", "peak MB", "times restore")
    return "\n".join([*lines, *table(head, rows)])
