"""The dataset card: ``README.md`` with the YAML front matter that the Hugging Face Hub and ``datasets`` read."""

from collections import Counter

from restore import __version__

from .funnel import funnel
from .shards import FIELDS

_FIELDS = {
    "id": "16 hex digits of source and name", "source": "name of the source in the recipe",
    "name": "name inside the source", "licence": "as the source states it; null when it states none",
    "url": "where the image came from, if known", "group": "images of one group are on one side of the split",
    "provenance": "JSON: container, caption, sidecar fields", "sha256": "of the original file", "width": "pixels",
    "height": "pixels", "x": "of a patch in the stored image, else null",
    "y": "of a patch in the stored image, else null",
}
# spellings that sources use, and the Hub's identifiers
_LICENCES = {"cc0": "cc0-1.0", "public domain": "cc0-1.0", "cc by 4.0": "cc-by-4.0", "cc by-sa 4.0": "cc-by-sa-4.0",
             "cc by 2.0": "cc-by-2.0", **{name: name for name in (
                 "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-2.0", "cc-by-nc-4.0", "apache-2.0", "mit")}}
_SIZES = ((1e3, "n<1K"), (1e4, "1K<n<10K"), (1e5, "10K<n<100K"), (1e6, "100K<n<1M"), (1e7, "1M<n<10M"),
          (float("inf"), "10M<n<100M"))


def totals(shards):
    """Sums over the notes of the shards: samples, image_bytes, splits, licences, sources, files."""
    splits, licences, sources, files = Counter(), Counter(), Counter(), {}
    for shard in shards:
        splits[shard["split"]] += shard["samples"]
        licences.update(shard["licences"])
        sources.update(shard["sources"])
        files.update(shard["files"])

    def ordered(counts):
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
    return {"samples": sum(splits.values()), "image_bytes": sum(shard["image_bytes"] for shard in shards),
            "splits": {name: splits[name] for name in ("train", "val") if splits[name]},
            "licences": ordered(licences), "sources": ordered(sources), "files": files}


def card(store, recipe, total):
    """The card's text, from the tables and the totals of the export. The same export gives the same text."""
    settings, counts = recipe.export, funnel(store)
    best = f"the most detailed up to {settings.patches_per_image} of each image"
    side = f"{settings.patch_size}x{settings.patch_size}"
    what = {"original": "Whole images, original bytes.",
            "crops": f"Windows of {side}, {best}, cut without re-encoding.",
            "patches": f"Patches of {side} as PNG, {best}."}[settings.content]
    samples = _table(["split", "samples"], total["splits"].items())
    sources = _table(["source", "samples"], total["sources"].items())
    licences = _table(["licence", "samples"], ((name or "none stated", n) for name, n in total["licences"].items()))
    rules = _table(["rule", "rejects", "first to reject", "alone rejects"],
                   ((rule, n, counts.first[rule], counts.alone[rule]) for rule, n in counts.fired.most_common()))
    flagged = ", ".join(f"{name} {n}" for name, n in counts.flagged.most_common())
    files = _table(["file", "bytes", "sha256"], ((f"`{name}`", facts["bytes"], f"`{facts['sha256']}`")
                                                 for name, facts in sorted(total["files"].items())))
    parts = [
        _front_matter(settings, total),
        "# Clean images for restoration",
        (f"{total['samples']} samples, {total['image_bytes'] / 1e6:.1f} MB of encoded images. {what} Built by AnyDepth "
         f"{__version__} (`python -m data_tools`) out of {counts.rows} images, of which {counts.kept} were kept."),
        samples,
        (f"An image belongs to val when a hash of its group's name and the seed {settings.seed} falls below "
         f"{settings.val_fraction:g} and val has room for the group: groups are never divided."),
        "## Sources and licences", sources, licences,
        ("The licence of every image, and its address where known, stand beside it. This card states what the sources "
         "stated; it grants nothing."),
        "## Why images were left out", rules, f"Flagged, not rejected: {flagged}." if flagged else None,
        *_joined(store, recipe),
        "### Thresholds", f"```yaml\n{store.path('decide', 'thresholds.yaml').read_text().rstrip()}\n```",
        "## Fields", _table(["field", "what it is"], ((f"`{name}`", _FIELDS[name]) for name in FIELDS)),
        "## Files", files]
    return "\n\n".join(part for part in parts if part) + "\n"


def _joined(store, recipe):
    """What was found across images."""
    found = store.manifest("join")
    if not found:
        return ["Duplicates and copies of test images were not looked for."]
    turned = " in any mirrored or turned version" if recipe.join.mirrored else ""
    near = (f"Near duplicates differ in at most {recipe.join.near_distance} of the 256 bits of their PDQ hashes{turned}; "
            f"{found['groups']} groups were found.")
    if not recipe.join.benchmarks:
        return [near, "No test set was given to keep out."]
    names = ", ".join(path.rstrip("/").rsplit("/", 1)[-1] for path in recipe.join.benchmarks)
    count = found["contaminated"]
    return [near, f"Copies of {found['test_images']} test images were looked for ({names}); {count} were found."]


def _front_matter(settings, total):
    known = {_LICENCES.get(name.strip().lower()) for name in total["licences"]}
    licence = known.pop() if len(known) == 1 and None not in known else "other"
    size = next(name for limit, name in _SIZES if total["samples"] < limit)
    patterns = {"parquet": "parquet/{}/*.parquet", "webdataset": "webdataset/{}/*.tar", "files": "files/{}/**"}
    pattern = next(pattern for kind, pattern in patterns.items() if kind in settings.formats)
    lines = ["---", "pretty_name: Clean images for restoration", f"license: {licence}", "task_categories:",
             "- image-to-image", "tags:", "- image-restoration", "size_categories:", f"- {size}"]
    if total["splits"]:
        lines += ["configs:", "- config_name: default", "  data_files:"]
        for split in total["splits"]:
            lines += [f"  - split: {'validation' if split == 'val' else split}", f"    path: {pattern.format(split)}"]
    return "\n".join([*lines, "---"])


def _table(columns, rows):
    """A Markdown table, numbers to the right; None without rows."""
    rows = [list(row) for row in rows]
    if not rows:
        return None
    heads = "|".join("---:" if isinstance(cell, int) else "---" for cell in rows[0])
    lines = ["| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in rows]
    return "\n".join(["| " + " | ".join(columns) + " |", f"|{heads}|", *lines])
