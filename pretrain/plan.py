"""What a pre-training run will cost, before it runs: images, steps, parameters, MACs by strategy, memory, hours.

The paper says that alternating between two depths takes half of the GPU hours of training each by itself. That compares
N alternating steps with N steps for each; but alternating gives each depth N/2 updates only. The table shows that
comparison and the other one, in which the separate networks get as many samples as each depth saw.
"""

import contextlib
import dataclasses

import torch

from restore import branches as branching
from restore.depth import count_macs, count_parameters, format_depth, parse_depth
from restore.memory import keep_freed_memory
from restore.models import create_model

from .bench import step_seconds
from .run import build_data, build_model

NOTES = """\
  equal steps: against one network a depth with as many steps each, as the paper counts; each of them sees every sample.
  equal samples: against one network a depth, each for as many samples as that depth sees here. The arithmetic is the
  same, whatever the strategy; sharing saves parameters, and whether it saves samples is for an experiment to show.
""".splitlines()


def plan(recipe, timed=2):
    """The plan as text; ``timed`` training steps of each depth are run on this device to tell the hours (0: none)."""
    keep_freed_memory()
    model = build_model(recipe)
    trained = branching.depth_names(model, recipe.branches)
    corpus, pairs = build_data(recipe)
    side, samples = recipe.data.crop, recipe.steps * recipe.batch_size
    count = "unknown (a stream)" if corpus.count is None else f"{corpus.count:,}"
    passes = "" if corpus.count is None else f", {samples / corpus.count:,.1f} passes over the images"
    lines = [f"images       {count} of {recipe.data.source}, and {len(pairs)} validation pairs",
             f"samples      {recipe.steps:,} steps x {recipe.batch_size} of {side}x{side} = {samples:,}{passes}",
             f"network      {model.name}, {count_parameters(model):,} parameters",
             f"strategy     {recipe.branches.strategy}" + (", distilled" if recipe.branches.distill else ""),
             *_memory(recipe, model, trained), ""]
    names = list(model.depths) or [None]
    if recipe.branches.strategy.startswith("single:"):
        names = list(dict.fromkeys([*names, *trained]))
    cost = {name: 3 * count_macs(model, side, side, parse_depth(name)) for name in names}
    names = sorted(names, key=cost.get)
    seconds, note = _timed(recipe, model, names, timed) if timed else ({}, "")
    lines += ["depth           repeats      GMACs a sample" + ("   seconds a step" if seconds else "")]
    for name in names:
        repeats = format_depth(model.repeats(parse_depth(name))) or "fixed"
        lines.append(
            f"{name or 'only':14}  {repeats:11}  {cost[name] / 1e9:14.2f}"
            + (f"  {seconds[name]:15.3f}" if seconds else "")
        )
    lines += ["  (forward and backward: three times the forward pass)", *([note] if note else [])]
    if len(names) > 1:
        lines += ["", *_strategies(recipe, names, cost, seconds)]
    elif seconds:
        lines += ["", f"hours        {recipe.steps * seconds[names[0]] / 3600:.2f}"]
    return "\n".join(lines)


def _strategies(recipe, names, cost, seconds):
    """The table: each strategy against training every depth by itself."""
    batch, samples = recipe.batch_size, recipe.steps * recipe.batch_size
    column = max(14, *(len(name) + 2 for name in names))
    others = [recipe.branches.strategy] if recipe.branches.strategy.startswith("single:") else []
    rows = [("separately, each", dict.fromkeys(names, 1.0))]
    for strategy in ("alternate", "per_sample", "sandwich", "largest_only", *others):
        chosen = "* " if strategy == recipe.branches.strategy else "  "
        other = recipe.branches if chosen == "* " else dataclasses.replace(recipe.branches, strategy=strategy, grow=0.0)
        rows.append((chosen + strategy, branching.shares(other, names)))
    seen = "samples seen by each depth"
    lines = [f"{'':20}{'GMACs':>10}  {seen:<{column * len(names)}}{'PMACs':>10}  of separate training, with",
             f"{'':20}{'a step':>10}  " + "".join(f"{name:<{column}}" for name in names)
             + f"{'the run':>10}  {'equal steps':>13}  {'equal samples':>13}" + ("     hours" if seconds else "")]
    every = sum(cost[name] for name in names)
    for label, share in rows:
        macs = sum(cost[name] * part for name, part in share.items())
        seen = "".join(f"{round(share.get(name, 0.0) * samples):<{column},}" for name in names)
        hours = sum(seconds[name] * part for name, part in share.items()) * recipe.steps / 3600 if seconds else 0
        line = f"{label:20}{macs * batch / 1e9:10,.1f}  {seen}{macs * samples / 1e15:10,.3f}"
        lines.append(f"{line}  {macs / every:13.0%}  {1:13.0%}" + (f"  {hours:8.2f}" if seconds else ""))
    return [*lines, *NOTES]


def _timed(recipe, model, names, steps):
    """``({depth: seconds of a step on this device}, note)``; on a CPU a small batch is timed and scaled up."""
    device = torch.device("cuda" if torch.cuda.is_available() and recipe.device != "cpu" else "cpu")
    micro = max(recipe.batch_size // recipe.accumulate, 1)
    batch = micro if device.type == "cuda" else min(micro, 2)
    seconds = {}
    for name in names:
        fresh = create_model(model.name, **model.config)
        taken, peak = step_seconds(fresh, parse_depth(name), batch, recipe.data.crop, device, steps, recipe.precision,
                                   recipe.channels_last, recipe.compile)
        seconds[name] = taken * recipe.batch_size / batch
    where = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else f"this CPU, {torch.get_num_threads()} threads"
    )
    scaled = f", timed with {batch} samples and scaled to {recipe.batch_size}" if batch != recipe.batch_size else ""
    return (
        seconds,
        f"  (one device: {where}, {recipe.precision}{scaled}; data, validation and checkpoints not counted"
        + (f"; peak {peak / 1e9:.1f} GB)" if peak else ")"),
    )


def _memory(recipe, model, names):
    """Lines on memory: what the weights need, and what the deepest pass keeps for its backward, by one sample."""
    deepest = max(names, key=lambda name: count_macs(model, 64, 64, parse_depth(name)))
    micro = max(recipe.batch_size // recipe.accumulate, 1)
    kept = saved_bytes(model, parse_depth(deepest), recipe.data.crop, recipe.precision) * micro
    copies = 4 + bool(recipe.ema)                   # weights, gradients, two moments of Adam, their average
    weights = 4 * copies * count_parameters(model)
    disk = 4 * (copies - 1) * count_parameters(model) * (recipe.keep_checkpoints + 1)
    total, kept = f"about {(weights + kept) / 1e9:.2f} GB on one device", f"{kept / 1e9:.2f} for the backward pass"
    return [f"memory       {total}: {weights / 1e9:.2f} for weights and optimizer, {kept} of {micro} samples",
            f"disk         {disk / 1e9:.2f} GB for {recipe.keep_checkpoints} checkpoints and the one being written"]


def saved_bytes(model, depth, side, precision="fp32"):
    """Bytes that a forward pass of one ``side`` x ``side`` sample keeps for its backward pass, without the weights."""
    known = {p.untyped_storage()._cdata for p in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            kept[storage._cdata] = storage
        return tensor
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), \
            torch.autocast("cpu", half) if half else contextlib.nullcontext():
        model(torch.rand(1, 3, side, side), depth)
    return sum(storage.nbytes() for storage in kept.values())
