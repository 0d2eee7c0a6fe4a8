"""What is said of an image beside it: ``X.json`` and ``X.txt`` next to ``X.jpg``, and the other columns of a table."""

import itertools
import json

from . import containers

SUFFIXES = (".json", ".txt")
LIMIT = 1 << 20                            # bytes; a larger file beside an image is no sidecar
_LICENCE, _CAPTION = ("licence", "license", "rights"), ("caption", "TEXT", "text")
_URL = ("url", "URL", "image_url", "original_url")


def read(path):
    """The first :data:`LIMIT` bytes of a sidecar file, or None."""
    try:
        with containers.open_file(path) as file:
            return file.read(LIMIT)
    except OSError:
        return None


def parse(json_bytes, text):
    """What :func:`fields` makes of the bytes of ``X.json`` and ``X.txt``, each of which may be None."""
    found = {}
    if json_bytes:
        try:
            found = json.loads(json_bytes)
        except (ValueError, RecursionError):
            pass
    found = dict(found) if isinstance(found, dict) else {}
    if text:
        found.setdefault("caption", text.decode("utf-8", "replace").strip())
    return fields(found)


def fields(record):
    """{"licence", "url", "provenance"} of a sidecar's or a row's fields; the rest is provenance, long texts cut."""
    def first(names):
        return next((str(record[name]) for name in names if record.get(name) not in (None, "")), None)
    kept = {str(key): (value[:500] if isinstance(value, str) else value)
            for key, value in sorted(record.items(), key=lambda item: str(item[0]))
            if isinstance(value, (str, int, float, bool)) and key not in (*_LICENCE, *_URL) and str(value) != "nan"}
    caption = first(_CAPTION)
    if caption:
        kept["caption"] = caption[:500]
    return {"licence": first(_LICENCE), "url": first(_URL), "provenance": dict(itertools.islice(kept.items(), 50))}
