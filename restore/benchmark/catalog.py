"""What there is to measure, read from YAML: sets, protocols, suites and published numbers, each checked when it is read.

A user's own suite is a YAML file of the same form, given by its path. It may define ``sets`` and ``protocols`` of its own.
"""

import difflib
import functools
import hashlib
import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..errors import RestoreError

HERE = Path(__file__).parent
KINDS = ("clean", "pairs", "photos")
REFERENCE_MEASURES = ("psnr", "ssim")
PHOTO_MEASURES = ("fade", "piqe", "laplacian", "tenengrad", "contrast", "entropy", "pyiqa")


@dataclass(frozen=True)
class ImageSet:
    """A published set: see the head of ``data/sets.yaml`` for the fields."""

    key: str
    title: str
    kind: str
    task: str
    folders: tuple
    count: int | None = None
    names: tuple = ()
    sizes: tuple = ()
    clean_border: int = 0
    crc32: dict = field(default_factory=dict, hash=False)
    published: str = "not recorded"


@dataclass(frozen=True)
class Metric:
    """One number of an image: what is measured, of which channel, and whether larger is better (None: neither)."""

    name: str
    measure: str
    channel: str = "rgb"
    window: str = "uniform7"
    better: str | None = None
    model: str = ""
    weights: str = ""


@dataclass(frozen=True)
class Protocol:
    """How numbers are taken: see the head of ``data/protocols.yaml`` for the fields."""

    name: str
    title: str
    metrics: tuple
    noise: dict = field(default_factory=lambda: {"rule": "by-name"})
    align: int = 16
    border: int = 0
    round: str = "none"
    limit: float = 100.0

    def as_dict(self):
        """JSON-able, complete: what is written beside every number."""
        return asdict(self)

    def key(self):
        """Content hash of all that decides a score; the name and the title are free."""
        content = {k: v for k, v in self.as_dict().items() if k not in ("name", "title")}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]

    def describe(self):
        """One line for a reader."""
        if self.metrics[0].measure in PHOTO_MEASURES:
            names = "; ".join(m.name if m.name == m.measure else f"{m.name}: {m.measure}" for m in self.metrics)
            return f"{self.name} ({self.title}): output clipped to [0, 1] and rounded to 8 bits; {names}"
        rule = {"sequence": f"RandomState({self.noise.get('seed', 0)}) once a set and sigma, in order of name",
                "by-name": "seeded by crc32 of NAME:SIGMA"}[self.noise["rule"]]
        metrics = "; ".join(f"{m.name}: {m.measure}" + (f" of {m.channel}" if m.measure in REFERENCE_MEASURES else "")
                            + (f" {m.window}" if m.measure == "ssim" else "") for m in self.metrics)
        return (f"{self.name} ({self.title}): noise {rule}, truncated to 8 bits; cut to multiples of {self.align}; border "
                f"{self.border}; output clipped to [0, 1], {'not rounded' if self.round == 'none' else 'rounded to 8 bits'}; "
                f"{metrics}")


@dataclass(frozen=True)
class Entry:
    """One column of a suite: a set, at one noise level where noise is made."""

    set: ImageSet
    sigma: float | None = None

    @property
    def key(self):
        return self.set.key if self.sigma is None else f"{self.set.key}-{self.sigma:g}"

    @property
    def title(self):
        return self.set.title if self.sigma is None else f"{self.set.title} \u03c3={self.sigma:g}"


@dataclass(frozen=True)
class Suite:
    """What one run measures; ``complete`` is False after a selection of entries, whose mean is another number."""

    name: str
    title: str
    protocol: Protocol
    entries: tuple
    complete: bool = True


@dataclass(frozen=True)
class Published:
    """A row of ``data/published.yaml``; ``values`` by entry key, ``mean`` by suite name, all PSNR in dB."""

    model: str
    protocol: str
    mark: str
    source: str = ""
    values: dict = field(default_factory=dict)
    mean: dict = field(default_factory=dict)
    parameters: float | None = None
    gmacs: float | None = None
    macs_at: int | None = None
    note: str = ""


def suite_names():
    """Names of the suites that come along, sorted."""
    return sorted(path.stem for path in (HERE / "suites").glob("*.yaml"))


@functools.lru_cache(maxsize=1)
def image_sets():
    """Every known set by key."""
    path = HERE / "data" / "sets.yaml"
    return {key: _image_set(key, value, path) for key, value in _read(path).items()}


@functools.lru_cache(maxsize=1)
def protocols():
    """Every known protocol by name."""
    path = HERE / "data" / "protocols.yaml"
    return {key: _protocol(key, value, path) for key, value in _read(path).items()}


@functools.lru_cache(maxsize=1)
def published():
    """All published rows."""
    path = HERE / "data" / "published.yaml"
    return tuple(_build(Published, row, f"{path}: row {i}") for i, row in enumerate(_read(path), start=1))


def load_suite(name, protocol=None):
    """The suite called ``name``, a single set by its key, or the suite in a YAML file; ``protocol`` overrides its own.

    Raises :class:`RestoreError` that names the file, the key and what comes near for whatever is unknown or malformed.
    """
    if str(name).endswith((".yaml", ".yml")):
        path, title = Path(name), Path(name).stem
        if not path.is_file():
            raise RestoreError(f"{name}: no such suite file")
        data = _read(path)
    elif name in suite_names():
        path, title = HERE / "suites" / f"{name}.yaml", name
        data = _read(path)
    elif name in image_sets():
        path, title, only = Path(str(name)), str(name), image_sets()[name]
        data = {"title": only.title, "protocol": "no-reference" if only.kind == "photos" else "lineage",
                "entries": [{"set": name, **({"sigma": [15, 25, 50]} if only.kind == "clean" else {})}]}
    else:
        raise RestoreError(f"no suite is called {name!r}{_near(name, [*suite_names(), *image_sets()])}. There are "
                           f"{', '.join(suite_names())}, every set by itself ({', '.join(image_sets())}), and your own "
                           "by the path of a YAML file.")
    return _suite(title, data, path, protocol)


def _suite(name, data, path, protocol):
    where = str(path)
    _check_keys(data, ("title", "protocol", "entries", "sets", "protocols"), ("entries",), where)
    sets = {**image_sets(), **{k: _image_set(k, v, path) for k, v in (data.get("sets") or {}).items()}}
    known = {**protocols(), **{k: _protocol(k, v, path) for k, v in (data.get("protocols") or {}).items()}}
    chosen = protocol or data.get("protocol", "lineage")
    if chosen not in known:
        source = "--protocol" if protocol else where
        raise RestoreError(f"{source}: no protocol is called {chosen!r}{_near(chosen, known)}. There are {', '.join(known)}.")
    if not isinstance(data["entries"], list) or not data["entries"]:
        raise RestoreError(f"{where}: entries must be a list of sets, such as - {{set: cbsd68, sigma: [15, 25, 50]}}")
    entries = []
    for number, item in enumerate(data["entries"], start=1):
        here = f"{where}: entry {number}"
        _check_keys(item, ("set", "sigma"), ("set",), here)
        if item["set"] not in sets:
            raise RestoreError(f"{here}: no set is called {item['set']!r}{_near(item['set'], sets)}. There are "
                               f"{', '.join(sets)}; a set of your own goes under sets:")
        image_set, sigma = sets[item["set"]], item.get("sigma")
        if (image_set.kind == "clean") != (sigma is not None):
            raise RestoreError(f"{here}: {image_set.key} " + ("needs a sigma, since its noise is made here" if sigma is None
                                                              else f"is a set of {image_set.kind} and takes no sigma"))
        for level in sigma if isinstance(sigma, list) else [sigma]:
            if level is not None and (isinstance(level, bool) or not isinstance(level, (int, float)) or level < 0):
                raise RestoreError(f"{here}: sigma is a number of 0 or more (on the 0..255 scale), not {level!r}")
            entries.append(Entry(image_set, None if level is None else float(level)))
    keys = [entry.key for entry in entries]
    if len(set(keys)) < len(keys):
        raise RestoreError(f"{where}: {next(k for k in keys if keys.count(k) > 1)} is listed twice")
    photos = {entry.set.kind == "photos" for entry in entries}
    if len(photos) > 1 or photos.pop() != (known[chosen].metrics[0].measure in PHOTO_MEASURES):
        raise RestoreError(f"{where}: protocol {chosen} does not fit these sets: photos have no reference, so they take "
                           "no-reference measures and only they do")
    return Suite(name, data.get("title", name), known[chosen], tuple(entries))


def _image_set(key, value, path):
    where = f"{path}: set {key!r}"
    made = _build(ImageSet, {"key": key, **_mapping(value, where)}, where)
    if made.kind not in KINDS:
        raise RestoreError(f"{where}: kind is {', '.join(KINDS)}, not {made.kind!r}")
    names = tuple(name for pattern in made.names for name in _expand(str(pattern)))
    return ImageSet(**{**asdict(made), "folders": tuple(map(str, made.folders)), "names": names,
                       "sizes": tuple(tuple(size) for size in made.sizes)})


def _protocol(name, value, path):
    where = f"{path}: protocol {name!r}"
    value = dict(_mapping(value, where))
    metrics = []
    for metric, fields in _mapping(value.get("metrics"), f"{where}: metrics").items():
        made = _build(Metric, {"name": metric, **_mapping(fields, f"{where}: metric {metric!r}")},
                      f"{where}: metric {metric!r}")
        for key, allowed in (("measure", REFERENCE_MEASURES + PHOTO_MEASURES), ("channel", ("rgb", "y", "y8")),
                             ("window", ("uniform7", "skimage", "gaussian11", "pooled")), ("better", (None, "higher", "lower"))):
            _one_of(getattr(made, key), allowed, f"{where}: metric {metric!r}: {key}")
        metrics.append(Metric(**{**asdict(made), "better": "higher" if made.measure in REFERENCE_MEASURES else made.better}))
    made = _build(Protocol, {**value, "name": name, "metrics": tuple(metrics)}, where)
    _check_keys(_mapping(made.noise, f"{where}: noise"), ("rule", "seed"), ("rule",), f"{where}: noise")
    _one_of(made.noise["rule"], ("sequence", "by-name"), f"{where}: noise rule")
    _one_of(made.round, ("none", "8bit"), f"{where}: round")
    if made.align < 1 or made.border < 0:
        raise RestoreError(f"{where}: align is 1 or more and border 0 or more")
    return made


def _read(path):
    import yaml
    try:
        text = Path(path).read_text(encoding="utf-8")
        data = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))     # the C one is ten times faster
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RestoreError(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, (dict, list)):
        raise RestoreError(f"{path}: holds no suite; see the suites that come along, such as denoise.yaml")
    return data


def _build(kind, value, where):
    fields = kind.__dataclass_fields__
    required = [name for name, f in fields.items() if f.default is f.default_factory]        # both MISSING
    _check_keys(value, fields, required, where)
    return kind(**value)


def _check_keys(value, known, required, where):
    for key in _mapping(value, where):
        if key not in known:
            raise RestoreError(f"{where}: unknown key {key!r}{_near(key, known)}. Known are {', '.join(known)}.")
    missing = [key for key in required if key not in value]
    if missing:
        raise RestoreError(f"{where}: {', '.join(missing)} is missing")


def _one_of(value, allowed, where):
    if value not in allowed:
        raise RestoreError(f"{where} is {value!r}{_near(value, [a for a in allowed if a])}; it may be "
                           f"{', '.join(str(a) for a in allowed if a)}")


def _mapping(value, where):
    if not isinstance(value, dict):
        raise RestoreError(f"{where}: expected key: value lines, not {value!r}")
    return value


def _near(name, known):
    close = difflib.get_close_matches(str(name).lower(), [str(k) for k in known], 1, 0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def _expand(pattern):
    """``img_{001..100}`` as the hundred names that it stands for."""
    match = re.fullmatch(r"(.*)\{(\d+)\.\.(\d+)\}(.*)", pattern)
    if not match:
        return [pattern]
    head, first, last, tail = match.groups()
    return [f"{head}{number:0{len(first)}d}{tail}" for number in range(int(first), int(last) + 1)]
