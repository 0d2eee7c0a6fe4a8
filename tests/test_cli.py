"""The command line: overview, unknown commands, errors without tracebacks."""

import json
import subprocess
import sys

import pytest

from restore import RestoreError, __version__, create_model, save
from restore.cli import COMMANDS, guarded, main

from test_models import TINY


def test_overview_lists_every_command(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in COMMANDS)


def test_version(capsys):
    assert main(["--version"]) == 0 and __version__ in capsys.readouterr().out


def test_unknown_command_is_named(capsys):
    assert main(["restor"]) == 2
    assert "'restor'" in capsys.readouterr().err


def test_the_command_runs_as_a_module():
    result = subprocess.run([sys.executable, "-m", "restore", "--version"], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("anydepth")


@pytest.mark.parametrize("error, status, says", [(RestoreError("photo.jpg: is empty"), 1, "photo.jpg: is empty"),
                                                 (KeyboardInterrupt(), 130, "interrupted")])
def test_a_users_error_is_one_line(capsys, error, status, says):
    def fail():
        raise error
    assert guarded("restore run", fail) == status
    assert capsys.readouterr().err.splitlines() == [f"restore run: {'error: ' if status == 1 else ''}{says}"]


def test_an_error_of_ours_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        guarded("restore run", lambda: 1 / 0)


def test_info_tells_parameters_and_macs_per_depth(tmp_path, capsys):
    save(create_model("dynet", **TINY["dynet"]), tmp_path / "m", provenance={"steps": 12})
    assert main(["info", str(tmp_path / "m"), "--depth", "1,1,1,1", "--size", "64x64"]) == 0
    text = capsys.readouterr().out
    assert "small        2,3,3,4" in text and "large" in text and "steps: 12" in text
    assert main(["info", str(tmp_path / "m"), "--size", "64x64", "--json"]) == 0
    report, = json.loads(capsys.readouterr().out)
    assert report["depths"]["large"]["macs"] > report["depths"]["small"]["macs"] > 0


def test_info_goes_on_after_a_bad_name(capsys):
    assert main(["info", "nothing", "gunet_t"]) == 1
    printed = capsys.readouterr()
    assert "nothing" in printed.err and "0.845 M" in printed.out


@pytest.mark.parametrize("size", ["256", "0x3", "axb"])
def test_info_refuses_a_size_that_is_none(capsys, size):
    assert main(["info", "gunet_t", "--size", size]) == 1
    assert size in capsys.readouterr().err
