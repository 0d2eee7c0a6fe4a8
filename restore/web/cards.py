"""Pieces of HTML for the page, as strings: what they hold is escaped by :mod:`restore.page`."""

import html
import json
import secrets
import shlex

from ..budget import readable_seconds
from ..files import IMAGE_SUFFIXES
from ..page import Html, tag

_LABELS = {"input": "Before", "clean": "Clean", "restored": "Restored"}


def drop_zone(limits, samples=(), again=False, error=None):
    """Where a photo is dropped; ``samples`` are ``(name, data URI)``; ``again`` gives the small one beside a photo.

    No two are equal, so that one in which the browser has written something is replaced by the next.
    """
    size = f"up to {limits.upload / 1e6:.0f} MB and {limits.pixels / 1e6:.0f} megapixels"
    choose = tag("button", "Choose another photo" if again else "Choose a photo", class_="choose", type="button")
    file = Html(f'<input type="file" hidden accept="{",".join(IMAGE_SUFFIXES)}">')
    message = tag("p", error or "", class_="message bad" if error else "message", role="status")
    if again:
        inner = [file, choose, tag("span", "or drop it anywhere", class_="hint"), message]
    else:
        inner = [file, tag("p", "Drop a photo here", class_="title"), choose,
                 tag("p", ["JPEG, PNG, TIFF or WebP, 8 or 16 bit, ", tag("span", size)], class_="hint"), message]
        if samples:
            shown = [Html(f'<button type="button" data-sample="{html.escape(name)}" title="Open the sample {html.escape(name)}">'
                          f'<img src="{uri}" alt="{html.escape(name)}"></button>') for name, uri in samples]
            inner += [tag("div", [tag("span", "No photo at hand? Take one of these:", class_="hint"), tag("div", shown)],
                          class_="samples")]
    return tag("photo-drop", inner, class_="again" if again else None, limit=limits.upload, turn=secrets.token_hex(4))


def viewer(session):
    """The photo's pictures over each other."""
    photo = session.photo
    order = [what for what in ("input", "clean", "restored") if what in photo.pictures]
    if "restored" not in order and "clean" in order:
        order = ["clean", "input"]
    labels = dict(_LABELS, input="Photo" if order == ["input"] else "Degraded" if photo.test else "Before")
    pictures = [{"label": labels[what], "src": session.address(photo.pictures[what])} for what in order]
    return tag("photo-compare", "", width=photo.width, height=photo.height, photo=photo.folder.name, pictures=json.dumps(pictures))


def facts(photo):
    """What the file is, and what reading it had to say."""
    about = photo.facts
    kind = "floating point" if about["bits"] == 32 else f"{about['bits']} bit"
    size = f"{photo.width} × {photo.height}, {photo.width * photo.height / 1e6:.1f} MP"
    lines = [tag("strong", photo.source.name, title=photo.source.name),
             tag("span", f"{size} · {about['format']}, {kind}{', grey' if about['gray'] else ''} · {about['bytes'] / 1e6:.1f} MB")]
    kept = [name for name, there in (("colour profile", about["icc"]), ("metadata", about["metadata"]),
                                     ("transparency", about["alpha"])) if there]
    if kept:
        lines.append(tag("span", "Kept in the result: " + ", ".join(kept)))
    lines += [tag("span", f"{note[:1].upper()}{note[1:]}.", class_="note") for note in photo.notes]
    return tag("div", lines, class_="facts")


def costs(rows, photo, model, parameters, chosen, problem=None):
    """The table of depths for this photo: arithmetic, expected and measured time; ``chosen`` is set off."""
    scored = any(score is not None for _, score in photo.runs.values())
    heads = ["Depth", "GMACs", "Expected", "Measured", *(["PSNR"] if scored else [])]
    lines = []
    for row in rows:
        elapsed, score = photo.runs.get((model, row.name), (None, None))
        name = [tag("b", row.name or "fixed"), tag("small", row.repeats or "")]
        expected = "…" if row.seconds is None else readable_seconds(row.seconds)
        cells = [tag("th", name, scope="row"), tag("td", f"{row.macs / 1e9:,.1f}"), tag("td", expected),
                 tag("td", "–" if elapsed is None else readable_seconds(elapsed))]
        if scored:
            cells.append(tag("td", "–" if score is None else f"{score:.1f} dB"))
        lines.append(tag("tr", cells, class_="chosen" if row.name == chosen else None))
    head = tag("tr", [tag("th", name, scope="col") for name in heads])
    caption = f"For this photo. {parameters / 1e6:.2f} million parameters at every depth." if len(rows) > 1 \
        else f"For this photo. {parameters / 1e6:.2f} million parameters." if parameters else "For this photo."
    return tag("div", [tag("p", problem, class_="bad", role="alert") if problem else None,
                       tag("table", [tag("thead", head), tag("tbody", lines)]), tag("p", caption, class_="hint")], class_="costs")


def progress(job, before=(), wait=0.0):
    """How far a job is, or what comes before it: other jobs, and the seconds that they will take or 0."""
    if job.begun is None and before:
        photos = sum(not other.timing for other in before)
        what = "The network is timed first" if not photos else f"{photos} photo{'s come' if photos > 1 else ' comes'} before yours"
        title, detail, percent = "Waiting", what + (f", about {_roughly(wait)}" if wait else ""), None
    else:
        title, percent = job.what, int(100 * job.fraction)
        left = job.remaining()
        detail = ", ".join(part for part in (f"tile {job.tile} of {job.tiles}" if job.tiles > 1 else "",
                                             f"about {_roughly(left)} left" if left is not None else "") if part)
    bar = tag("div", tag("i", "", style=f"width:{percent or 0}%"), class_="bar", role="progressbar", aria_label=title,
              aria_valuemin=0, aria_valuemax=100, aria_valuenow=percent)
    line = tag("div", [tag("b", title), tag("span", "" if percent is None else f"{percent} %")], class_="line")
    return tag("div", [line, bar, tag("span", detail or "\N{NO-BREAK SPACE}", class_="hint")], class_="card")


def _roughly(seconds):
    return readable_seconds(seconds) if seconds >= 60 else f"{max(1, round(seconds))} s"


def error(text):
    """What went wrong, in a card that stays."""
    return tag("div", [tag("b", "That did not work. "), text if text.endswith((".", "?", ")")) else f"{text}."],
               class_="card bad", role="alert")


def message(text):
    """A word about what happened."""
    return tag("div", text, class_="card", role="status")


def result(session):
    """What was restored, how well if that is known, and where to get it; of a test before that, how bad the input is."""
    photo, parts = session.photo, []
    if photo.result is not None:
        depth = photo.restored_with[1]
        parts.append(tag("div", [tag("b", "Restored"), f" at depth {depth}" if depth else "",
                                 f" in {readable_seconds(photo.runs[photo.restored_with][0])}."]))
    if photo.scores:
        parts.append(_scores(photo.scores))
    links = []
    if photo.result is not None:
        links.append(_link(session, photo.result, f"Download {photo.result.name}", "download"))
    if photo.test is not None:
        links.append(_link(session, photo.input, "Download the degraded photo", "download plain"))
    if links:
        parts.append(tag("div", links, class_="links"))
    return tag("div", parts, class_="card", role="status") if parts else ""


def command(photo, model):
    """The commands that give the same files, for those who want many."""
    lines = []
    if photo.test is not None:
        lines.append(f"restore degrade {shlex.quote(photo.source.name)} {shlex.join(photo.test)} -o {shlex.quote(photo.input.name)}")
    if photo.result is not None:
        depth = photo.restored_with[1]
        lines.append(f"restore run {shlex.quote(photo.input.name)} -m {shlex.quote(str(model))}" + (f" -d {depth}" if depth else ""))
    if not lines:
        return ""
    return tag("details", [tag("summary", "The same on the command line"), tag("pre", "\n".join(lines))], class_="command")


def _scores(scores):
    names = {"input": "Degraded", "restored": "Restored"}
    rows = [tag("tr", [tag("th", names[what], scope="row"), tag("td", f"{psnr:.2f} dB"),
                       tag("td", "–" if ssim is None else f"{ssim:.4f}")]) for what, (psnr, ssim) in scores.items()]
    head = tag("tr", [tag("th", "Against the clean photo", scope="col"), tag("th", "PSNR", scope="col"), tag("th", "SSIM", scope="col")])
    return tag("table", [tag("thead", head), tag("tbody", rows)], class_="scores")


def _link(session, path, text, style):
    return tag("a", text, href=session.address(path), class_=style, download=path.name)
