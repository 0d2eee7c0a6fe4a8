"""The report of a study: rows as CSV and Parquet, means, paired differences with intervals, curves, and all that in Markdown.

A difference is paired: the same image, the same seed, hence the same first weights and the same samples. Means give every
set of images the same weight. Two 95 % intervals stand beside each other, since they answer two questions: the bootstrap
over images and seeds, and Student's t over the seeds' means alone, which is wide with three of them and is the one to
trust where they disagree.
"""

import json

import numpy as np

from restore import branches as branching
from restore.benchmark.statistics import interval, resample
from restore.benchmark.tables import table
from restore.files import atomic_path, write_bytes

MARKERS = "os^Dvp*XPh<>"


def write_report(study, out, rows, images):
    """Write ``results.csv``, ``results.parquet``, ``summary.json``, ``summary.md`` and ``curves-GROUP.png`` into ``out``;
    ``rows`` is a DataFrame of the columns of :data:`pretrain.study_scores.COLUMNS`.
    """
    write_bytes(out / "results.csv", rows.to_csv(index=False))
    with atomic_path(out / "results.parquet") as path:
        rows.to_parquet(path, index=False)
    summary = summarise(study, rows)
    write_bytes(out / "summary.json", json.dumps(summary, indent=1) + "\n")
    groups = list(dict.fromkeys(study.arms[name].group for name in summary["arms"]))
    for group in groups:
        draw(study, summary, group, out / f"curves-{group}.png")
    write_bytes(out / "summary.md", markdown(study, summary, groups, _inputs(images)))


def summarise(study, rows):
    """``{"depths", "arms", "specialists"}`` as JSON-able numbers.

    ``arms``: {name: {depth: {"psnr", "sets", "seeds", "trained", and unless it is the base itself: "difference", "low",
    "high", "each", "t"}}}; ``each`` is the difference of each seed and ``t`` the half-width of its interval, None for one
    seed. ``specialists``: {name: {depth: {arm: {"difference", "low", "high", "each", "t"}}}}, the arms that train this
    depth alone against the others.
    """
    table_of = {name: part.set_index(["seed", "depth", "set", "image"])["psnr"] for name, part in rows.groupby("arm", sort=False)}
    depths = {depth: {"gmacs": float(part["gmacs"].min()), "repeats": part["repeats"].iloc[0]}
              for depth, part in rows.groupby("depth")}
    order = sorted(depths, key=lambda depth: depths[depth]["gmacs"])
    arms, specialists = {}, {}
    for name in [name for name in study.arms if name in table_of]:
        mine = rows[rows["arm"] == name]
        against = study.arms[name].against or study.base
        arms[name] = {}
        for depth in order:
            part = mine[mine["depth"] == depth]
            cell = {"psnr": _mean(part["psnr"], part["set"]), "trained": bool(part["trained"].iloc[0]),
                    "gmacs": float(part["gmacs"].iloc[0]), "seeds": int(part["seed"].nunique()),
                    "sets": {key: round(float(v), 4) for key, v in part.groupby("set", sort=False)["psnr"].mean().items()}}
            if name != against and against in table_of:
                cell |= {"against": against, **(paired(table_of[name], table_of[against], depth) or {})}
            arms[name][depth] = cell
    for single, depth in _specialists(study, depths).items():
        for name in [name for name in arms if single in table_of and study.arms[name].group == "main"]:
            if name != single and name not in _specialists(study, depths):
                compared = paired(table_of[name], table_of[single], depth)
                specialists.setdefault(single, {}).setdefault(depth, {})[name] = compared
    return {"title": study.title, "cost": study.cost, "depths": {depth: depths[depth] for depth in order}, "arms": arms,
            "specialists": specialists}


def paired(first, second, depth):
    """``first - second`` at ``depth``: mean, intervals and each seed's; None where they have no seed in common.

    ``first`` and ``second`` are series of PSNR over (seed, depth, set, image).
    """
    difference = (first - second).dropna()
    if depth not in difference.index.get_level_values("depth"):
        return None
    difference = difference.xs(depth, level="depth")
    cube = {key: part.unstack("seed") for key, part in difference.groupby(level="set")}        # set -> (image, seed)
    seeds = next(iter(cube.values())).columns
    each = np.array([np.mean([part[seed].mean() for part in cube.values()]) for seed in seeds])
    draws = np.random.default_rng(0).integers(0, len(seeds), (10_000, len(seeds)))
    means = []
    for key, part in cube.items():                  # images alike for all noise levels of a set; seeds alike for all sets
        by_seed = np.stack([resample(part[seed], key.partition("-")[0]) for seed in seeds], axis=1)
        means.append(np.take_along_axis(by_seed, draws, axis=1).mean(1))
    low, high = interval(np.mean(means, axis=0))
    return {"difference": round(float(each.mean()), 4), "low": round(low, 4), "high": round(high, 4),
            "each": [round(float(v), 4) for v in each], "t": _t_interval(each)}


def _t_interval(values):
    from scipy import stats
    if len(values) < 2:
        return None
    return round(float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5), 4)


def _mean(values, sets):
    return round(float(values.groupby(sets).mean().mean()), 4)


def _specialists(study, depths):
    """{arm: the depth that it alone trains}, of those depths that are scored."""
    found = {}
    for name, arm in study.arms.items():
        kind, _, depth = str(arm.keys.get("branches.strategy", "")).partition(":")
        if kind == "largest_only":
            depth = max(study.recipe.model.depths, key=lambda name: sum(study.recipe.model.depths[name]))
        if kind in ("single", "largest_only") and depth in depths:
            found[name] = depth
    return found


def markdown(study, summary, groups, inputs):
    """The section that a write-up includes: what was run, then for each group its table, differences and figure."""
    recipe, depths = study.recipe, summary["depths"]
    trained = branching.depth_costs(_network(study), list(recipe.model.depths))
    strength = ", ".join(f"{key} {value:.2f}" for key, value in inputs.items())
    parts = [f"## {study.title}" if study.title else "## Results",
             f"{study.cost / 1e12:g} TMACs of training a run (forward and backward), crops of {recipe.data.crop} pixels, batches of "
             f"{recipe.batch_size}; trained depths {', '.join(sorted(trained, key=trained.get))}. PSNR in dB, RGB, on "
             f"{study.scores.images or 'all'} images of each set ({study.scores.side or 'whole'} pixels a side); the inputs "
             f"themselves: {strength}. The mean gives each set the same weight."]
    for group in groups:
        names = [name for name in summary["arms"] if study.arms[name].group == group]
        parts += [f"### {group.capitalize()}: mean PSNR at every depth", _means(summary, names, depths),
                  f"![PSNR over GMACs](curves-{group}.png)", f"### {group.capitalize()}: differences", DIFFERENCE,
                  _differences(summary, names, depths)]
    if summary["specialists"]:
        parts += ["### Against the specialists", "Elastic network minus the network that was trained for this depth alone.",
                  _against_specialists(summary)]
    parts += ["### By set", _by_set(summary, depths)]
    return "\n\n".join(parts) + "\n"


DIFFERENCE = ("Mean of the paired differences, [95 % bootstrap interval over images and seeds], \u00b1 half-width of Student's 95 % "
              "interval over the seeds where there are several.")


def _means(summary, names, depths):
    head = ["arm", "seeds", *(f"{depth} ({depths[depth]['gmacs']:.2f} G)" for depth in depths)]
    rows = []
    for name in names:
        cells = summary["arms"][name]
        rows.append([name, next(iter(cells.values()))["seeds"],
                     *(f"{cells[d]['psnr']:.2f}" if cells[d]["trained"] else f"*{cells[d]['psnr']:.2f}*" for d in depths)])
    return table(head, rows) + "\n\nIn italics: depths that this arm never trained. GMACs of a 256x256 image."


def _differences(summary, names, depths):
    compared = [name for name in names if any("difference" in cell for cell in summary["arms"][name].values())]
    return table(["arm", "minus", *depths], [
        [name, next(iter(summary["arms"][name].values()))["against"], *(_difference(summary["arms"][name][d]) for d in depths)]
        for name in compared])


def _difference(cell):
    if not cell or "difference" not in cell:
        return "-"
    return f"{cell['difference']:+.2f} [{cell['low']:+.2f}, {cell['high']:+.2f}]" + ("" if cell["t"] is None else f" \u00b1 {cell['t']:.2f}")


def _against_specialists(summary):
    names = list(dict.fromkeys(name for depths in summary["specialists"].values() for cells in depths.values() for name in cells))
    return table(["specialist", "depth", *names], [[single, depth, *(_difference(cells.get(name)) for name in names)]
                                                   for single, by_depth in summary["specialists"].items()
                                                   for depth, cells in by_depth.items()])


def _by_set(summary, depths):
    """Every arm on every set, at the cheapest and at the dearest depth."""
    ends = list(dict.fromkeys([next(iter(depths)), list(depths)[-1]]))
    sets = list(next(iter(next(iter(summary["arms"].values())).values()))["sets"])
    return table(["arm", "depth", *sets], [[name, depth, *(f"{cells[depth]['sets'][key]:.2f}" for key in sets)]
                                          for name, cells in summary["arms"].items() for depth in ends])


def draw(study, summary, group, path):
    """Quality over MACs of the group's arms, and beside it their difference from the arm that they are compared with."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9.6, 3.9), layout="constrained")
    names = [name for name in summary["arms"] if study.arms[name].group == group]
    single = _specialists(study, summary["depths"])
    colours = pyplot.get_cmap("tab20" if len(names) > 10 else "tab10")
    for place, name in enumerate(names):
        cells = summary["arms"][name]
        shown = {depth: cell for depth, cell in cells.items() if name not in single or depth == single[name]}
        style = {"color": colours(place), "marker": MARKERS[place % len(MARKERS)], "markersize": 5, "label": name}
        _curve(left, [(c["gmacs"], c["psnr"], c["trained"]) for c in shown.values()], style)
        compared = [(c["gmacs"], c["difference"], c["trained"], c["low"], c["high"]) for c in shown.values() if "difference" in c]
        _curve(right, [point[:3] for point in compared], style)
        for x, _, _, low, high in compared:
            right.plot([x, x], [low, high], color=style["color"], linewidth=1, alpha=0.5)
    right.axhline(0, color="black", linewidth=0.8)
    for axis, text in ((left, "mean PSNR (dB)"), (right, "paired difference (dB), 95 % bootstrap")):
        axis.set_xlabel("GMACs for 256 x 256")
        axis.set_ylabel(text)
        axis.grid(alpha=0.3)
    # a depth that collapses would flatten everything else
    everything = [c["psnr"] for name in names for c in summary["arms"][name].values() if c["trained"]]
    left.set_ylim(min(everything) - 1, max(everything) + 0.3)
    near = [v for name in names for c in summary["arms"][name].values() if c["trained"] and "difference" in c for v in (c["low"], c["high"])]
    if near:
        right.set_ylim(min(near) - 0.1, max(near) + 0.1)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=100)
    pyplot.close(figure)


def _curve(axis, points, style):
    """A line through (GMACs, value, trained), hollow where the depth was not trained."""
    points = sorted(points)
    axis.plot([p[0] for p in points], [p[1] for p in points], linewidth=1.2, **style)
    loose = [p for p in points if not p[2]]
    axis.plot([p[0] for p in loose], [p[1] for p in loose], linestyle="", marker=style["marker"], markersize=5,
              markerfacecolor="white", color=style["color"])


def _inputs(images):
    """{set: mean PSNR of the degraded images themselves}."""
    from restore.metrics import psnr
    scores = {}
    for image in images:
        scores.setdefault(image.set, []).append(float(psnr(image.degraded / 255.0, image.clean / 255.0, 100.0)))
    return {key: float(np.mean(values)) for key, values in scores.items()}


def _network(study):
    from .run import build_model
    return build_model(study.recipe)
