"""The report: one self-contained page on which a person can see what every limit does, and move it.

Funnel; for every rule its limits, each with a histogram, a slider and pictures beside the limit; duplicates in groups; copies
of test images; sources and licences. The page stays small however many images there are: histograms have a fixed number of
bins, pictures a fixed number, and the counts that follow the sliders come from at most 20,000 rows.
"""

from pathlib import Path

import numpy as np
import pyarrow.compute as pc
from tqdm import tqdm

from restore import page
from restore.files import write_bytes
from restore.page import Html, tag

from . import decide
from .join import references
from .measure import METRICS
from .report_data import gather, live
from .thumbnails import Pictures, shrunk

_HERE = Path(__file__).parent
# metrics that a shrunk picture does not show: their pictures are pieces at full size
_PIXELS = ("sharpness", "noise", "blockiness", "jpeg_quality", "pixel_quality", "bits_per_pixel", "zero_gradient",
           "edge_profile", "text")
_GROUPS, _MEMBERS, _COPIES = 12, 6, 24


def write_report(store, recipe):
    """Write ``report.html`` into the work folder; returns a line with its path and size."""
    store.require("decide")
    gathered = gather(store, recipe.report.samples)
    groups, copies = _groups(store), _copies(store)
    rows = {row for limit in gathered.limits for row, _ in [*limit.near["fires"], *limit.near["spares"], *limit.spread]}
    rows |= {row for found in gathered.examples.values() for row in found}
    rows |= {row for members in groups for row, _ in members} | {row for row, *_ in copies}
    pictures = Pictures(store, rows, recipe.report.thumbnail)
    counts = gathered.funnel
    body = [_summary(counts, gathered), _funnel(gathered), page.heading("Limits", anchor="limits"), page.paragraph(
        "Move a limit and see which pictures change sides; the counts above follow. Dark bars: images that no other rule rejects, so "
        "that this limit alone decides on them. Pictures nearest to the limit that no other rule rejects come first.", "note")]
    for name in tqdm(gathered.rules, desc="report", unit="rule", disable=None):
        body.append(_rule(name, gathered, pictures))
    body += [_duplicates(groups, pictures, store.manifest("join")), _contamination(copies, pictures, recipe), _sources(gathered)]
    script = f"const LIVE = {live(gathered)};\n" + (_HERE / "report.js").read_text(encoding="utf-8")
    text = page.document(f"Report: {counts.kept} of {counts.rows} images kept", body,
                         (_HERE / "report.css").read_text(encoding="utf-8"), script)
    path = store.folder / "report.html"
    write_bytes(path, text)
    return f"{path} ({len(text) / 1e6:.1f} MB)"


# ---- counts ------------------------------------------------------------------------------------------------------

def _summary(counts, gathered):
    exact = "" if gathered.sampled == counts.rows else f", estimated from {gathered.sampled} of them"
    share = 100 * counts.kept / max(1, counts.rows)
    return tag("div", [
        tag("p", [f"Decided: {counts.kept} of {counts.rows} images kept ({share:.1f} %)."]),
        tag("p", ["With the limits on this page: ", tag("b", f"{counts.kept}", id="kept"), " kept, ", tag("b", "0", id="lost"),
                  " newly rejected, ", tag("b", "0", id="won"), " newly kept", exact, ". ",
                  tag("button", "Reset", type="button", id="reset")]),
        tag("details", [tag("summary", "Changes for the recipe"), tag("pre", "", id="yaml")])], class_="live")


def _funnel(gathered):
    counts, left, rows = gathered.funnel, gathered.funnel.rows, []
    for name, rule in gathered.rules.items():
        rejects = rule["action"] == "reject"
        if rejects:
            left -= counts.first[name]
        share = 100 * left / max(1, counts.rows)
        bar = Html(f'<div class="bar"><i style="width:{share:.2f}%"></i></div>') if rejects else "flags only"
        rows.append([tag("a", name, href=f"#rule-{name}"), rule["why"], bar, page.number(left if rejects else None, "d"),
                     page.number(counts.fired[name] if rejects else counts.flagged[name], "d"),
                     page.number(counts.first[name] if rejects else None, "d"), page.number(counts.alone[name] if rejects else None, "d"),
                     page.Cell(tag("span", "", data_rule=name), style="number")])
    return [page.heading("Funnel", anchor="funnel"), page.table(
        ["rule", "why", "left after it", "left", "fires on", "first to reject", "alone rejects", "now fires on"], rows,
        "From top to bottom. A rule that alone rejects few could as well be left out.")]


def _sources(gathered):
    total = max(1, sum(kept for _, _, kept, _, _ in gathered.sources))
    rows = [[name, images, kept, page.number(100 * kept / max(1, images), ".1f"), page.number(100 * kept / total, ".1f"), errors, groups]
            for name, images, kept, errors, groups in gathered.sources]
    return [page.heading("Sources and licences", anchor="sources"),
            page.table(["source", "images", "kept", "kept %", "share of the set %", "unreadable", "groups"], rows),
            page.table(["licence", "kept images"], [[name, count] for name, count in gathered.licences.most_common(50)]),
            [page.heading("Images that could not be read", 3),
             page.table(["kind", "images", "for example"], [list(entry) for entry in gathered.errors])] if gathered.errors else None]


# ---- rules and limits --------------------------------------------------------------------------------------------

def _rule(name, gathered, pictures):
    rule, counts = gathered.rules[name], gathered.funnel
    limits = [(k, limit) for k, limit in enumerate(gathered.limits) if limit.rule == name]
    described = (" or " if "any" in rule else " and ").join(decide.describe(c) for c in decide.conditions(rule))
    if rule["action"] == "reject":
        said = f"Rejects {counts.fired[name]}, {counts.alone[name]} of them alone."
    else:
        said = f"Flags {counts.flagged[name]}; rejects nothing."
    switch = tag("label", [Html(f'<input type="checkbox" data-switch="{name}"{" checked" if rule["action"] == "reject" else ""}>'),
                           " rejects"])
    parts = [page.heading(name, 3, f"rule-{name}"), tag("p", [rule["why"] + ". " if rule["why"] else "", tag("code", described), " ", said,
                                                              " ", switch])]
    parts += [_limit(k, limit, pictures) for k, limit in limits]
    if not limits and gathered.examples[name]:
        parts.append(_strip([(row, None) for row in gathered.examples[name]], pictures, False))
    return tag("section", parts, class_="rule")


def _limit(k, limit, pictures):
    pixels = limit.metric.startswith(_PIXELS)
    sign = "<" if limit.kind == "below" else ">"
    known = int(limit.counts.sum())
    meaning = METRICS.get(limit.metric, ("", ""))[1]
    head = tag("p", [tag("b", f"{limit.metric} {sign} "), tag("output", f"{limit.limit:g}", data_output=k), " fires on ",
                     tag("span", "", data_count=k), f" of {known} measured. ", tag("span", meaning, class_="note")])
    slide = Html(f'<input type="range" class="limit" data-limit="{k}" min="0" max="{len(limit.edges) - 1}" step="1" value="{limit.at}" '
                 f'aria-label="limit of {limit.metric}">')
    chart = tag("div", [_histogram(k, limit), slide], class_="chart")
    firing, sparing = limit.near["fires"], limit.near["spares"]
    low_first = firing[::-1] + sparing if limit.kind == "below" else sparing[::-1] + firing
    return [head, chart, tag("div", [
        tag("h4", f"Beside {limit.limit:g}" + (", most detailed part at full size" if pixels else "")),
        _strip(low_first, pictures, pixels, k),
        tag("h4", "From the lowest to the highest"), _strip(limit.spread, pictures, pixels, k)])]


def _histogram(k, limit, width=640, height=110):
    """Bars over the slider's positions: square-root heights, so that rare values stay visible."""
    inner = limit.counts[1:-1].astype(float)
    inner_alone = limit.decisive[1:-1].astype(float)
    if len(inner):
        inner[0], inner[-1] = inner[0] + limit.counts[0], inner[-1] + limit.counts[-1]
        inner_alone[0], inner_alone[-1] = inner_alone[0] + limit.decisive[0], inner_alone[-1] + limit.decisive[-1]
    top = max(1.0, inner.max(initial=0)) ** 0.5
    step = width / max(1, len(inner))

    def path(values):
        return "".join(f"M{i * step:.1f} {height}v{-height * v ** 0.5 / top:.1f}h{step:.1f}V{height}z" for i, v in enumerate(values) if v)
    marks = []
    for share in (0, 0.25, 0.5, 0.75, 1):
        at = round(share * (len(limit.edges) - 1))
        anchor = "start" if share == 0 else "end" if share == 1 else "middle"
        marks.append(f'<text x="{share * width:.0f}" y="{height + 15}" text-anchor="{anchor}">{limit.edges[at]:.4g}</text>')
    x = limit.at * width / max(1, len(limit.edges) - 1)
    side = f'<rect class="fires" data-area="{k}" y="0" height="{height}" x="{0 if limit.kind == "below" else x:.1f}" ' \
           f'width="{x if limit.kind == "below" else width - x:.1f}"/>'
    return Html(f'<svg viewBox="0 0 {width} {height + 20}" preserveAspectRatio="none" role="img" aria-label="histogram of {limit.metric}">'
                f'{side}<path class="all" d="{path(inner)}"/><path class="alone" d="{path(inner_alone)}"/>'
                f'<line data-line="{k}" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height}"/>{"".join(marks)}</svg>')


def _strip(found, pictures, pixels, k=None):
    """Pictures in a row, each with its value and name; the script marks those that the limit rejects."""
    cells = []
    for row, value in found:
        source = pictures.detail(row) if pixels else pictures.whole(row)
        name = pictures.name(row)
        shown = page.image(source, name) if source else tag("div", "cannot be shown", class_="blank")
        caption = [tag("b", f"{value:.4g} ") if value is not None else None, tag("span", _short(name), title=name)]
        cells.append(tag("figure", [shown, tag("figcaption", caption)], data_value=value, data_of=k))
    return tag("div", cells, class_="strip") if cells else page.paragraph("none", "note")


def _short(name, length=26):
    return name if len(name) <= length else "…" + name[1 - length:]


# ---- duplicates and test images ----------------------------------------------------------------------------------

def _groups(store):
    """Rows of some groups with their places and reasons, in order of preference: the largest groups, and others evenly spread."""
    if store.manifest("join") is None:
        return []
    table = store.read("join", ["duplicate_group", "place", "reason"])
    rows = np.flatnonzero(pc.is_valid(table["duplicate_group"]).to_numpy())
    if not len(rows):
        return []
    table = table.take(rows)
    names, sizes = (np.asarray(c) for c in zip(*((e["values"], e["counts"]) for e in pc.value_counts(table["duplicate_group"]).to_pylist())))
    order = np.lexsort((names, -sizes))
    chosen = [*order[:_GROUPS // 2]]
    rest = order[_GROUPS // 2:]
    chosen += list(rest[np.unique(np.linspace(0, len(rest) - 1, _GROUPS - len(chosen)).astype(int))]) if len(rest) else []
    members = {}
    groups, places, reasons = (table[c].to_pylist() for c in ("duplicate_group", "place", "reason"))
    chosen_names = {str(names[k]) for k in chosen}
    for row, group, place, reason in zip(rows, groups, places, reasons):
        if group in chosen_names:
            members.setdefault(group, []).append((place, int(row), reason))
    return [[(row, reason) for _, row, reason in sorted(members[str(names[k])])] for k in chosen]


def _duplicates(groups, pictures, manifest):
    parts = [page.heading("Duplicates", anchor="duplicates")]
    if manifest:
        parts.append(page.paragraph(f"{manifest['groups']} groups: {manifest['exact']} images are the same bytes as their best copy, "
                                    f"{manifest['near']} are near duplicates of it. The best copy stands first."))
    for members in groups:
        cells = []
        for row, reason in members[:_MEMBERS]:
            source = pictures.whole(row)
            shown = page.image(source, pictures.name(row)) if source else tag("div", "cannot be shown", class_="blank")
            cells.append(tag("figure", [shown, tag("figcaption", [tag("span", _short(pictures.name(row)), title=pictures.name(row)),
                                                                  tag("br"), "best" if reason is None else _how(reason)])],
                             class_="best" if not cells else None))
        if len(members) > _MEMBERS:
            cells.append(tag("p", f"and {len(members) - _MEMBERS} more"))
        parts.append(tag("div", cells, class_="strip group"))
    return parts


def _how(reason):
    return reason.split(": ", 1)[1] if ": " in reason and reason.startswith("like") else reason.split(";")[0]


def _copies(store):
    """(row, test image, reason) of copies of test images, evenly spread over the set."""
    if store.manifest("join") is None:
        return []
    table = store.read("join", ["contaminated_by", "reason"])
    rows = np.flatnonzero(pc.is_valid(table["contaminated_by"]).to_numpy())
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, _COPIES).astype(int))] if len(rows) else rows
    found = table.take(rows).to_pylist()
    return [(int(row), entry["contaminated_by"], entry["reason"]) for row, entry in zip(rows, found)]


def _contamination(copies, pictures, recipe):
    parts = [page.heading("Copies of test images", anchor="contamination")]
    if not recipe.join.benchmarks:
        return [*parts, page.paragraph("No test set was given (join.benchmarks), so none was kept out.", "warn")]
    if not copies:
        return [*parts, page.paragraph("None was found.")]
    folders = {name: folder for name, folder, _ in references(recipe.join.benchmarks)}
    cells = []
    for row, name, reason in copies:
        path = next((Path(folder, name[len(known) + 1:]) for known, folder in folders.items() if name.startswith(known + "/")), None)
        try:
            test = page.image(shrunk(path.read_bytes(), pictures.side), name, quality=80)
        except (OSError, ValueError):
            test = tag("div", "cannot be shown", class_="blank")
        source = pictures.whole(row)
        shown = page.image(source, pictures.name(row)) if source else tag("div", "cannot be shown", class_="blank")
        cells.append(tag("figure", [tag("div", [shown, test], class_="pair"),
                                    tag("figcaption", [tag("span", _short(pictures.name(row), 40), title=pictures.name(row)), tag("br"),
                                                       reason.split("; ")[-1]])]))
    return [*parts, page.paragraph("Left: the image of the build. Right: the test image that it shows."), tag("div", cells, class_="strip")]
