"""What a training run counts: the means of its losses between two rows of the log, steps without effect, broken files."""

import time

import torch
from tqdm import tqdm

LISTED = 1000       # broken files remembered by name


class Meters:
    """Counts of one process, and their sums over all of them.

    ``accelerator``: of the run. ``aloud``: whether broken files are named on the terminal. The methods that say so are
    exchanges: every process must call them.
    """

    def __init__(self, accelerator, aloud):
        self.accelerator, self.aloud, self.started = accelerator, aloud, time.monotonic()
        self.sums, self.files = {}, {}
        self.skipped_steps = self.bad_in_a_row = self.broken_samples = 0
        self.seconds = 0.0                          # of the parts of the run that ended before this one

    def measure(self, name, value, weight):
        """Add a 0-d tensor to the mean of that name; what is not finite counts as 0."""
        total, count = self.sums.get(name, (0.0, 0.0))
        self.sums[name] = (total + torch.nan_to_num(value.detach().float(), 0.0, 0.0, 0.0) * weight, count + weight)

    def count_step(self, finite):
        """Whether the step changed the weights."""
        self.bad_in_a_row = 0 if finite else self.bad_in_a_row + 1
        self.skipped_steps += not finite

    def count_broken(self, skipped):
        """Samples whose files had to be replaced: for each sample their names, one a line."""
        for line in (line for text in skipped for line in text.split("\n") if line):
            self.broken_samples += 1
            if line not in self.files and len(self.files) < LISTED:
                self.files[line] = None
                if self.aloud:
                    tqdm.write(f"skipped: {line}")

    def means(self):
        """Means over the processes since :meth:`reset`; an exchange."""
        means = {}
        for name in sorted(self.sums):
            total, count = self.sums[name]
            total = torch.as_tensor(total, device=self.accelerator.device, dtype=torch.float32)
            means[name] = float(self.accelerator.reduce(total, "mean")) / count
        return means

    def reset(self):
        """Begin the next row's means."""
        self.sums = {}

    def counts(self):
        """Over all processes: steps skipped, samples that needed another file, broken files, seconds; an exchange."""
        samples, files = self._broken()
        return {"skipped_steps": self.skipped_steps, "broken_samples": samples, "broken_files": len(files),
                "seconds": self._seconds()}

    def state(self):
        """All of it for a checkpoint, as plain values; an exchange."""
        samples, files = self._broken()
        return {"counters": {"skipped_steps": self.skipped_steps, "bad_in_a_row": self.bad_in_a_row,
                             "broken_samples": samples, "seconds": self._seconds()},
                "broken": sorted(files),
                "meter": {name: [mean * self.sums[name][1], self.sums[name][1]] for name, mean in self.means().items()}}

    def load(self, state):
        """Go on from :meth:`state`; what was counted over all processes goes on in the main one."""
        counters, main = state["counters"], self.accelerator.is_main_process
        self.skipped_steps, self.bad_in_a_row = counters["skipped_steps"], counters["bad_in_a_row"]
        self.broken_samples, self.seconds = counters["broken_samples"] if main else 0, counters["seconds"]
        self.files = dict.fromkeys(state["broken"])
        self.sums = {name: (total, count) for name, (total, count) in state["meter"].items()}

    def _broken(self):
        """``(samples, names of files)`` of all processes; an exchange."""
        from accelerate.utils import gather_object
        parts = gather_object([(self.broken_samples, list(self.files))])
        return sum(count for count, _ in parts), {name for _, names in parts for name in names}

    def _seconds(self):
        return round(self.seconds + time.monotonic() - self.started, 1)
