"""URL lists, fetched politely into tar shards in the work folder.

Bounded concurrency, in all and per host; retries with growing pauses for what may pass (timeouts, broken connections,
429 and 5xx, ``Retry-After`` respected); opt-outs in ``X-Robots-Tag`` headers respected; a size cap; only http and
https, also after redirects. Every address gets a row: those that gave no image carry the reason.

A shard holds the images of a fixed range of the list and is committed by rename with its index, so a killed download
goes on at the first shard that is missing and what is there is never fetched again.
"""

import hashlib
import http.client
import io
import json
import random
import tarfile
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from itertools import islice
from urllib.parse import urlsplit

from tqdm import tqdm

from restore.files import atomic_path, discard_half_written, require_space, write_bytes

from . import sidecars
from .containers import locator
from .header import sniff

_RETRIED = {408, 425, 429, 500, 502, 503, 504}
_CHUNK = 1 << 16
_VALUED = ("unavailable_after", "max-snippet", "max-image-preview", "max-video-preview")    # directives with a colon


class Failed(Exception):
    """One address that gave no image; the text is the reason, ``KIND: text``."""


def fetch(entries, source, store, settings):
    """Download ``entries`` (dictionaries with ``url``) and yield one dictionary of scan fields for each, in order."""
    fetcher = Fetcher(settings)
    entries = iter(entries)
    folder = store.path("download", source.name)
    number = total = 0
    with tqdm(desc=f"download {source.name}", unit="url", disable=None) as progress:
        while True:
            chunk = list(islice(entries, min(settings.urls_per_shard, (source.limit or 1 << 60) - total)))
            if not chunk:
                return
            yield from _shard(folder, number, chunk, fetcher, settings, progress)
            number, total = number + 1, total + len(chunk)


def _shard(folder, number, chunk, fetcher, settings, progress):
    shard, index = folder / f"shard-{number:05d}.tar", folder / f"shard-{number:05d}.json"
    key = hashlib.sha256("\n".join(entry["url"] for entry in chunk).encode()).hexdigest()[:16]
    try:
        known = json.loads(index.read_text())
    except (OSError, ValueError):
        known = None
    if known is None or known["key"] != key or not shard.exists():
        require_space(folder, 1 << 26, "downloading")
        for half in (shard, index):
            discard_half_written(half)
        known = {"key": key, "results": _download(shard, chunk, fetcher, settings, progress)}
        write_bytes(index, json.dumps(known, sort_keys=True) + "\n")
    else:
        progress.update(len(chunk))
    for k, (entry, result) in enumerate(zip(chunk, known["results"])):
        fields = sidecars.fields({name: value for name, value in entry.items() if name is not None})
        fields["provenance"] |= {"content_type": result.get("type"), "final_url": result.get("final")}
        row = {"name": f"{number:05d}/{k:05d}{result.get('suffix', '')}", "container": shard.name, **fields,
               "url": entry["url"]}
        if result.get("error"):
            yield row | {"error": result["error"]}
        else:
            offset, size = result["at"]
            yield row | {"locator": locator("tar", f"{offset}-{size}", str(shard)), "bytes": size}


def _download(shard, chunk, fetcher, settings, progress):
    results = []
    # the window bounds memory: at most this many finished images wait for their turn in the shard
    window = 4 * settings.concurrency
    with ThreadPoolExecutor(settings.concurrency) as pool, atomic_path(shard) as temporary, \
            open(temporary, "wb") as raw, tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as archive:
        waiting = []
        queue = iter(chunk)
        while True:
            waiting += [pool.submit(fetcher, entry["url"]) for entry in islice(queue, window - len(waiting))]
            if not waiting:
                break
            result, data = waiting.pop(0).result()
            if data is not None:
                member = tarfile.TarInfo(f"{len(results):05d}{result['suffix']}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
                result["at"] = [archive.offset - -(-len(data) // 512) * 512, len(data)]
            results.append(result)
            progress.update(1)
    return results


class Fetcher:
    """Fetches one address at a time per thread, with a limit per host: ``fetcher(url) -> (result, data)``."""

    def __init__(self, settings):
        self.settings = settings
        self.opener = urllib.request.build_opener(_HttpOnly)
        for scheme in ("file", "ftp", "data"):
            self.opener.handle_open.pop(scheme, None)
        self.hosts, self.lock = {}, threading.Lock()

    def __call__(self, url):
        """``({"type", "final", "suffix"} or {"error"}, bytes or None)``; raises nothing for a bad address."""
        try:
            host = urlsplit(url).hostname
            if urlsplit(url).scheme not in ("http", "https") or not host:
                raise Failed("download: not an http or https address")
        except ValueError:
            return {"error": "download: not an address"}, None
        except Failed as error:
            return {"error": str(error)}, None
        with self.lock:
            limit = self.hosts.setdefault(host, threading.Semaphore(self.settings.per_host))
        for attempt in range(self.settings.retries + 1):
            try:
                with limit:
                    return self._once(url)
            except Failed as error:
                return {"error": str(error)}, None
            except urllib.error.HTTPError as error:
                reason, wait = f"download: {error.code} {error.reason}", _retry_after(error.headers.get("Retry-After"))
                error.close()
                if error.code not in _RETRIED:
                    break
            except (OSError, http.client.HTTPException, ValueError) as error:
                reason, wait = f"download: {type(error).__name__}: {error}", None
                if isinstance(error, ValueError):
                    break
            if attempt < self.settings.retries:
                pause = self.settings.backoff * 2 ** attempt
                time.sleep(min(60, wait) if wait is not None else pause * (0.75 + 0.5 * random.random()))
        return {"error": reason}, None

    def _once(self, url):
        settings, limit = self.settings, int(self.settings.max_mb * 1e6)
        started = time.monotonic()
        headers = {"User-Agent": settings.user_agent, "Accept": "image/*,*/*;q=0.5"}
        request = urllib.request.Request(_ascii(url), headers=headers)
        with self.opener.open(request, timeout=settings.timeout) as answer:
            refused = opted_out(answer.headers.get_all("X-Robots-Tag") or [], settings)
            if refused:
                raise Failed(f"opt-out: the server says {refused}")
            declared = answer.headers.get("Content-Length", "")
            if declared.isdigit() and int(declared) > limit:
                raise Failed(f"download: {int(declared) / 1e6:.0f} MB, more than the limit of {settings.max_mb:g} MB")
            parts, size = [], 0
            while part := answer.read(_CHUNK):
                parts.append(part)
                size += len(part)
                if size > limit:
                    raise Failed(f"download: more than the limit of {settings.max_mb:g} MB")
                if time.monotonic() - started > 6 * settings.timeout:
                    raise TimeoutError("too slow")
            if declared.isdigit() and size < int(declared):
                raise OSError("the connection ended early")
            data = b"".join(parts)
            kind = sniff(data) if data else None
            suffix = {"JPEG": ".jpg", "JPEG2000": ".jp2", "TIFF": ".tif"}.get(kind, f".{kind.lower()}" if kind else "")
            final = answer.geturl() if answer.geturl() != url else None
            return {"type": answer.headers.get_content_type(), "final": final, "suffix": suffix}, data


class _HttpOnly(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, request, fp, code, msg, headers, newurl):
        if urlsplit(newurl).scheme not in ("http", "https"):
            raise Failed("download: redirected to something that is not http")
        return super().redirect_request(request, fp, code, msg, headers, newurl)


def opted_out(headers, settings):
    """The directive in ``X-Robots-Tag`` values that forbids our use, or None.

    A directive may be addressed to one robot (``name: noai``); those to others do not concern us.
    """
    for header in headers:
        robot = None
        for token in header.split(","):
            name, colon, rest = token.strip().partition(":")
            if colon and name.strip().lower() not in _VALUED:
                robot, token = name.strip().lower(), rest
            if robot in (None, "*", settings.user_agent.lower()) and token.strip().lower() in settings.opt_out:
                return token.strip().lower()
    return None


def _retry_after(value):
    if not value:
        return None
    if value.strip().isdigit():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


def _ascii(url):
    return urllib.request.quote(url, safe="%/:=&?~#+!$,;'@()*[]")
