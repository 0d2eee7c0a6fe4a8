"""The training loop, in sight: Accelerate, branches, EMA, schedule, exact resume, validation, log.

Whatever is drawn during a step is a function of (seed, step): the samples, the depths and torch's own generator, which
is seeded anew in every step. The weights, their averages and the optimizer's state are then all that a checkpoint
needs, and a resumed run ends with the same bits as an unbroken one.
"""

import contextlib
import errno
import importlib.util
import math
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from . import branches as branching
from .data import batches
from .depth import count_parameters, parse_depth
from .errors import RestoreError
from .files import require_space
from .losses import Criterion, build_loss
from .meters import Meters
from .muon import Muon
from .recipe import flatten, from_dict, to_dict
from .resume import RunFolder, apply, collect, whole_state
from .settings import Training, learning_rate, require_same

__all__ = ["Learner", "Training", "learning_rate", "train"]


class Learner(nn.Module):
    """The network and, beside it, the head that looks at the encoder's latent; ``final`` gets the network alone."""

    def __init__(self, network, head=None):
        super().__init__()
        self.network, self.head = network, head
        if head is not None and not hasattr(network, "latent"):
            raise RestoreError(f"{network.name} has no module called latent, which a classification head could look at")

    def forward(self, x, depth):
        """``(output, logits or None)``."""
        if self.head is None:
            return self.network(x, depth), None
        seen = []                       # a shared block runs several times; its last output is the latent
        with contextlib.closing(_Hook(self.network.latent, seen)):
            output = self.network(x, depth)
        return output, self.head(seen[-1])


class _Hook:
    def __init__(self, module, seen):
        self.handle = module.register_forward_hook(lambda module, inputs, output: seen.append(output))

    def close(self):
        self.handle.remove()


def train(model, samples, recipe, out, *, resume=False, validation=(), head=None, head_weight=0.1, on_step=None,
          criterion=None, provenance=None):
    """Train ``model`` and return the folder ``out/final`` with its averaged weights.

    model: a :class:`restore.models.base.RestorationModel` on the CPU; trained at ``model.depths`` as
        ``recipe.branches`` says.
    samples: an object whose ``sample(k)`` returns a dictionary: ``input`` and ``target`` (3, s, s) float32 in [0, 1],
        ``task`` int, and ``skipped`` str (names of files that had to be replaced, one a line; may be missing). It must
        depend on (seed, k) alone.
    recipe: a :class:`Training` or a dataclass that inherits it; written to ``out/recipe.yaml`` and compared with it on
        resume.
    out: folder of the run. Refused if it holds a run already, unless ``resume``; a ``resume`` where nothing was saved
        yet starts anew.
    validation: :class:`restore.validation.Pair` s, restored at every depth each ``validate_every`` steps.
    head: module from the encoder's latent (n, c, h, w) to logits of the task, trained beside it with cross-entropy
        times ``head_weight``, and not saved in ``final``.
    on_step: ``on_step(step, model)``, called before each step in training mode; must depend on ``step`` alone (gUNet
        freezes its norms).
    criterion: a :class:`restore.losses.Criterion`; by default one of ``recipe.loss``.
    provenance: more facts for ``final/config.json``: data manifest hash, corpus.

    Raises RestoreError: the run exists, the recipe changed, the loss is not finite for too long, the disk is full.
    """
    criterion = criterion or Criterion(build_loss(recipe.loss, recipe.frequency_weight))
    run = _Run(model, samples, recipe, out, resume, validation, head, head_weight, on_step, criterion, provenance)
    try:
        return run.run()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise RestoreError(f"{out}: {error.strerror}; {run.folder.what_is_kept()}") from None


class _Run:
    """One training run in one process."""

    def __init__(self, model, samples, recipe, out, resume, validation, head, head_weight, on_step, criterion, provenance):
        from .averaging import Average
        from .memory import keep_freed_memory
        keep_freed_memory()
        self.recipe, self.samples, self.validation, self.on_step = recipe, samples, validation, on_step
        self.head_weight, self.provenance = head_weight, provenance or {}
        self.depths = branching.depth_names(model, recipe.branches)
        self.repeats = {name: model.repeats(parse_depth(name)) or None for name in self.depths}
        self.accelerator = _accelerator(recipe, out)
        self.micro_batch = _micro_batch(recipe, self.accelerator.num_processes)
        self.folder = RunFolder(out, write=self.accelerator.is_main_process)
        saved = self._open(model, resume)

        if recipe.deterministic:
            torch.use_deterministic_algorithms(True, warn_only=True)
        if recipe.sync_batchnorm and self.accelerator.num_processes > 1:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        if recipe.channels_last:
            model = model.to(memory_format=torch.channels_last)
        if recipe.compile:
            torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 8 * len(self.depths))
            model.compile()
        learner = Learner(model, head)
        optimizer = _optimizer(learner, recipe)
        self.learner, self.optimizer = self.accelerator.prepare(learner, optimizer)
        self.network = self.accelerator.unwrap_model(self.learner).network
        self.average = Average(self.network, recipe.ema) if recipe.ema else None
        self.criterion = criterion.to(self.accelerator.device)
        self.parallel = isinstance(self.learner, nn.parallel.DistributedDataParallel)
        if self.parallel:       # the exchange copies such a gradient, which is all that the warning says
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        self.step, self.scores = 0, {}
        self.meters = Meters(self.accelerator, aloud=self.folder.write)
        if saved is not None:
            self._restore(*saved)
        self.ahead = None               # the micro-batch that was fetched before its step

    def _open(self, model, resume):
        """Decide whether this is a new run; returns the checkpoint to go on from, or None."""
        plain = to_dict(self.recipe)
        facts = {"seed": self.recipe.seed, "processes": self.accelerator.num_processes,
                 "device": _device_name(self.accelerator.device)}
        if not self.folder.holds_run():
            copies = (3 + bool(self.recipe.ema)) * (self.recipe.keep_checkpoints + 1) + 1
            require_space(self.folder.path, 4 * copies * count_parameters(model), "the run with its checkpoints")
            self.accelerator.wait_for_everyone()
            self.folder.describe(plain, facts)
            self.accelerator.wait_for_everyone()
            return None
        if not resume:
            raise RestoreError(f"{self.folder.path}: holds a run; add --resume to go on, or choose another folder")
        before = to_dict(from_dict(type(self.recipe), self.folder.recipe()))    # a key newer than the run: its default
        require_same(before, plain, self.folder.path)
        self.folder.clear_partial()
        saved = self.folder.load()
        self.accelerator.wait_for_everyone()
        self.folder.describe(plain, facts)
        self.folder.cut_log(saved[0] if saved else 0)
        return saved

    def run(self):
        recipe, main = self.recipe, self.accelerator.is_main_process
        if self.step >= recipe.steps and (self.folder.path / "final" / "config.json").exists():
            self.accelerator.print(f"{self.folder.path}: all {recipe.steps} steps are done")
            return self.folder.path / "final"
        self._start_trackers()
        loader = batches(self.samples, self.micro_batch, self.step * recipe.accumulate, recipe.workers,
                         self.accelerator.process_index, self.accelerator.num_processes,
                         pin_memory=self.accelerator.device.type == "cuda")
        bar = tqdm(total=recipe.steps, initial=self.step, unit="step", disable=not main, dynamic_ncols=True)
        self.learner.train()
        with bar, contextlib.closing(loader):
            while self.step < recipe.steps:
                if self.on_step:
                    self.on_step(self.step, self.network)
                self._train_step(loader)
                self.step += 1
                bar.update()
                if self.step % recipe.log_every == 0 or self.step == recipe.steps:
                    bar.set_postfix_str(self._log())
                if self.validation and (self.step % recipe.validate_every == 0 or self.step == recipe.steps):
                    bar.write(self._validate()) if main else self._validate()
                if self.step % recipe.checkpoint_every == 0 or self.step == recipe.steps:
                    self._save()
        return self._finish()

    def _train_step(self, loader):
        """One optimizer step: every micro-batch through the planned depths, then an update if all is finite."""
        recipe, accelerator = self.recipe, self.accelerator
        rate = learning_rate(recipe, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(_mixed(recipe.seed, self.step, accelerator.process_index))
        finite = torch.ones((), device=accelerator.device)
        for micro in range(recipe.accumulate):
            batch = self._fetch(loader) if self.ahead is None else self.ahead
            self.ahead = None
            self.meters.count_broken(batch.get("skipped", ()))
            batch = self.criterion.prepare(batch)
            passes = branching.plan(
                recipe.branches, self.depths, recipe.seed, self.step, micro, self.micro_batch, recipe.steps
            )
            largest = None
            for i, item in enumerate(passes):
                last = micro == recipe.accumulate - 1 and i == len(passes) - 1
                with contextlib.nullcontext() if last else accelerator.no_sync(self.learner):
                    loss, output = self._loss(batch, item, largest)
                    largest = output.detach() if i == 0 and any(p.distill for p in passes) else largest
                    finite *= torch.isfinite(loss.detach())
                    loss = loss * (item.weight / recipe.accumulate)
                    if last and self.parallel:      # weights that this step did not use are exchanged too
                        loss = loss + 0 * sum(p.sum() for p in self.learner.parameters() if p.requires_grad)
                    accelerator.backward(loss)
        for p in self.learner.parameters():
            if p.requires_grad and p.grad is None:      # as that sum does: one process and many then take the same step
                p.grad = torch.zeros_like(p)
        norm = accelerator.clip_grad_norm_(self.learner.parameters(), recipe.clip or math.inf)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm         # under FSDP each process holds a part
        if self.step + 1 < recipe.steps:            # while a GPU is busy with the above
            self.ahead = self._fetch(loader)
        self._update(finite * torch.isfinite(norm).to(finite), norm)

    def _fetch(self, loader):
        """The next micro-batch, on its way to the device."""
        device = self.accelerator.device
        return {key: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
                for key, value in next(loader).items()}

    def _loss(self, batch, item, largest):
        """Loss of one pass, and its output; ``largest`` is the output that a distilled pass learns."""
        rows = {key: value[item.rows] for key, value in batch.items()}
        x, target = rows["input"], largest[item.rows] if item.distill else rows["target"]
        if self.recipe.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        output, logits = self.learner(x, self.repeats[item.depth])
        loss, parts = self.criterion(output, target, rows)
        for name, value in {"loss": loss, **parts}.items():
            self.meters.measure(f"{name}_{item.depth}" if item.depth else name, value, item.weight)
        if logits is not None:
            entropy = nn.functional.cross_entropy(logits.float(), rows["task"])
            self.meters.measure("task_accuracy", (logits.argmax(1) == rows["task"]).float().mean(), item.weight)
            loss = loss + self.head_weight * entropy
        return loss, output

    def _update(self, finite, norm):
        """Apply the gradient if it is finite in every process; count the step as skipped otherwise."""
        accelerator, recipe = self.accelerator, self.recipe
        if accelerator.num_processes > 1:
            finite = accelerator.reduce(finite, "sum") >= accelerator.num_processes - 0.5
        finite = bool(finite)                       # waits for the device once a step
        if finite or accelerator.scaler is not None:
            self.optimizer.step()                   # a gradient scaler leaves out a step by itself and lowers its scale
        if finite:
            if self.average:
                self.average.update(self.network, self.step + 1)
            self.meters.measure("gradient_norm", norm, 1.0)
        self.meters.count_step(finite)
        self.optimizer.zero_grad(set_to_none=True)
        if self.meters.bad_in_a_row >= recipe.max_bad_steps:
            kept = self.folder.steps()
            last = f"; the last checkpoint is {self.folder.checkpoints}/step-{kept[-1]:08d}" if kept else ""
            raise RestoreError(
                f"step {self.step + 1}: the loss or its gradient was not finite in {recipe.max_bad_steps} consecutive "
                f"steps, so the run stops. They did not touch the weights{last}. A lower lr, a longer warmup or "
                "precision: fp32 usually helps.")

    def _log(self):
        """Write a row of the log; returns it in short for the progress bar."""
        means, counts = self.meters.means(), self.meters.counts()
        row = {"step": self.step, "lr": learning_rate(self.recipe, self.step - 1),
               **{k: round(v, 8) for k, v in means.items()}, **counts}
        self.folder.log(**row)
        self.accelerator.log({k: v for k, v in row.items() if k != "step"}, step=self.step)
        self.meters.reset()
        short = ", ".join(f"{k[5:] or 'loss'} {v:.4f}" for k, v in means.items() if k.startswith("loss"))
        skipped, broken = counts["skipped_steps"], counts["broken_files"]
        return short + (f", {skipped} steps skipped" if skipped else "") + (f", {broken} broken files" if broken else "")

    def _validate(self):
        """PSNR of the averaged weights at every depth into the log, and in short as text; pairs are shared out."""
        from accelerate.utils import DistributedType, gather_object

        from .validation import summarise, validate
        accelerator = self.accelerator
        rank, world = accelerator.process_index, accelerator.num_processes
        strip = self.folder.path / "validation" / f"step-{self.step:08d}.png" if accelerator.is_main_process else None
        with self._averaged():
            network = self.network
            if accelerator.distributed_type == DistributedType.FSDP:       # the main process does it all
                network, world = self._whole_network(), 1
            share = self.validation[rank::world]
            part = validate(network, share, self.depths, accelerator.device, strip) if rank < world else {}
        self.scores = summarise(gather_object([part]))
        rounded = {str(depth): {t: round(v, 4) for t, v in s.items()} for depth, s in self.scores.items()}
        self.folder.log(step=self.step, psnr=rounded)
        accelerator.log({f"psnr/{d}/{t}": v for d, s in self.scores.items() for t, v in s.items()}, step=self.step)
        return f"step {self.step}: PSNR " + ", ".join(f"{d} {s['mean']:.2f}" for d, s in self.scores.items()) + " dB"

    def _averaged(self):
        return self.average.applied(self.network) if self.average else contextlib.nullcontext()

    def _whole_network(self):
        """A plain copy of the network in the main process, None in the others; every process must call it."""
        from .models import create_model
        whole = whole_state(self.network)
        if not self.accelerator.is_main_process:
            return None
        copy = create_model(self.network.name, **self.network.config)
        copy.load_state_dict(whole)
        return copy

    def _save(self):
        groups, scalars = collect(self.learner, self.optimizer.optimizer)
        if self.average:
            groups["ema"] = self.average.state()
        state = {"step": self.step, **self.meters.state(), "scores": self.scores, "optimizer_scalars": scalars,
                 "processes": self.accelerator.num_processes,
                 "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else None}
        self.folder.save(self.step, groups, state, self.recipe.keep_checkpoints)
        self.accelerator.wait_for_everyone()

    def _restore(self, step, groups, state):
        apply(self.learner, self.optimizer.optimizer, groups, state["optimizer_scalars"])
        if self.average:
            self.average.load(groups["ema"])
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step, self.scores = step, state["scores"]
        self.meters.load(state)
        self.accelerator.print(f"{self.folder.path}: going on from step {step}")
        if state["processes"] != self.accelerator.num_processes:
            self.accelerator.print(
                f"{state['processes']} processes before, {self.accelerator.num_processes} now: the same samples in "
                "each step, but sums are rounded otherwise, so the end is not the same to the bit"
            )

    def _start_trackers(self):
        if self.recipe.trackers:
            config = {key: value if isinstance(value, (int, float, str)) else str(value)
                      for key, value in flatten(to_dict(self.recipe)).items()}
            self.accelerator.init_trackers(self.folder.path.name or "run", config=config)

    def _finish(self):
        """Write ``final`` and let the trackers end."""
        from . import checkpoint
        final = self.folder.path / "final"
        facts = {"recipe": to_dict(self.recipe), "steps": self.step, "skipped_steps": self.meters.skipped_steps,
                 "psnr": self.scores, "versions": _short_versions(), **self.provenance}
        with self._averaged():
            network = self._whole_network()
        if network is not None:
            checkpoint.save(network, final, _portable(facts))
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()
        return final


def _accelerator(recipe, out):
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    for name in recipe.trackers:
        if importlib.util.find_spec(name) is None:
            raise RestoreError(f"trackers: {name} is not installed (pip install {name})")
    AcceleratorState._reset_state()                 # a second run in one process may have another precision
    precision = "no" if recipe.precision == "fp32" else recipe.precision
    try:
        accelerator = Accelerator(mixed_precision=precision, cpu=recipe.device == "cpu", project_dir=str(out),
                                  log_with=recipe.trackers or None)
    except ValueError as error:
        raise RestoreError(f"precision: {recipe.precision} does not work here: {error}") from None
    if accelerator.distributed_type == "FSDP" and not accelerator.is_fsdp2:
        raise RestoreError(
            "FSDP: only its second version is supported; set fsdp_version: 2 in Accelerate's configuration"
        )
    return accelerator


def _micro_batch(recipe, processes):
    parts = processes * recipe.accumulate
    if recipe.batch_size % parts:
        raise RestoreError(
            f"batch_size: {recipe.batch_size} cannot be cut into {processes} processes x {recipe.accumulate} accumulate"
        )
    return recipe.batch_size // parts


def _optimizer(learner, recipe):
    kinds = {True: [], False: []}
    for parameter in learner.parameters():
        if parameter.requires_grad:
            kinds[parameter.ndim >= 2].append(parameter)
    decay = {True: recipe.weight_decay, False: 0.0}
    groups = [{"params": kinds[kind], "weight_decay": decay[kind]} for kind in kinds]
    make = Muon if recipe.optimizer == "muon" else torch.optim.AdamW
    return make([group for group in groups if group["params"]], lr=recipe.lr, betas=recipe.betas)


def _mixed(*numbers):
    return int(np.random.SeedSequence([*numbers, 6]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _portable(value):
    """Facts for a file that travels: of a path on this machine only the last part."""
    if isinstance(value, dict):
        return {key: _portable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_portable(item) for item in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _device_name(device):
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device} ({torch.get_num_threads()} threads)"


def _short_versions():
    from .resume import versions
    return {key: value for key, value in versions().items() if key in ("anydepth", "torch", "python")}
