"""Speed: the clock and the memory against what is known to take time and memory, and the command end to end."""

import json
import time

import numpy as np
import pytest
import torch
from test_models import TINY

from restore import RestoreError, speed
from restore.cli import main

CPU = torch.device("cpu")


def test_race_alternates_and_keeps_the_best():
    order, waits = [], {"a": iter([0.0, 0.03, 0.01]), "b": iter([0.0, 0.002, 0.02])}

    def side(name):
        order.append(name)
        time.sleep(next(waits[name]))

    clock = speed.Clock(CPU)
    clock.now = time.perf_counter            # sleeping takes no processor time
    rate = iter([5.0, 4.0])
    timings, tops = speed.race({"a": lambda: side("a"), "b": lambda: side("b")}, clock, 2, [lambda: next(rate)])
    assert order == ["a", "b"] * 3 and tops == [5.0]
    assert 0.01 <= timings["a"].seconds < 0.03 and 0.002 <= timings["b"].seconds < 0.02


def test_peak_memory_sees_what_was_freed():
    if speed.peak_memory(lambda: None, CPU) is None:
        pytest.skip("this system does not reset the high-water mark of a process")
    small, large = (speed.peak_memory(lambda size=size: np.ones(size, np.uint8), CPU) for size in (1, 300_000_000))
    assert 250e6 < large - small < 350e6
    assert speed.peak_memory(lambda: None, CPU) < large - 250e6


def test_rates_are_those_of_a_computer():
    clock = speed.Clock(CPU)
    assert 1e9 < speed.matrix_rate(clock, side=256) < 1e14
    assert 1e8 < speed.copy_rate(clock, 1 << 22) < 1e13


def test_traffic_counts_each_module_once():
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 1), torch.nn.Conv2d(8, 3, 1))
    network.forward = lambda x, depth: network[1](network[0](x))
    assert speed.traffic(network, torch.rand(1, 3, 4, 5), None) == 4 * 5 * 4 * (3 + 8 + 8 + 3)


def test_callables_of_files(tmp_path):
    file = tmp_path / "theirs.py"
    file.write_text("def plain(x): return x\ndef deep(x, depth): return depth\nnumber = 3\n")
    assert speed.load_callable(f"{file}:plain")(4, "small") == 4
    assert speed.load_callable(f"{file}:deep")(4, "small") == "small"
    for bad in (f"{file}:number", f"{file}:nothing", f"{tmp_path}/none.py:plain", "plain"):
        with pytest.raises(RestoreError, match="--against"):
            speed.load_callable(bad)


def test_command_measures_every_depth(tmp_path, capsys):
    from restore import create_model, save
    from restore.depth import count_macs
    model = create_model("dynet", **TINY["dynet"])
    save(model, tmp_path / "m.safetensors")
    (tmp_path / "theirs.py").write_text("def same(x): return x\n")
    assert main(["speed", "-m", str(tmp_path / "m.safetensors"), "--size", "24x40", "--rounds", "1", "--plain",
                 "--against", f"{tmp_path / 'theirs.py'}:same", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [(row["depth"], row["side"]) for row in facts["rows"]] == \
        [(depth, side) for depth in ("small", "large") for side in ("restore", "plain", "against")]
    for row in facts["rows"]:
        assert row["macs"] == count_macs(model, 24, 40, row["depth"])
        assert row["flops"] == pytest.approx(2 * row["macs"] / row["seconds"])
    assert isinstance(facts["freed_memory_kept"], bool)


def test_command_refuses_bad_options(capsys):
    assert main(["speed", "--threads", "0"]) == 1 and "--threads" in capsys.readouterr().err
    assert main(["speed", "--size", "12"]) == 1 and "--size" in capsys.readouterr().err
