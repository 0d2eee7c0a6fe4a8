"""FSDP2 in two gloo processes: torch's own functions by themselves, and a whole run through Accelerate."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow


def launched(processes, port, *command):
    """Run a script with its arguments in so many processes; returns what it printed."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", str(port)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*launch, *map(str, command)], cwd=Path(command[0]).parent, capture_output=True, text=True,
                          env=environment, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


SHARDED = """
import sys, torch
from torch import nn
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.device_mesh import init_device_mesh
from restore.averaging import Average
from restore.resume import RunFolder, apply, collect
dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (2,))

def build(sharded):
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.GELU(), nn.Conv2d(6, 3, 3, padding=1))
    if sharded:
        fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    return model, optimizer, Average(model, 0.5)

def steps(model, optimizer, average, numbers):
    for step in numbers:
        x = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(step))
        (model(x) - x).square().mean().backward()
        optimizer.step(); optimizer.zero_grad(); average.update(model, step + 1)

def state(parts):
    groups, scalars = collect(parts[0], parts[1])
    return {**groups, "ema": parts[2].state()}, scalars

folder = RunFolder(sys.argv[1], write=dist.get_rank() == 0)
whole = build(True); steps(*whole, range(6))
first = build(True); steps(*first, range(3))
groups, scalars = state(first)
folder.save(3, groups, {"scalars": scalars}, 2); dist.barrier()
_, groups, saved = folder.load()
second = build(True)
apply(second[0], second[1], groups, saved["scalars"]); second[2].load(groups["ema"]); steps(*second, range(3, 6))
plain = build(False); steps(*plain, range(6))
a, b, c = (state(parts)[0] for parts in (whole, second, plain))
if dist.get_rank() == 0:                                # collected in the main process
    for part in a:
        assert set(a[part]) == set(b[part]) == set(c[part]) and a[part], part
        for name in a[part]:
            assert torch.equal(a[part][name], b[part][name]), (part, name)
            assert torch.allclose(a[part][name], c[part][name], atol=1e-5), (part, name)
with second[2].applied(second[0]):
    pass
print("equal")
dist.destroy_process_group()
"""


def test_sharded_weights_are_saved_whole_and_resumed_exactly(tmp_path):
    (tmp_path / "sharded.py").write_text(SHARDED)
    assert launched(2, 29551, tmp_path / "sharded.py", tmp_path / "run").count("equal") == 2


# Accelerate turns FSDP on for accelerators alone. The first lines lift that; everything after them is Accelerate's and
# ours, as on GPUs.
RUN = """
import sys, torch
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from restore import training
from restore.models import create_model

whole = training._accelerator
def sharding(recipe, out):
    accelerator = whole(recipe, out)
    accelerator.state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
    return accelerator
out, kind, last = sys.argv[1], sys.argv[2], int(sys.argv[3])
if kind == "fsdp":
    training._accelerator = sharding

class Noisy:
    def sample(self, k):
        g = torch.Generator().manual_seed(k)
        target = torch.rand(3, 16, 16, generator=g)
        return {"input": target + torch.randn(3, 16, 16, generator=g) / 10, "target": target, "task": 0}

def stop(step, model):
    if kind == "fsdp":
        assert any(hasattr(p, "full_tensor") for p in model.parameters()), "nothing is sharded"
    if step == last:
        sys.exit(0)

torch.set_num_threads(1)
torch.manual_seed(0)
depths = {"small": (1, 1, 1, 1), "large": (2, 2, 2, 2)}
model = create_model("anydepth", width=(4, 4, 4, 4), depths=depths)
recipe = training.Training(steps=6, batch_size=4, accumulate=1 if kind == "fsdp" else 2, workers=0, device="cpu", lr=1e-2,
                           ema=0.9, log_every=1, checkpoint_every=2)
training.train(model, Noisy(), recipe, out, resume=True, on_step=stop)
"""


def test_a_run_through_accelerate_is_what_one_process_does_and_resumes_exactly(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(RUN)
    launched(2, 29553, script, tmp_path / "unbroken", "fsdp", -1)
    launched(2, 29554, script, tmp_path / "broken", "fsdp", 3)
    assert not (tmp_path / "broken" / "final").exists()
    launched(2, 29555, script, tmp_path / "broken", "fsdp", -1)
    launched(1, 29556, script, tmp_path / "plain", "plain", -1)
    unbroken, broken, plain = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("unbroken", "broken", "plain"))
    assert unbroken.keys() == plain.keys()
    for name in plain:
        assert torch.equal(unbroken[name], broken[name]), name
        assert torch.allclose(unbroken[name], plain[name], atol=1e-4), name
