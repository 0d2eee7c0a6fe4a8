"""The report: one self-contained page on which a person can see what every limit does, and move it.

Funnel; for every rule its limits, each with a histogram, a slider and pictures beside the limit; duplicates in groups;
copies of test images; sources and licences. The page stays small however many images there are: histograms have a fixed
number of bins, pictures a fixed number, and the counts that follow the sliders come from at most 20,000 rows.
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
    rows |= {row for members in groups for row, *_ in members[:_MEMBERS]} | {row for row, *_ in copies}
    pictures = Pictures(store, rows, recipe.report.thumbnail)
    counts = gathered.funnel
    body = [_summary(counts, gathered), _funnel(gathered), page.heading("Limits", anchor="limits"), page.paragraph(
        "Move a limit and see which pictures change sides; the counts above follow. Blue bars: images that no other rule "
        "rejects, so that this limit alone decides on them; gray: all. The pictures are those nearest to the limit, first of "
        "all those that no other rule rejects. Which copy of a duplicate is kept stays as decided.", "note")]
    limited = {limit.rule for limit in gathered.limits}
    quiet = [name for name, found in gathered.examples.items() if not found and name not in limited]
    for name in tqdm([name for name in gathered.rules if name not in quiet], desc="report", unit="rule", disable=None):
        body.append(_rule(name, gathered, pictures))
    if quiet:
        body.append(tag("p", f"Without a limit, and firing on nothing here: {', '.join(quiet)}.", id="quiet"))
    body += [_duplicates(groups, pictures, store.manifest("join")), _contamination(copies, pictures, recipe),
             _sources(gathered)]
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
        tag("p", f"Decided: {counts.kept} of {counts.rows} images kept ({share:.1f} %)."),
        tag("p", Html(f'With the limits on this page: <b id="kept">{counts.kept}</b> kept, <b id="lost">0</b> newly '
                      f'rejected, <b id="won">0</b> newly kept{exact}. <button type="button" id="reset">Reset</button>')),
        tag("details", [tag("summary", "Changes for the recipe"), tag("pre", "", id="yaml")])], class_="live")


def _funnel(gathered):
    counts, left, rows = gathered.funnel, gathered.funnel.rows, []
    limited = {limit.rule for limit in gathered.limits}
    for name, rule in gathered.rules.items():
        rejects = rule["action"] == "reject"
        if rejects:
            left -= counts.first[name]
        share = 100 * left / max(1, counts.rows)
        bar = Html(f'<div class="bar"><i style="width:{share:.2f}%"></i></div>') if rejects else "flags only"
        link = tag("a", name, href=f"#rule-{name}") if gathered.examples[name] or name in limited else name
        fired = counts.fired[name] if rejects else counts.flagged[name]
        shown = (left, fired, counts.first[name], counts.alone[name]) if rejects else (None, fired, None, None)
        rows.append([link, rule["why"], bar, *(page.number(count, "d") for count in shown),
                     page.Cell(tag("span", "", data_rule=name), style="number")])
    return [page.heading("Funnel", anchor="funnel"), page.table(
        ["rule", "why", "left after it", "left", "fires on", "first to reject", "alone rejects", "now fires on"], rows,
        "From top to bottom. A rule that alone rejects few could as well be left out.")]


def _sources(gathered):
    total = max(1, sum(kept for _, _, kept, _, _ in gathered.sources))
    rows = [[name, images, kept, page.number(100 * kept / max(1, images), ".1f"), page.number(100 * kept / total, ".1f"),
             errors, groups] for name, images, kept, errors, groups in gathered.sources]
    return [page.heading("Sources and licences", anchor="sources"),
            page.table(["source", "images", "kept", "kept %", "share of the set %", "unreadable", "groups"], rows),
            page.table(["licence", "kept images"], [[name, count] for name, count in gathered.licences.most_common(50)]),
            [page.heading("Images that could not be read", 3), page.table(
                ["kind", "images", "for example"], [list(entry) for entry in gathered.errors])] if gathered.errors else None]


# ---- rules and limits --------------------------------------------------------------------------------------------

def _rule(name, gathered, pictures):
    rule, counts = gathered.rules[name], gathered.funnel
    limits = [(k, limit) for k, limit in enumerate(gathered.limits) if limit.rule == name]
    described = (" or " if "any" in rule else " and ").join(decide.describe(c) for c in decide.conditions(rule))
    if rule["action"] == "reject":
        said = f"Rejects {counts.fired[name]}, {counts.alone[name]} of them alone."
    else:
        said = f"Flags {counts.flagged[name]}; rejects nothing."
    checked = " checked" if rule["action"] == "reject" else ""
    switch = tag("label", [Html(f'<input type="checkbox" data-switch="{name}"{checked}>'), " rejects"])
    parts = [page.heading(name, 3, f"rule-{name}"),
             tag("p", [rule["why"] + ". " if rule["why"] else "", tag("code", described), " ", said, " ", switch])]
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
    slide = Html(f'<input type="range" class="limit" data-limit="{k}" min="0" max="{len(limit.edges) - 1}" step="1" '
                 f'value="{limit.at}" aria-label="limit of {limit.metric}">')
    chart = tag("div", [_histogram(k, limit), slide], class_="chart")
    how = " (their most detailed part, pixel by pixel)" if pixels else ""
    sides = [(f"Just below {limit.limit:g}{how}", "fires" if limit.kind == "below" else "spares"),
             (f"Just above {limit.limit:g}", "spares" if limit.kind == "below" else "fires")]
    strips = [[tag("h4", title), _strip(sorted(limit.near[side], key=lambda found: found[1]), pictures, pixels, k)]
              for title, side in sides]
    return [head, chart, *strips, tag("h4", "Over the whole range"), _strip(limit.spread, pictures, pixels, k)]


def _histogram(k, limit, width=640, height=110):
    """Bars over the slider's positions: square-root heights, so that rare values stay visible."""
    inner = limit.counts[1:-1].astype(float)
    inner_alone = limit.decisive[1:-1].astype(float)
    if len(inner):
        inner[0] += limit.counts[0]
        inner[-1] += limit.counts[-1]
        inner_alone[0] += limit.decisive[0]
        inner_alone[-1] += limit.decisive[-1]
    top = max(1.0, inner.max(initial=0)) ** 0.5
    step = width / max(1, len(inner))

    def path(values):
        return "".join(f"M{i * step:.1f} {height}v{-height * v ** 0.5 / top:.1f}h{step:.1f}V{height}z"
                       for i, v in enumerate(values) if v)
    marks = []
    for share in (0, 0.25, 0.5, 0.75, 1):
        at = round(share * (len(limit.edges) - 1))
        anchor = "start" if share == 0 else "end" if share == 1 else "middle"
        marks.append(f'<text x="{share * width:.0f}" y="{height + 15}" text-anchor="{anchor}">{limit.edges[at]:.3g}</text>')
    x = limit.at * width / max(1, len(limit.edges) - 1)
    left, right = (0, x) if limit.kind == "below" else (x, width)
    return Html(f'<svg viewBox="0 0 {width} {height + 20}" preserveAspectRatio="none" role="img" '
                f'aria-label="histogram of {limit.metric}">'
                f'<rect class="fires" data-area="{k}" y="0" height="{height}" x="{left:.1f}" width="{right - left:.1f}"/>'
                f'<path class="all" d="{path(inner)}"/><path class="alone" d="{path(inner_alone)}"/>'
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
    """A name that fits below a picture: the file's own where the whole is too long, its end where that is."""
    name = name if len(name) <= length else name.rsplit("/", 1)[-1]
    return name if len(name) <= length else "…" + name[1 - length:]


# ---- duplicates and test images ----------------------------------------------------------------------------------

def _groups(store):
    """(row, reason, kept) of the members of some groups, in order of preference: the largest, and others evenly spread."""
    if store.manifest("join") is None:
        return []
    table = store.read("join", ["duplicate_group", "place", "reason"])
    table = table.append_column("keep", store.read("decide", ["keep"])["keep"])
    rows = np.flatnonzero(pc.is_valid(table["duplicate_group"]).to_numpy())
    if not len(rows):
        return []
    table = table.take(rows)
    counted = pc.value_counts(table["duplicate_group"])
    names, sizes = np.asarray(counted.field("values").to_pylist()), counted.field("counts").to_numpy()
    order = np.lexsort((names, -sizes))
    chosen = [*order[:_GROUPS // 2]]
    rest = order[_GROUPS // 2:]
    chosen += list(rest[np.unique(np.linspace(0, len(rest) - 1, _GROUPS - len(chosen)).astype(int))]) if len(rest) else []
    members = {}
    columns = (table[c].to_pylist() for c in ("duplicate_group", "place", "reason", "keep"))
    chosen_names = {str(names[k]) for k in chosen}
    for row, group, place, reason, keep in zip(rows, *columns):
        if group in chosen_names:
            members.setdefault(group, []).append((place, int(row), reason, keep))
    return [[entry[1:] for entry in sorted(members[str(names[k])])] for k in chosen]


def _duplicates(groups, pictures, manifest):
    parts = [page.heading("Duplicates", anchor="duplicates")]
    if manifest:
        parts.append(page.paragraph(
            f"{manifest['groups']} groups: {manifest['exact']} images are the same bytes as their best copy, "
            f"{manifest['near']} are near duplicates of it. The best copy stands first; where another rule rejects it, the "
            "next one is kept. Framed in green: kept."))
    for members in groups:
        cells = []
        for row, reason, kept in members[:_MEMBERS]:
            source = pictures.whole(row)
            shown = page.image(source, pictures.name(row)) if source else tag("div", "cannot be shown", class_="blank")
            caption = [tag("span", _short(pictures.name(row)), title=pictures.name(row)), Html("<br>"), _how(reason or "")]
            cells.append(tag("figure", [shown, tag("figcaption", caption)], class_="best" if kept else None))
        if len(members) > _MEMBERS:
            cells.append(tag("p", f"and {len(members) - _MEMBERS} more"))
        parts.append(tag("div", cells, class_="strip group"))
    return parts


def _how(reason):
    """The part of a join's reason that speaks of the duplicate."""
    first = reason.split("; ")[0]
    if first.startswith("like"):
        name, bits = first.rsplit(": ", 1)
        return bits + (", mirrored or turned" if ", " in name.rsplit("/", 1)[-1] else "")
    return "same bytes" if first.startswith("same bytes") else "best"


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
        path = next(Path(folder, name[len(known) + 1:]) for known, folder in folders.items()
                    if name.startswith(known + "/"))
        try:
            test = page.image(shrunk(path.read_bytes(), pictures.side), name, quality=80)
        except (OSError, ValueError):
            test = tag("div", "cannot be shown", class_="blank")
        source = pictures.whole(row)
        shown = page.image(source, pictures.name(row)) if source else tag("div", "cannot be shown", class_="blank")
        full = pictures.name(row)
        caption = [tag("span", _short(full, 40), title=full), Html("<br>"), reason.split("; ")[-1]]
        cells.append(tag("figure", [tag("div", [shown, test], class_="pair"), tag("figcaption", caption)]))
    return [*parts, page.paragraph("Left: the image of the build. Right: the test image that it shows."),
            tag("div", cells, class_="strip")]
