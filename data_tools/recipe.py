"""What a build is: sources, measuring, thresholds, joining, export, as typed dataclasses read from YAML.

Paths in a recipe file are relative to the folder that holds it; those on the command line to the current folder.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from restore import recipe as recipes
from restore.errors import RestoreError


@dataclass
class Source:
    """One place where images come from. ``kind`` is found out from the path when it is "auto".

    files    a folder tree, a file, a glob, an fsspec address (s3://...): images, tar, zip, WebDataset and parquet in it
    dataset  a Hugging Face dataset: saved to disk, or a name on the Hub with ``split``
    urls     a list of addresses: .txt (one a line), .csv or .parquet with the column ``url``
    """

    path: str
    name: str = ""                         # default: the last part of the path
    kind: Literal["auto", "files", "dataset", "urls"] = "auto"
    licence: str | None = None             # for images that bring no licence of their own
    group: Literal["folder", "archive", "host", "source", "image"] | None = None   # default: host for urls, else folder
    split: str = "train"                   # of a dataset on the Hub
    image_column: str | None = None        # of parquet and datasets; default: the first one that holds images
    url_column: str = "url"
    limit: int | None = None               # the first images only

    def check(self):
        if not self.path:
            raise RestoreError("path: empty")
        if self.limit is not None and self.limit < 1:
            raise RestoreError("limit: expected 1 or more")


@dataclass
class Download:
    """How politely a URL list is fetched."""

    concurrency: int = 16                  # requests under way at once
    per_host: int = 4                      # of them to one host
    retries: int = 3                       # after a timeout, a broken connection, 429 or 5xx
    backoff: float = 1.0                   # seconds before the first retry; doubles; Retry-After is respected
    timeout: float = 20.0                  # seconds without an answer; a whole image may take six times as long
    max_mb: float = 64.0                   # larger files are refused
    opt_out: list[str] = field(default_factory=lambda: ["noai", "noimageai", "noindex", "noimageindex", "none"])
    user_agent: str = "anydepth-data-tools"
    urls_per_shard: int = 1000

    def check(self):
        for name in ("concurrency", "per_host", "urls_per_shard"):
            if getattr(self, name) < 1:
                raise RestoreError(f"{name}: expected 1 or more")


@dataclass
class Measure:
    """How images are measured. What changes a metric's value belongs to the key of the measured parts."""

    max_megapixels: float = 200.0          # more, by the header, is refused before decoding
    max_mb: float = 512.0                  # larger files are refused before reading
    timeout: float = 120.0                 # seconds for one image before its worker is replaced
    plugins: list[str] = field(default_factory=list)     # FILE.py:function, see data_tools.plugins
    niqe: str | None = None                # a model file made by ``python -m data_tools niqe-fit FOLDER -o FILE``
    watermarks: bool = True                # the pass over whole sources
    watermark_min_images: int = 16


@dataclass
class Join:
    """Duplicates and decontamination."""

    near_distance: int = 31                # differing bits of 256 up to which two images are near duplicates
    mirrored: bool = True                  # mirrored and turned copies are duplicates too
    benchmarks: list[str] = field(default_factory=list)  # folders of test images that must not get in


@dataclass
class Export:
    """What is written and how."""

    formats: list[Literal["files", "parquet", "webdataset"]] = field(default_factory=lambda: ["webdataset", "parquet"])
    content: Literal["original", "crops", "patches"] = "original"
    patch_size: int = 512
    patches_per_image: int = 4
    patch_overlap: float = 0.0             # share of a patch's side that neighbours may share
    patch_min_detail: float = 0.0
    shard_mb: float = 256.0
    val_fraction: float = 0.01
    seed: int = 0


@dataclass
class Report:
    """The HTML page."""

    samples: int = 8                       # pictures just above and just below each threshold
    thumbnail: int = 160


@dataclass
class Recipe:
    """A whole build."""

    sources: list[Source]
    output: str = ""                       # the work folder; default: <recipe's name>-build beside the recipe
    thresholds: str | None = None          # a YAML file; default: the one shipped with data_tools
    rules: dict[str, float | bool | None] = field(default_factory=dict)    # single thresholds changed: {blurry: 0.4}
    engine: Literal["local", "ray"] = "local"
    workers: int = 0                       # 0: one per processor core
    download: Download = field(default_factory=Download)
    measure: Measure = field(default_factory=Measure)
    join: Join = field(default_factory=Join)
    export: Export = field(default_factory=Export)
    report: Report = field(default_factory=Report)

    def check(self):
        if not self.sources:
            raise RestoreError("sources: a build needs at least one")
        names = [source.name for source in self.sources]
        for name in names:
            if not name or "/" in name or name.startswith("."):
                raise RestoreError(f"sources: {name!r} cannot be a source's name")
            if names.count(name) > 1:
                raise RestoreError(f"sources: two are named {name!r}; give them different names")


def load(path, output=None, overrides=()):
    """The recipe for ``path``: a YAML file, or else a source by itself (folder, archive, URL list) with every default.

    ``overrides`` are pairs of a dotted key and a value. Raises RestoreError naming an unknown or wrong key.
    """
    is_recipe = str(path).endswith((".yaml", ".yml", ".json"))
    values = _read(path) if is_recipe else {"sources": [{"path": str(path)}]}
    base = Path(path).absolute().parent if is_recipe else Path.cwd()
    for key, value in overrides:
        *groups, last = key.split(".", 1) if key.startswith("rules.") else key.split(".")
        inner = values
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[last] = value
    for source in values.get("sources") or []:
        if isinstance(source, dict) and isinstance(source.get("path"), str):
            source["path"] = _resolve(base, source["path"], source.get("kind"))
            source["name"] = str(source.get("name") or _name(source["path"]))
    if isinstance(values.get("rules"), dict):              # rules.blurry.sharpness may come nested or dotted
        values["rules"] = recipes.flatten(values["rules"])
    made = recipes.from_dict(Recipe, values)
    made.output = str(output) if output else (
        _resolve(base, made.output) if made.output else str(base / f"{_name(str(path))}-build"))
    made.thresholds = made.thresholds and _resolve(base, made.thresholds)
    made.measure.niqe = made.measure.niqe and _resolve(base, made.measure.niqe)
    made.measure.plugins = [_resolve(base, plugin) for plugin in made.measure.plugins]
    made.join.benchmarks = [_resolve(base, folder) for folder in made.join.benchmarks]
    return made


def _read(path):
    values = recipes.read_yaml(path)
    if not isinstance(values, dict):
        raise RestoreError(f"{path}: expected keys and values, with a list `sources`")
    return values


def _resolve(base, path, kind=None):
    if "://" in path or Path(path).is_absolute():
        return path
    if kind == "dataset" and not (base / path).exists():
        return path                        # a name on the Hub
    return str(base / path)


def _name(path):
    last = path.rstrip("/").rsplit("/", 1)[-1]
    return last.split(".")[0].strip("*?[]") or "source"
