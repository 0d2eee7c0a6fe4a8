"""Speed of pre-training on this machine: the data pipeline on one core and one training step, on a GPU in all variants.

Pipeline times are CPU time of one thread, which other programs do not change; steps are wall time.
"""

import argparse
import contextlib
import time
from pathlib import Path

import torch

from restore.depth import count_parameters
from restore.errors import RestoreError
from restore.losses import L1
from restore.memory import keep_freed_memory
from restore.models import create_model
from restore.recipe import from_dict

from . import mixture
from .recipe import Recipe

# What the pipeline is measured with: each stage at work on each sample.
MIXTURES = {
    "noise + JPEG + masking": {"noise": {"probability": 1}, "jpeg": {"probability": 1}},
    "noise": {"targets": {"tasks": {"noise": 1}}, "masking": {"probability": 0}},
    "rain": {"targets": {"tasks": {"rain": 1}}, "masking": {"probability": 0}},
    "haze": {"targets": {"tasks": {"haze": 1}}, "masking": {"probability": 0}},
}
STAGES = {
    "decode": ("fetch",),
    "crop and turn": ("crop",),
    "noise": ("gaussian", "uniform"),
    "JPEG": ("jpeg",),
    "masking": ("mask",),
    "rain": ("random_rain",),
    "haze": ("random_haze",),
    "random numbers": ("numpy_rng", "torch_generator", "random_window"),
}
VARIANTS = {                        # what a CUDA device is offered, from plain to fast
    "fp32": {}, "bf16": {"precision": "bf16"}, "bf16, channels last": {"precision": "bf16", "channels_last": True},
    "bf16, compiled": {"precision": "bf16", "compiled": True},
    "bf16, channels last, compiled": {"precision": "bf16", "channels_last": True, "compiled": True},
}


def main(argv):
    """``python -m pretrain bench``."""
    parser = argparse.ArgumentParser(prog="python -m pretrain bench", description=__doc__)
    parser.add_argument("--data", help="folder of clean images; by default a few photos of 481x321, made on the spot")
    parser.add_argument("--crop", type=int, default=128, help="side of the samples in pixels")
    parser.add_argument(
        "--samples", type=int, default=300, help="samples to time for each task; 0 leaves the pipeline out"
    )
    parser.add_argument("--steps", type=int, default=3, help="training steps to time; 0 leaves them out")
    parser.add_argument("--batch", type=int, help="samples in a step (2 on a CPU, 32 on a GPU)")
    parser.add_argument("--width", type=int, default=48, help="of DyNet")
    parser.add_argument("--depth", default="large", help="of DyNet")
    options = parser.parse_args(argv)
    for name in ("samples", "steps"):
        if getattr(options, name) < 0:
            raise RestoreError(f"--{name}: {getattr(options, name)} is negative")
    keep_freed_memory()
    if options.samples:
        with contextlib.ExitStack() as stack:
            print(bench_pipeline(options.data or stack.enter_context(_photos()), options.crop, options.samples))
    if options.steps:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        batch = options.batch or (32 if device.type == "cuda" else 2)
        print(bench_steps(options.width, options.depth, batch, options.crop, options.steps, device))


def bench_pipeline(folder, crop, count):
    """Text: samples a second on one core for each mixture, and the milliseconds that each stage takes."""
    from restore.corpus import open_corpus
    corpus = open_corpus(folder)
    lines = [
        f"Data pipeline, {crop}x{crop} from {corpus.count} images, each decoded anew, one core, {count} samples each",
        "",
        f"{'':24}  samples/s  ms a sample, of which",
    ]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name, values in MIXTURES.items():
            recipe = from_dict(Recipe, {**values, "data": {"source": str(folder), "crop": crop, "cache_mb": 0}})
            samples = mixture.Mixture(corpus, recipe)
            seconds = _cpu_seconds(samples, 20, count)
            with _stages(samples) as spent:
                traced = _cpu_seconds(samples, 20, count)
            shares = ", ".join(
                f"{stage} {1000 * t / (count + 20) * seconds / traced:.2f}" for stage, t in spent.items() if t
            )
            lines.append(f"{name:24}  {count / seconds:9.0f}  {1000 * seconds / count:.2f}: {shares}")
    finally:
        torch.set_num_threads(threads)
    return "\n".join([*lines, ""])


def bench_steps(width, depth, batch, crop, steps, device):
    """Text: seconds of one training step (forward, backward, AdamW), in fp32 and in the faster variants."""
    lines = [
        f"One training step of DyNet, width {width}, depth {depth}, batch {batch}, {crop}x{crop}, on {_name(device)}",
        "",
        f"{'':30}  seconds  steps/s  against fp32" + ("  peak memory" if device.type == "cuda" else ""),
    ]
    first = None
    for name, options in (VARIANTS if device.type == "cuda" else {"fp32": {}, "bf16": {"precision": "bf16"}}).items():
        torch.manual_seed(0)
        model = create_model("dynet", width=width)
        seconds, memory = step_seconds(model, depth, batch, crop, device, steps, **options)
        first = first or seconds
        lines.append(f"{name:30}  {seconds:7.3f}  {1 / seconds:7.2f}  {first / seconds:11.2f}x"
                     + (f"  {memory / 1e9:8.1f} GB" if memory else ""))
    return "\n".join([*lines, f"{count_parameters(model) / 1e6:.2f} M parameters", ""])


def step_seconds(model, depth, batch, crop, device, steps=3, precision="fp32", channels_last=False, compiled=False):
    """``(seconds of one training step, peak bytes on a GPU or 0)``: the median of ``steps``, after a warm-up."""
    model = model.to(device).train()
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    if compiled:
        model.compile()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    generator = torch.Generator().manual_seed(0)
    x, target = (torch.rand(batch, 3, crop, crop, generator=generator).to(device) for _ in range(2))
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    criterion, half = L1(), {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    times = []
    for _ in range(steps + (3 if cuda else 1)):
        if cuda:
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        with torch.autocast(device.type, half) if half else contextlib.nullcontext():
            output = model(x, depth)
        criterion(output, target).backward()
        optimizer.step()
        optimizer.zero_grad()
        if cuda:
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return sorted(times[-steps:])[steps // 2], torch.cuda.max_memory_allocated(device) if cuda else 0


def _cpu_seconds(samples, warmup, count):
    for k in range(warmup):
        samples.sample(k)
    start = time.thread_time()
    for k in range(warmup, warmup + count):
        samples.sample(k)
    return time.thread_time() - start


@contextlib.contextmanager
def _stages(samples):
    """Within the block the stages of ``samples`` are timed into the dictionary that is given."""
    spent, owners = {}, []

    def timed(stage, function):
        def call(*args, **kwargs):
            start = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                spent[stage] = spent.get(stage, 0.0) + time.thread_time() - start
        return call
    try:
        for stage, names in STAGES.items():
            for name in names:
                owner = samples.images if name == "fetch" else mixture
                owners.append((owner, name, getattr(owner, name)))
                setattr(owner, name, timed(stage, getattr(owner, name)))
        yield spent
    finally:
        for owner, name, function in owners:
            setattr(owner, name, function)


@contextlib.contextmanager
def _photos():
    """A temporary folder with photos of scikit-image as JPEGs of the size of the BSDS images."""
    import tempfile

    import cv2
    from skimage import data
    with tempfile.TemporaryDirectory() as folder:
        for number, photo in enumerate((data.astronaut(), data.coffee(), data.chelsea(), data.rocket())):
            small = cv2.resize(photo, (481, 321), interpolation=cv2.INTER_AREA)
            cv2.imwrite(str(Path(folder) / f"{number}.jpg"), small[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
        yield folder


def _name(device):
    return (
        torch.cuda.get_device_name(device) if device.type == "cuda" else f"this CPU ({torch.get_num_threads()} threads)"
    )
