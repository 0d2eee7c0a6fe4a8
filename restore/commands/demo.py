"""Restore sample photos at a small and a large depth, and show what it costs.

Photos that come with scikit-image (no download) are made noisy, rainy and hazy with a fixed seed, restored with the
bundled weights, and compared with the originals. DIR gets demo.png (contact sheet), demo.html (the same with
sliders; one file, works offline) and demo.json (the numbers).
"""

import json
from pathlib import Path

from ..errors import RestoreError

SIZE = (288, 384)                       # height and width that the photos are reduced and cropped to
SEED = 0
_MEMORY_NOTE = ("Time and memory are of one photo in a process of its own. At its start that has taken the memory of "
                "Python, its libraries and the weights.")


def add_arguments(parser):
    parser.add_argument("-o", "--output", metavar="DIR", type=Path, default=Path("demo"), help="default: demo")
    parser.add_argument("--model", metavar="M", help="bundled name, checkpoint folder or file (default: the bundled)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps ... (default: auto)")


def run(args):
    if args.output.exists() and not args.output.is_dir():
        raise RestoreError(f"{args.output}: is a file; -o takes a folder")
    from tqdm import tqdm

    from ..checkpoint import DEFAULT_MODEL, load
    from ..files import write_bytes
    from ..image import Image, from_array, write_image
    from ..memory import keep_freed_memory
    from ..restorer import Restorer

    keep_freed_memory()
    name = args.model or DEFAULT_MODEL
    model = load(name)
    depths = _two_depths(model)             # name -> MACs
    restorers = {depth: Restorer(model, depth=depth, device=args.device) for depth in depths}
    cases = list(_cases())
    with tqdm(total=len(cases) + len(depths), unit="step", disable=None, leave=False) as bar:
        results = []
        for case in cases:
            results.append(_restore(case, restorers))
            bar.update()
        costs = {}
        for depth in depths:
            costs[depth] = _cost(name, model, depth, depths[depth], args.device)
            bar.update()
    report = _report(name, model, results, costs)
    print(_text(report))
    write_bytes(args.output / "demo.json", json.dumps(report, indent=1) + "\n")
    write_image(args.output / "demo.png", Image(pixels=from_array(_sheet(results, depths))))
    write_bytes(args.output / "demo.html", _page(report, results, depths))
    print(f"\n{args.output / 'demo.png'}\n{args.output / 'demo.html'}")


def _two_depths(model):
    """The cheapest and the dearest of a network's named depths, with their MACs for one photo."""
    from ..depth import count_macs
    if len(model.depths) < 2:
        raise RestoreError(f"--model: {model.name} has {len(model.depths)} named depths and the demo compares two")
    macs = {depth: count_macs(model, *SIZE, depth) for depth in model.depths}
    return {depth: macs[depth] for depth in (min(macs, key=macs.get), max(macs, key=macs.get))}


def _cases():
    """``{photo, task, clean, input}`` for every photo and degradation; tensors rounded to 8 bits as files are."""
    import torch

    from .. import samples
    from ..degradations import haze, noise, rain
    from ..image import from_array
    from ..sheet import cover

    for number, name in enumerate(samples.PHOTOS):
        clean = from_array(cover(samples.photo(name), SIZE))
        depth = samples.depth(name)
        if depth is None:
            depth = haze.pseudo_depth(clean, torch.Generator().manual_seed(SEED + number)) * 0.8 + 0.2
        else:
            depth = torch.from_numpy(cover(depth / depth.max(), SIZE))
        streaks = (rain.Streaks(angle=8 - 12 * number, length=(15, 70), brightness=(0.05, 0.6), density=0.2),
                   rain.Streaks(angle=11 - 12 * number, length=(8, 30), brightness=(0.05, 0.3), density=0.15))
        inputs = {
            "noise": noise.gaussian(clean, torch.Generator().manual_seed(SEED + number), sigma=25),
            "rain": rain.rain(clean, torch.Generator().manual_seed(SEED + number), layers=streaks),
            "haze": haze.haze(clean, depth=depth, beta=1.1, airlight=(0.92, 0.94, 0.96)),
        }
        for task, image in inputs.items():
            yield {"photo": name, "task": task, "clean": clean, "input": image.mul(255).round().div(255)}


def _restore(case, restorers):
    """The case with ``outputs`` by depth, and ``scores``: (PSNR, SSIM) of the input and of each output."""
    from ..metrics import psnr, ssim
    outputs = {depth: restorer.restore(case["input"]).cpu() for depth, restorer in restorers.items()}
    images = {"input": case["input"], **outputs}
    scores = {key: (psnr(image, case["clean"]), ssim(image, case["clean"])) for key, image in images.items()}
    return {**case, "outputs": outputs, "scores": scores}


def _cost(name, model, depth, macs, device):
    from ..cost import measure_cost
    from ..depth import format_depth
    cost = measure_cost(name, depth, *SIZE, device=device)
    return {"repeats": format_depth(model.repeats(depth)), "gmacs": macs / 1e9,
            "ms": 1e3 * cost.seconds, "peak_mb": cost.peak and cost.peak / 1e6,
            "start_mb": cost.start and cost.start / 1e6, "gpu_mb": cost.device_peak and cost.device_peak / 1e6}


def _report(name, model, results, costs):
    from ..depth import count_parameters
    scores = [{"photo": r["photo"], "task": r["task"],
               **{key: {"psnr": psnr, "ssim": ssim} for key, (psnr, ssim) in r["scores"].items()}} for r in results]
    return {"model": name, "network": model.name, "parameters": count_parameters(model), "size": SIZE, "seed": SEED,
            "costs": costs, "scores": scores}


def _lines(report):
    """Rows of the score table: (task, photo, {input or depth: (psnr, ssim)}), and the mean of every task."""
    keys = ["input", *report["costs"]]
    rows = []
    for task in dict.fromkeys(score["task"] for score in report["scores"]):
        of_task = [score for score in report["scores"] if score["task"] == task]
        rows += [(task, score["photo"], {k: (score[k]["psnr"], score[k]["ssim"]) for k in keys}) for score in of_task]
        rows.append((task, "mean", {k: tuple(sum(score[k][m] for score in of_task) / len(of_task)
                                             for m in ("psnr", "ssim")) for k in keys}))
    return rows


def _protocol(report):
    height, width = report["size"]
    return (f"{report['model']} ({report['network']}, {report['parameters'] / 1e6:.2f} M parameters). Photos reduced "
            f"and cropped to {width}x{height}, seed {report['seed']}; PSNR in dB and SSIM (7x7) in RGB against the "
            "original, output not rounded.")


def _text(report):
    depths = list(report["costs"])
    lines = [_protocol(report), "", f"{'':6} {'':11} {'input':>15}" + "".join(f" {d:>15}" for d in depths)]
    for task, photo, scores in _lines(report):
        cells = "".join(f" {psnr:7.2f}  {ssim:6.4f}" for psnr, ssim in scores.values())
        lines.append(f"{task:6} {photo:11}{cells}")
    table = [_cost_row(depth, cost) for depth, cost in report["costs"].items()]
    shown = [i for i in range(len(_COST_COLUMNS)) if any(row[i] is not None for row in table)]
    lines += ["", "  ".join(f"{_COST_COLUMNS[i][0]:>{_COST_COLUMNS[i][1]}}" for i in shown)]
    for row in table:
        lines.append("  ".join(_cell(row[i], *_COST_COLUMNS[i][1:]) for i in shown))
    lines.append(_MEMORY_NOTE)
    return "\n".join(lines)


# the cost table: heading, width in text, format of a number
_COST_COLUMNS = (("depth", 8, ""), ("repeats", 10, ""), ("GMACs", 7, ".2f"), ("ms", 6, ".0f"),
                 ("peak memory, MB", 15, ".0f"), ("of it at start, MB", 18, ".0f"), ("GPU memory, MB", 14, ".0f"))


def _cost_row(depth, cost):
    return [depth, cost["repeats"], cost["gmacs"], cost["ms"], cost["peak_mb"], cost["start_mb"], cost["gpu_mb"]]


def _cell(value, width, form):
    return f"{'?' if value is None else format(value, form):>{width}}"


def _caption(scores):
    return f"{scores[0]:.2f} dB  {scores[1]:.3f}"


def _sheet(results, depths):
    """Rows of clean, input, small and large; two photos beside each other."""
    from ..image import to_array
    from ..sheet import contact_sheet
    rows = []
    for result in results:
        row = [(to_array(result["clean"]), result["photo"])]
        row.append((to_array(result["input"]), f"{result['task']}: {_caption(result['scores']['input'])}"))
        row += [(to_array(result["outputs"][d]), f"{d}: {_caption(result['scores'][d])}") for d in depths]
        rows.append(row)
    half = (len(rows) + 1) // 2
    rows = [left + (rows[half + i] if half + i < len(rows) else []) for i, left in enumerate(rows[:half])]
    return contact_sheet(rows, "restore demo", SIZE)


def _page(report, results, depths):
    from .. import page
    from ..image import to_array
    rows = [_cost_row(depth, cost) for depth, cost in report["costs"].items()]
    shown = [i for i in range(len(_COST_COLUMNS)) if any(row[i] is not None for row in rows)]
    columns = [_COST_COLUMNS[i][0] for i in shown]
    forms = {i: _COST_COLUMNS[i][2] for i in shown}
    costs = [[page.number(row[i], form) if form else row[i] for i, form in forms.items()] for row in rows]
    scores = [[task, photo, *(page.number(value, form) for pair in scores.values()
                              for value, form in zip(pair, (".2f", ".4f")))]
              for task, photo, scores in _lines(report)]
    heads = [f"{key} {metric}" for key in ("input", *depths) for metric in ("PSNR", "SSIM")]
    body = [page.paragraph(_protocol(report)),
            page.heading("What a depth costs"), page.table(columns, costs), page.paragraph(_MEMORY_NOTE, "note"),
            page.heading("What it restores"), page.table(["task", "photo", *heads], scores)]
    for task in dict.fromkeys(result["task"] for result in results):
        body.append(page.heading(task.capitalize()))
        figures = []
        for result in (r for r in results if r["task"] == task):
            before = to_array(result["input"])
            for depth in depths:
                slider = page.slider(before, to_array(result["outputs"][depth]), (task, depth), quality=92)
                (low, unlike), (high, alike) = result["scores"]["input"], result["scores"][depth]
                figures.append(page.figure(slider, f"{result['photo']}, {depth}: {low:.2f} to {high:.2f} dB, SSIM {unlike:.3f} to "
                                                   f"{alike:.3f}"))
        body.append(page.grid(figures))
    return page.document("restore demo", body)
