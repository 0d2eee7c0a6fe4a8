"""Supervised workers: order, deaths, hangs; the same rows from Ray."""

import os
import signal
import time

import pytest

from data_tools import engine
from restore.errors import RestoreError


def factory(folder):
    """A function that squares, and does to its worker what some items say."""
    def work(item):
        if item == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if item == "exit":
            os._exit(3)
        if item == "hang":
            time.sleep(1000)
        if isinstance(item, tuple):                      # dies the first time only
            mark = os.path.join(folder, f"{item[1]}")
            if not os.path.exists(mark):
                open(mark, "w").close()
                os.kill(os.getpid(), signal.SIGKILL)
            return item[1]
        return item * item
    return work


def broken():
    raise OSError("no such model")


HERE = "test_data_tools_engine"


def run(items, folder, **options):
    return list(engine.run(f"{HERE}:factory", {"folder": str(folder)}, items, **options))


def test_results_come_in_order_and_deaths_cost_one_item(tmp_path):
    items = [*range(40), "die", *range(40, 60), ("once", 7), "exit", 61]
    results = run(items, tmp_path, workers=2)
    assert [r for r in results if not isinstance(r, engine.Failure)] == [
        *(k * k for k in range(60)), 7, 61 * 61] and len(results) == len(items)
    assert results[40].reason.startswith("crash: ") and "SIGKILL" in results[40].reason
    assert "exit status 3" in results[62].reason


def test_a_hanging_item_is_given_up(tmp_path):
    results = run([1, "hang", 2, 3], tmp_path, workers=1, timeout=1.0)
    assert results[0] == 1 and results[2:] == [4, 9]
    assert results[1].reason.startswith("timeout: ")


def test_items_are_read_as_they_are_needed(tmp_path):
    taken = []

    def items():
        for k in range(500):
            taken.append(k)
            yield k
    results = engine.run(f"{HERE}:factory", {"folder": str(tmp_path)}, items(), workers=1, window=20)
    assert [next(results) for _ in range(30)] == [k * k for k in range(30)]
    assert len(taken) <= 60
    results.close()


def test_workers_that_cannot_start_say_why():
    with pytest.raises(RestoreError, match="no such model"):
        list(engine.run(f"{HERE}:broken", {}, [1, 2], workers=1))


@pytest.mark.slow
def test_ray_gives_the_same_and_survives_a_death(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.path.dirname(__file__), os.getcwd()]))
    pytest.importorskip("ray", reason="ray is an extra")
    from data_tools import ray_engine
    items = [*range(100), ("once", 7), "die", 101]
    results = list(ray_engine.run(f"{HERE}:factory", {"folder": str(tmp_path)}, items, workers=2, chunk=8))
    assert results[:101] == [*(k * k for k in range(100)), 7] and results[102] == 101 * 101
    assert results[101].reason.startswith("crash: ")
