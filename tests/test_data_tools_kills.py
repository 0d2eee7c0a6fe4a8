"""Builds that are killed, by `kill -9` at random moments and at every change on the disk: the bytes of an unbroken run."""

import io
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import cv2
import pyarrow as pa
import pytest
from work_folder import RULES, photo, write

from data_tools import store
from data_tools.store import Store

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("scan", "measure", "passes", "join", "decide", "report", "export")
RECIPE = """
sources: [{path: photos, licence: CC0-1.0}, {path: more.tar}, {path: rest.zip}]
thresholds: rules.yaml
workers: 2
join: {benchmarks: [test]}
export: {formats: [webdataset, parquet, files], shard_mb: 1.0, val_fraction: 0.3}
"""
# the command line with small parts, so that 300 images make seven of them
PROGRAM = """
import sys
from data_tools import scan
from data_tools.__main__ import main
scan.PART_ROWS = 48
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
"""
# The same again and again in forks (imports take longest). Each dies before the first change on the disk, a rename or a
# removal, that is not noted in the file of the first argument, and notes it.
DYING = PROGRAM.split("if __name__")[0] + """
import os, signal
from data_tools import build, card, decide, export, join, measuring, passes, report
notes, output = sys.argv[1], sys.argv[sys.argv.index("-o") + 1]
def dying(function):
    def changed(*arguments, **options):
        *folder, name = str(arguments[-1]).split(os.sep)
        change = " ".join([function.__name__, *folder[-2:], "hidden" if name.startswith(".") else name])
        if str(arguments[-1]).startswith(output) and change not in open(notes).read().splitlines():
            with open(notes, "a") as file:
                print(change, file=file)
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return changed
while True:
    pid = os.fork()
    if not pid:
        os.replace, os.unlink, os.rmdir = dying(os.replace), dying(os.unlink), dying(os.rmdir)
        os._exit(main(sys.argv[2:]))
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status != -signal.SIGKILL:
        sys.exit(status)
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A recipe over 300 files in a folder, a tar and a zip: photos, copies, near copies, a test image, broken files."""
    root = tmp_path_factory.mktemp("kills")
    folder = root / "photos"
    for seed in range(230):
        write(folder / f"{seed // 12:02d}" / f"{seed}.{'png' if seed % 29 == 5 else 'jpg'}", photo(seed, 210, 250))
    for seed in range(20):                                # exact copies, and the same picture saved again
        picture = (folder / f"{seed // 12:02d}" / f"{seed}.{'png' if seed % 29 == 5 else 'jpg'}").read_bytes()
        if seed % 2:
            (folder / f"copy{seed}.jpg").write_bytes(picture)
        else:
            write(folder / f"again{seed}.jpg", photo(seed, 210, 250), 60)
    good = (folder / "00" / "1.jpg").read_bytes()
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "page.jpg").write_bytes(b"<html>gone</html>")
    for k in range(8):
        (folder / f"cut{k}.jpg").write_bytes(good[:len(good) * (k + 1) // 10])
    with tarfile.open(root / "more.tar", "w") as tar, zipfile.ZipFile(root / "rest.zip", "w") as archive:
        for seed in range(300, 340):
            data = cv2.imencode(".jpg", photo(seed, 210, 250))[1].tobytes()
            if seed % 2:
                archive.writestr(f"{seed}.jpg", data)
            else:
                member = tarfile.TarInfo(f"{seed}.jpg")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    write(root / "test" / "7.png", photo(7, 210, 250))
    (root / "rules.yaml").write_text(RULES)
    (root / "recipe.yaml").write_text(RECIPE)
    return root / "recipe.yaml"


def start(recipe, output, *changes, program=(PROGRAM,), **options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}
    return subprocess.Popen([sys.executable, "-c", *program, "build", str(recipe), "-o", str(output), *changes],
                            cwd=ROOT, env=environment, text=True, **options)


def finished(recipe, output, *changes):
    """Run to the end; returns how long each stage took in seconds, by its own line."""
    process = start(recipe, output, *changes, stderr=subprocess.PIPE)
    _, lines = process.communicate()
    assert process.returncode == 0, lines
    took = {line.split()[0]: float(line.split()[1]) for line in lines.splitlines() if line.startswith(STAGES)}
    assert tuple(took) == STAGES
    return took


def contents(folder):
    """Every file below a folder, hidden ones too, and its bytes."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def unbroken(recipe):
    """The files of an unbroken build, and its times."""
    output = recipe.parent / "unbroken"
    took = finished(recipe, output)
    made = Store(output)
    kept, errors = made.read("decide")["keep"].to_pylist(), made.read("measure")["error"].drop_null()
    groups, shown = made.read("join")["duplicate_group"].drop_null(), made.read("join")["contaminated_by"].drop_null()
    assert len(kept) == 300 and 200 < sum(kept) < 290 and len(errors) == 10 and len(groups) >= 40 and len(shown) >= 1
    assert len(made.require("measure")["parts"]) == 7 and len(made.require("export")["parts"]) >= 5
    return contents(output), took


def killed_in(recipe, output, stage, delay):
    """Run until the stage before ``stage`` says that it is done, and ``delay`` seconds more; then kill -9. The stages that
    had finished by then, or None when the build was over."""
    process = start(recipe, output, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    before = STAGES[STAGES.index(stage) - 1] if stage != "scan" else None
    done = []
    while before is None and not (output / "scan").exists() and process.poll() is None:
        time.sleep(0.005)
    for line in process.stderr if before else ():
        done.append(line.split()[0])
        if line.startswith(before + " "):
            break
    time.sleep(delay)
    over = process.poll() is not None
    process.send_signal(signal.SIGKILL)
    done += [line.split()[0] for line in process.stderr.read().splitlines()]
    process.wait()
    return None if over else done


def test_leftovers_go_before_a_stage_counts_as_finished(tmp_path, monkeypatch):
    """A stage that is finished is not looked through again: what is removed after its manifest might stay for ever."""
    made = Store(tmp_path)
    made.write_part("join", "join.parquet", pa.table({"id": ["a"]}))
    for left in (".join.k3_x9a0b.parquet", "part-of-an-older-run.parquet"):
        (tmp_path / "join" / left).write_bytes(b"half")

    def killed(*_):
        raise KeyboardInterrupt
    monkeypatch.setattr(store, "write_bytes", killed)
    with pytest.raises(KeyboardInterrupt):
        made.finish("join", ["join.parquet"], 1)
    assert [path.name for path in (tmp_path / "join").iterdir()] == ["join.parquet"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_at_random_moments(recipe, unbroken, tmp_path):
    """Stages that keep what was done are killed more often, each time after a random part of what was left to do."""
    files, took = unbroken
    chance = random.Random(5)
    where = []
    for stage, times in {"scan": 2, "measure": 4, "passes": 1, "join": 2, "decide": 1, "report": 1, "export": 4}.items():
        for _ in range(times):
            done = killed_in(recipe, tmp_path / "broken", stage, chance.uniform(0, took[stage] / times))
            if done is not None:
                where.append(STAGES[len(done)] if len(done) < len(STAGES) else "end")
    finished(recipe, tmp_path / "broken")
    print("killed in", *where)
    assert len(where) >= 8 and len(set(where)) >= 4
    assert contents(tmp_path / "broken") == files


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_before_every_change_on_the_disk(recipe, unbroken, tmp_path):
    """Every commit of every stage is once the last thing that did not happen."""
    files, _ = unbroken
    (tmp_path / "notes").touch()
    process = start(recipe, tmp_path / "broken", "--workers", "1", program=(DYING, str(tmp_path / "notes")),
                    stderr=subprocess.PIPE)
    _, said = process.communicate()
    assert process.returncode == 0, said
    changes = (tmp_path / "notes").read_text().splitlines()
    print(len(changes), "deaths before:", *changes, sep="\n")
    assert len(changes) >= 40 and {line.split()[0] for line in changes} >= {"replace", "unlink"}
    broken = contents(tmp_path / "broken")
    assert broken.pop("recipe.json") == files["recipe.json"].replace(b'"workers": 2', b'"workers": 1')
    assert broken == {name: data for name, data in files.items() if name != "recipe.json"}


KILLER = """
import os, pathlib, signal
here = pathlib.Path(__file__).parent
def brightest(rgb, row):
    if row.get("sha256", b"").hex().startswith("7") and not (here / "died").exists():
        (here / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return rgb.max()
"""


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("engine", ["local", "ray"])
def test_a_worker_that_is_killed_leaves_no_trace(recipe, tmp_path, engine):
    """Two workers, one of which dies at an image (a plug-in kills its process once): the bytes of a run without deaths. For
    Ray that run is the embedded engine's."""
    if engine == "ray":
        pytest.importorskip("ray", reason="ray is an extra: pip install anydepth[ray]")
    (tmp_path / "killer.py").write_text(KILLER)
    changes = ["--measure.plugins", f"[{tmp_path}/killer.py:brightest]", "--engine"]
    finished(recipe, tmp_path / "broken", *changes, engine)
    assert (tmp_path / "died").exists()
    finished(recipe, tmp_path / "unbroken", *changes, "local")
    broken, files = contents(tmp_path / "broken"), contents(tmp_path / "unbroken")
    assert broken.pop("recipe.json").replace(f'"engine": "{engine}"'.encode(), b'"engine": "local"') == files.pop("recipe.json")
    assert broken == files
    table = Store(tmp_path / "broken").read("measure", ["error", "killer.score"])
    assert len(table["error"].drop_null()) == 10 == table["killer.score"].null_count
