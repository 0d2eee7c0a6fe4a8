"""What is gUNet's own in its training (arXiv 2209.11448): batch and rate by size, and its batch normalisations.

    published settings   batch 128, 128, 64, 32 and rate 16, 16, 8, 4e-4 for T, S, B, D: the rate is proportional to the batch
    synchronised norms   over the devices, where each has fewer than 16 images of the batch
    frozen norms         for the last fifth of the steps the statistics stay as they are and are used as at inference
"""

import os

from torch import nn

from restore.errors import RestoreError

BATCH_SIZES = {"gunet_t": 128, "gunet_s": 128, "gunet_b": 64, "gunet_d": 32}
LR_PER_IMAGE = 16e-4 / 128
SMALLEST_BATCH = 16


def published_settings(name, batch_size, lr):
    """``(batch_size, lr)`` with published values in the place of zeros; raises RestoreError for a network without any."""
    if batch_size and lr:
        return batch_size, lr
    if name not in BATCH_SIZES:
        raise RestoreError(f"{'lr' if batch_size else 'batch_size'}: 0 means as published, which is known for "
                           f"{', '.join(BATCH_SIZES)}, not for {name}")
    batch_size = batch_size or BATCH_SIZES[name]
    return batch_size, lr or LR_PER_IMAGE * batch_size


def has_norms(model):
    """Whether a network has batch normalisations."""
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())


def needs_synchronised_norms(model, batch_size, processes=None):
    """Whether a device's part of the batch is too small for statistics of its own."""
    processes = int(os.environ.get("WORLD_SIZE", "1")) if processes is None else processes
    return processes > 1 and batch_size / processes < SMALLEST_BATCH and has_norms(model)


def norm_freezer(steps, share):
    """An ``on_step`` for the training loop that freezes batch normalisations for the last ``share`` of ``steps``."""
    first = round(steps * (1 - share))

    def freeze(step, model):
        if step >= first:
            for module in model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    return freeze
