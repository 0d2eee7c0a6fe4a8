"""Ours written and read back; published ones recognised; damaged ones named."""

import json
import pickle

import pytest
import torch
from safetensors.torch import save_file

from restore import CheckpointError, create_model, load, save
from restore.checkpoint import import_published
from restore.cli import main
from restore.published import convert

from golden import golden_state_dict
from test_models import TINY


def same_weights(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("target", ["folder", "file.safetensors"])
@pytest.mark.parametrize("name", ["dynet", "promptir", "gunet_t"])
def test_what_is_saved_is_loaded(tmp_path, name, target):
    model = create_model(name, **TINY[name])
    save(model, tmp_path / target, provenance={"steps": 7})
    again = load(tmp_path / target)
    assert same_weights(model, again) and again.config == model.config and again.name == name
    assert again.provenance == {"steps": 7} and not again.training


def test_a_folder_is_the_hubs_layout(tmp_path):
    save(create_model("gunet_t", width=8), tmp_path / "c")
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == ["config.json", "model.safetensors"]
    assert json.loads((tmp_path / "c" / "config.json").read_text())["model"] == "gunet_t"


def test_half_precision_files_load_as_float32(tmp_path):
    model = create_model("gunet_t", width=8)
    save(model, tmp_path / "half.safetensors", dtype=torch.float16)
    again = load(tmp_path / "half.safetensors")
    assert again.embed.weight.dtype == torch.float32
    torch.testing.assert_close(again.embed.weight, model.embed.weight, atol=1e-3, rtol=1e-3)


def test_narrow_and_named_depths_survive(tmp_path):
    model = create_model("dynet", width=8, refinement=2, prompt_channels=(8, 8, 16), prompt_sizes=(8, 8, 4),
                         depths={"small": (1, 1, 1, 2), "large": (2, 2, 2, 2)}, default_depth="small")
    save(model, tmp_path / "m")
    again = load(tmp_path / "m")
    assert again.depths == {"small": (1, 1, 1, 2), "large": (2, 2, 2, 2)} and again.repeats() == (1, 1, 1, 2)


@pytest.mark.parametrize("wrap", [lambda d: d, lambda d: {"state_dict": d}, lambda d: {"params": d},
                                  lambda d: {"state_dict": {f"net.{k}": v for k, v in d.items()}, "epoch": 3},
                                  lambda d: {f"module.{k}": v for k, v in d.items()},
                                  lambda d: {"params_ema": {f"module.net.{k}": v for k, v in d.items()}}])
def test_published_files_come_in_however_they_are_wrapped(tmp_path, wrap):
    published = golden_state_dict("gunet_t")
    torch.save(wrap(published), tmp_path / "weights.pth")
    model = import_published(tmp_path / "weights.pth")
    assert model.name == "gunet_t" and same_weights(model, convert(published))


def test_widths_and_blocks_are_read_off_the_shapes():
    """Our own narrow network, renamed back to the published names, comes in again."""
    narrow = create_model("dynet", width=16, heads=(1, 2, 2, 4), refinement=2, prompt_sizes=(16, 8, 4))
    published = {}
    for key in golden_state_dict("dynet"):
        if key.startswith("reduce_noise_channel") or key.startswith(("refinement.2", "refinement.3")):
            continue
        ours = next(iter(_rename(key)))
        value = narrow.state_dict()[ours]
        published[key] = value[None] if key.endswith("prompt_param") else value
    again = convert(published)
    assert same_weights(narrow, again) and again.config == narrow.config


def _rename(key):
    from restore.published import _renamed
    return _renamed({key: torch.zeros(1)}, "dynet")


def test_import_command(tmp_path, capsys):
    save_file(golden_state_dict("gunet_t"), tmp_path / "theirs.safetensors")
    assert main(["import", str(tmp_path / "theirs.safetensors"), "-o", str(tmp_path / "ours.safetensors")]) == 0
    assert "gunet_t, 0.845 M" in capsys.readouterr().out
    assert same_weights(load(tmp_path / "ours.safetensors"), convert(golden_state_dict("gunet_t")))


def truncated(path):
    save(create_model("gunet_t", width=8), path)
    path.write_bytes(path.read_bytes()[:5000])


def other_keys(path):
    torch.save({"layer1.weight": torch.zeros(2)}, path)


def dangerous(path):
    path.write_bytes(pickle.dumps({"state_dict": print}))


def one_missing(path):
    weights = golden_state_dict("gunet_t")
    del weights["skips.1.bias"]
    torch.save(weights, path)


def another_shape(path):
    torch.save(golden_state_dict("gunet_t") | {"skips.1.bias": torch.zeros(3)}, path)


@pytest.mark.parametrize("name, make, says", [
    ("a.safetensors", truncated, "cannot be read as weights"), ("a.pth", other_keys, "of no network known here"),
    ("a.pth", dangerous, "nothing that runs code"), ("a.pth", one_missing, "missing skips.1.bias"),
    ("a.pth", another_shape, "skips.1.bias is"), ("a.pth", lambda p: p.write_bytes(b""), "cannot be read"),
    ("a.pth", lambda p: torch.save([1, 2], p), "no tensors"), ("a.pth", lambda p: None, "no such file")])
def test_a_bad_file_is_named_and_nothing_is_written(tmp_path, capsys, name, make, says):
    make(tmp_path / name)
    assert main(["import", str(tmp_path / name), "-o", str(tmp_path / "out.safetensors")]) == 1
    error = capsys.readouterr().err
    assert says in error and name in error and "Traceback" not in error
    assert not (tmp_path / "out.safetensors").exists()


def test_load_tells_apart_what_it_cannot_read(tmp_path):
    with pytest.raises(CheckpointError, match="no bundled weights"):
        load("nowhere")
    with pytest.raises(CheckpointError, match="no model.safetensors"):
        load(tmp_path)
    truncated(tmp_path / "cut.safetensors")
    with pytest.raises(CheckpointError, match="damaged"):
        load(tmp_path / "cut.safetensors")
    save_file(golden_state_dict("gunet_t"), tmp_path / "theirs.safetensors")
    with pytest.raises(CheckpointError, match="restore import"):
        load(tmp_path / "theirs.safetensors")


def test_arch_that_contradicts_the_keys_is_refused():
    with pytest.raises(CheckpointError, match="keys are those of gunet_t"):
        convert(golden_state_dict("gunet_t"), "dynet")
    with pytest.raises(CheckpointError, match="4 blocks"):
        convert(golden_state_dict("gunet_t"), "gunet_s")
