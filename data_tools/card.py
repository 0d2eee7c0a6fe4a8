"""The dataset card: ``README.md`` with the YAML front matter that the Hugging Face Hub and ``datasets`` read."""

from collections import Counter

from restore import __version__

from .funnel import funnel
from .shards import FIELDS

_FIELDS = {
    "id": "16 hex digits of source and name", "source": "name of the source in the recipe", "name": "name inside the source",
    "licence": "as the source states it; null when it states none", "url": "where the image came from, if known",
    "group": "images of one group are on one side of the split", "provenance": "JSON: container, caption, sidecar fields",
    "sha256": "of the original file", "width": "pixels", "height": "pixels", "x": "of a patch in the stored image, else null",
    "y": "of a patch in the stored image, else null",
}
# spellings that sources use, and the Hub's identifiers
_LICENCES = {"cc0": "cc0-1.0", "cc0-1.0": "cc0-1.0", "public domain": "cc0-1.0", "cc-by-4.0": "cc-by-4.0", "cc by 4.0": "cc-by-4.0",
             "cc-by-sa-4.0": "cc-by-sa-4.0", "cc by-sa 4.0": "cc-by-sa-4.0", "cc-by-2.0": "cc-by-2.0", "cc by 2.0": "cc-by-2.0",
             "cc-by-nc-4.0": "cc-by-nc-4.0", "apache-2.0": "apache-2.0", "mit": "mit"}


def totals(shards):
    """Sums over the notes of the shards: samples, image_bytes, splits, licences, sources, files."""
    splits, licences, sources, files = Counter(), Counter(), Counter(), {}
    for shard in shards:
        splits[shard["split"]] += shard["samples"]
        licences.update(shard["licences"])
        sources.update(shard["sources"])
        files.update(shard["files"])
    return {"samples": sum(splits.values()), "image_bytes": sum(shard["image_bytes"] for shard in shards),
            "splits": {name: splits[name] for name in ("train", "val") if splits[name]},
            "licences": dict(sorted(licences.items(), key=lambda item: (-item[1], item[0]))),
            "sources": dict(sorted(sources.items(), key=lambda item: (-item[1], item[0]))), "files": files}


def card(store, recipe, total):
    """The card's text, from the tables and the totals of the export. The same export gives the same text."""
    settings = recipe.export
    counts = funnel(store)
    join = store.manifest("join") or {}
    what = {"original": "Whole images, original bytes.",
            "crops": f"Windows of {settings.patch_size}x{settings.patch_size}, the most detailed up to {settings.patches_per_image} of "
                     "each image, cut without re-encoding.",
            "patches": f"Patches of {settings.patch_size}x{settings.patch_size} as PNG, the most detailed up to "
                       f"{settings.patches_per_image} of each image."}[settings.content]
    lines = [*_front_matter(settings, total), "", "# Clean images for restoration", "",
             (f"{total['samples']} samples, {total['image_bytes'] / 1e6:.1f} MB of encoded images. {what} "
             f"Built by AnyDepth {__version__} (`python -m data_tools`) out of {counts.rows} images, of which {counts.kept} were kept."), "",
             *_table(["split", "samples"], total["splits"].items()), "",
             (f"An image belongs to val when a hash of its group's name and the seed {settings.seed} falls below {settings.val_fraction:g}: "
             "groups are never divided."), ""]
    lines += ["## Sources and licences", "", *_table(["source", "samples"], total["sources"].items()), "",
              *_table(["licence", "samples"], ((name or "none stated", count) for name, count in total["licences"].items())), "",
              ("The licence of every image, and its address where known, stand beside it. This card states what the sources stated; "
              "it grants nothing."), ""]
    lines += ["## Why images were left out", "", *_table(
        ["rule", "rejects", "first to reject", "alone rejects"],
        ((rule, count, counts.first[rule], counts.alone[rule]) for rule, count in counts.fired.most_common())), ""]
    if counts.flagged:
        lines += ["Flagged, not rejected: " + ", ".join(f"{name} {count}" for name, count in counts.flagged.most_common()) + ".", ""]
    if join:
        lines += [f"Near duplicates differ in at most {recipe.join.near_distance} of the 256 bits of their PDQ hashes"
                  f"{' in any mirrored or turned version' if recipe.join.mirrored else ''}; {join['groups']} groups were found. "
                  + (f"Copies of {join['test_images']} test images were looked for ({', '.join(_last(b) for b in recipe.join.benchmarks)}); "
                     f"{join['contaminated']} were found." if recipe.join.benchmarks else "No test set was given to keep out."), ""]
    lines += ["### Thresholds", "", "```yaml", store.path("decide", "thresholds.yaml").read_text().rstrip(), "```", ""]
    lines += ["## Fields", "", *_table(["field", "what it is"], ((f"`{name}`", _FIELDS[name]) for name in FIELDS)), "",
              "## Files", "", *_table(["file", "bytes", "sha256"], (
                  (f"`{name}`", facts["bytes"], f"`{facts['sha256']}`") for name, facts in sorted(total["files"].items()))), ""]
    return "\n".join(lines)


def _front_matter(settings, total):
    known = {_LICENCES.get(name.strip().lower()) for name in total["licences"]}
    licence = known.pop() if len(known) == 1 and None not in known else "other"
    count = total["samples"]
    size = next((name for limit, name in ((1e3, "n<1K"), (1e4, "1K<n<10K"), (1e5, "10K<n<100K"), (1e6, "100K<n<1M")) if count < limit),
                "1M<n<10M")
    kind = next((kind for kind in ("parquet", "webdataset", "files") if kind in settings.formats), None)
    pattern = {"parquet": "parquet/{}/*.parquet", "webdataset": "webdataset/{}/*.tar", "files": "files/{}/**"}[kind]
    lines = ["---", "pretty_name: Clean images for restoration", f"license: {licence}", "task_categories:", "- image-to-image",
             "tags:", "- image-restoration", "size_categories:", f"- {size}"]
    if total["splits"]:
        lines += ["configs:", "- config_name: default", "  data_files:"]
        for split in total["splits"]:
            lines += [f"  - split: {'validation' if split == 'val' else split}", f"    path: {pattern.format(split)}"]
    return [*lines, "---"]


def _table(columns, rows):
    """A Markdown table; numbers to the right."""
    rows = [list(row) for row in rows]
    numeric = [bool(rows) and isinstance(rows[0][k], int) for k in range(len(columns))]
    lines = ["| " + " | ".join(columns) + " |", "|" + "|".join("---:" if n else "---" for n in numeric) + "|"]
    return lines + ["| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in rows]


def _last(path):
    return path.rstrip("/").rsplit("/", 1)[-1]
