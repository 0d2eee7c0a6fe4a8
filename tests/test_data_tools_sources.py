"""Sources: every image once, in one order, with its licence and address, and nothing that an archive may try."""

import io
import json
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_tools import containers, download, sources
from data_tools.recipe import Download, Source
from data_tools.store import Store
from restore.errors import ImageError, RestoreError


def image(seed):
    return cv2.imencode(".jpg", np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8))[1].tobytes()


def listed(path, tmp_path, **options):
    settings = options.pop("settings", Download())
    return list(sources.rows(Source(str(path), name="s", **options), Store(tmp_path / "work"), settings))


def contents(rows):
    return {row["name"]: containers.open_bytes(row["locator"]) for row in rows if not row["error"]}


def test_folders_with_sidecars_and_everything_that_holds_images(tmp_path):
    folder = tmp_path / "photos"
    (folder / "b").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    (folder / "a.JPG").write_bytes(image(1))
    (folder / "b" / "c.png").write_bytes(image(2))
    sidecar = {"license": "CC0", "url": "http://x/c", "key": 3, "nested": {"no": 1}}
    (folder / "b" / "c.json").write_text(json.dumps(sidecar))
    (folder / "b" / "c.txt").write_text("a caption\n")
    (folder / ".hidden" / "d.jpg").write_bytes(image(3))
    (folder / "notes.md").write_text("no image")
    with zipfile.ZipFile(folder / "z.zip", "w") as archive:
        archive.writestr("in/side.jpg", image(4))
    rows = listed(folder, tmp_path, licence="mine")
    assert [row["name"] for row in rows] == ["a.JPG", "b/c.png", "z.zip!in/side.jpg"]
    assert list(contents(rows).values()) == [image(1), image(2), image(4)]
    assert [row["licence"] for row in rows] == ["mine", "CC0", "mine"] and rows[1]["url"] == "http://x/c"
    assert json.loads(rows[1]["provenance"]) == {"caption": "a caption", "key": 3}
    assert len({row["id"] for row in rows}) == 3
    moved = folder.rename(tmp_path / "elsewhere")
    assert [row["id"] for row in listed(moved, tmp_path)] == [row["id"] for row in rows]
    with pytest.raises(ImageError, match="no longer there"):
        containers.open_bytes(rows[0]["locator"])


def tricky_tar(path):
    with tarfile.open(path, "w") as archive:
        def add(name, data, **fields):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            for key, value in fields.items():
                setattr(member, key, value)
            archive.addfile(member, io.BytesIO(data))
        add("../../escape.jpg", image(1))
        add("/etc/absolute.jpg", image(2))
        add("C:\\windows\\x.jpg", image(3))
        add("same.jpg", image(4))
        add("same.jpg", image(5))
        add("link.jpg", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add("hard.jpg", b"", type=tarfile.LNKTYPE, linkname="same.jpg")
        add("device.jpg", b"", type=tarfile.CHRTYPE)
        add("new\nline\x01.jpg", image(6))
        add("x" * 300 + ".jpg", image(7))


def test_path_tricks_are_harmless(tmp_path):
    tricky_tar(tmp_path / "t.tar")
    before = sorted(tmp_path.rglob("*"))
    rows = listed(tmp_path / "t.tar", tmp_path)
    names = [row["name"].split("!")[1] for row in rows]
    assert names[:6] == ["escape.jpg", "etc/absolute.jpg", "C_/windows/x.jpg", "same.jpg", "same~2.jpg",
                         "new_line_.jpg"]
    assert len(names) == 7 and len(names[6]) <= 200
    assert list(contents(rows).values()) == [image(k) for k in range(1, 8)]
    assert sorted(tmp_path.rglob("*")) == before and not (tmp_path.parent / "escape.jpg").exists()


@pytest.mark.parametrize("suffix, mode", [(".tar", "w"), (".tar.gz", "w:gz"), (".tar.xz", "w:xz")])
def test_webdataset_shards(tmp_path, suffix, mode):
    with tarfile.open(tmp_path / f"shard-000{suffix}", mode) as archive:
        for k in range(4):
            for name, data in ((f"{k:03d}.jpg", image(k)), (f"{k:03d}.json", json.dumps({"licence": f"L{k}"}).encode()),
                               (f"{k:03d}.txt", b"text")):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    rows = listed(tmp_path / f"shard-000{suffix}", tmp_path)
    assert [row["licence"] for row in rows] == ["L0", "L1", "L2", "L3"]
    assert list(contents(reversed(rows)).values()) == [image(k) for k in (3, 2, 1, 0)]
    assert {row["group"] for row in rows} == {f"s/shard-000{suffix}"}


def test_damaged_archives_give_what_is_before_the_damage(tmp_path):
    tricky_tar(tmp_path / "t.tar")
    data = (tmp_path / "t.tar").read_bytes()
    (tmp_path / "t.tar").write_bytes(data[:5 * 512] + b"\x55" * 512 * 4)
    rows = listed(tmp_path / "t.tar", tmp_path)
    assert rows and [bool(row["error"]) for row in rows][-1] in (True, False)
    (tmp_path / "z.zip").write_bytes(b"PK\x03\x04 not really")
    rows = listed(tmp_path / "z.zip", tmp_path)
    assert len(rows) == 1 and rows[0]["error"].startswith("corrupt: ")
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.jpg", b"\0" * 10_000_000)
    row = listed(tmp_path / "bomb.zip", tmp_path)[0]
    with pytest.raises(ImageError, match="bomb: "):
        containers.open_bytes(row["locator"], limit=1_000_000)


def test_parquet_and_saved_datasets(tmp_path):
    table = pa.table({"image": [{"bytes": image(k), "path": None} for k in range(5)],
                      "license": ["a", "b", None, "d", "e"],
                      "file_name": [f"n{k}.jpg" for k in range(5)]})
    pq.write_table(table, tmp_path / "p.parquet", row_group_size=2)
    rows = listed(tmp_path / "p.parquet", tmp_path)
    assert [row["name"] for row in rows] == [f"p.parquet!{k:08d}/n{k}.jpg" for k in range(5)]
    assert list(contents(rows).values()) == [image(k) for k in range(5)] and rows[1]["licence"] == "b"
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    saved = datasets.Dataset.from_dict({"picture": [image(k) for k in range(5)], "url": ["u"] * 5})
    saved = saved.cast_column("picture", datasets.Image(decode=False))
    saved.save_to_disk(str(tmp_path / "saved"), num_shards=2)
    rows = listed(tmp_path / "saved", tmp_path)
    assert list(contents(rows).values()) == [image(k) for k in range(5)] and rows[0]["url"] == "u"


def test_object_stores_through_fsspec(tmp_path):
    import fsspec
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/a.jpg", image(1))
    memory.pipe("/bucket/sub/b.jpg", image(2))
    rows = listed("memory://bucket", tmp_path)
    assert [row["name"] for row in rows] == ["a.jpg", "sub/b.jpg"]
    assert list(contents(rows).values()) == [image(1), image(2)]


def test_hostile_file_names_stay_apart_and_readable(tmp_path):
    folder = tmp_path / "odd"
    folder.mkdir()
    names = [b"a:b.jpg", b"a_b.jpg", b"new\nline.jpg", b"\xff\xfe.jpg", "图片.jpg".encode(), b"per%41cent.jpg"]
    for k, name in enumerate(names):
        with open(bytes(folder) + b"/" + name, "wb") as file:
            file.write(image(k))
    rows = listed(folder, tmp_path)
    assert len({row["name"] for row in rows}) == len(names) and all(row["name"].endswith(".jpg") for row in rows)
    assert sorted(contents(rows).values()) == sorted(image(k) for k in range(len(names)))


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(RestoreError, match="no such file or folder"):
        listed(tmp_path / "nothing", tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(RestoreError, match="no images"):
        listed(tmp_path / "empty", tmp_path)
    (tmp_path / "u.csv").write_text("link,licence\nhttp://x,y\n")
    with pytest.raises(RestoreError, match="url_column"):
        listed(tmp_path / "u.csv", tmp_path)


class Handler(BaseHTTPRequestHandler):
    """A server with moods; ``asked`` counts requests by path, ``most`` the requests that were under way at once."""

    asked, most, now, lock = {}, 0, 0, threading.Lock()

    def do_GET(self):
        kind = type(self)
        with kind.lock:
            kind.asked[self.path] = kind.asked.get(self.path, 0) + 1
            kind.now += 1
            kind.most = max(kind.most, kind.now)
        try:
            self.answer(kind.asked[self.path])
        finally:
            with kind.lock:
                kind.now -= 1

    def answer(self, times):
        name = self.path.strip("/")
        headers = {}
        if name == "missing.jpg" or (name == "flaky.jpg" and times < 3):
            self.send_error(404 if name == "missing.jpg" else 503)
            return
        if name == "moved.jpg":
            self.send_response(302)
            self.send_header("Location", "/0.jpg")
            self.end_headers()
            return
        if name == "trap.jpg":
            self.send_response(302)
            self.send_header("Location", "file:///etc/passwd")
            self.end_headers()
            return
        if name.startswith("noai"):
            headers["X-Robots-Tag"] = "noai, nofollow"
        if name.startswith("others"):
            headers["X-Robots-Tag"] = "otherbot: noindex"
        body = b"\0" * 3_000_000 if name == "large.jpg" else image(int(name[0]) if name[0].isdigit() else 9)
        self.send_response(200)
        self.send_header("Content-Type", "image/jpeg")
        if name != "large.jpg":
            self.send_header("Content-Length", str(len(body) * (2 if name == "short.jpg" else 1)))
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    Handler.asked, Handler.most = {}, 0
    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{running.server_address[1]}"
    running.shutdown()
    running.server_close()


SETTINGS = Download(concurrency=6, per_host=3, retries=3, backoff=0.01, timeout=5, max_mb=1, urls_per_shard=4)


def test_url_lists_are_fetched_politely_and_only_once(tmp_path, server):
    names = ["0.jpg", "1.jpg", "missing.jpg", "flaky.jpg", "noai.jpg", "others.jpg", "large.jpg", "moved.jpg",
             "trap.jpg", "short.jpg"]
    lines = [f"{server}/{name},CC-BY {k}" for k, name in enumerate(names)]
    lines += ["file:///etc/passwd,x", "ftp://127.0.0.1/x.jpg,x", "nonsense,x"]
    (tmp_path / "list.csv").write_text("url,license\n" + "\n".join(lines) + "\n")
    rows = listed(tmp_path / "list.csv", tmp_path, settings=SETTINGS)
    errors = {row["url"].rsplit("/", 1)[-1]: row["error"] for row in rows}
    good = [name for name in names if errors[name] is None]
    assert good == ["0.jpg", "1.jpg", "flaky.jpg", "others.jpg", "moved.jpg"]
    assert "404" in errors["missing.jpg"] and errors["noai.jpg"] == "opt-out: the server says noai"
    assert "limit of 1 MB" in errors["large.jpg"] and "not allowed" in errors["trap.jpg"]
    assert "ended early" in errors["short.jpg"]
    assert all("not an http" in row["error"] for row in rows[10:])
    assert list(contents(rows).values()) == [image(0), image(1), image(9), image(9), image(0)]
    assert [row["licence"] for row in rows[:3]] == ["CC-BY 0", "CC-BY 1", "CC-BY 2"]
    assert rows[0]["url"] == f"{server}/0.jpg"
    assert rows[0]["group"] == "s/127.0.0.1" and Handler.most <= 3
    assert Handler.asked["/flaky.jpg"] == 3 and Handler.asked["/missing.jpg"] == 1 and Handler.asked["/short.jpg"] == 4
    asked = dict(Handler.asked)
    assert listed(tmp_path / "list.csv", tmp_path, settings=SETTINGS) == rows and Handler.asked == asked
    shards = sorted((tmp_path / "work" / "download" / "s").glob("*.tar"))
    shards[1].unlink()                                    # as if killed before it was committed
    again = listed(tmp_path / "list.csv", tmp_path, settings=SETTINGS)
    assert [row["error"] for row in again] == [row["error"] for row in rows]
    assert Handler.asked["/1.jpg"] == asked["/1.jpg"] and Handler.asked["/noai.jpg"] == asked["/noai.jpg"] + 1


@pytest.mark.parametrize("header, refused", [
    ("noai", "noai"), ("NoImageAI", "noimageai"), ("all", None), ("max-snippet: 10", None), ("otherbot: noai", None),
    ("anydepth-data-tools: noindex", "noindex"), ("unavailable_after: 25 Jun 2030, noindex", "noindex")])
def test_opt_out_headers(header, refused):
    assert download.opted_out([header], Download()) == refused
