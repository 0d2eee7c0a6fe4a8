"""Feature affinity: where two networks look, at the stages that they have at equal resolution.

Attention transfer (Zagoruyko & Komodakis, arXiv 1612.03928): of features (n, c, h, w) only the energy of each place is kept,
the sum of squares over the channels, as a map of unit length. Teacher and student therefore need no equal widths.
"""

import torch
import torch.nn.functional as F

SIDE = 64           # of the image with which the stages are found


def decoder_stages(network, call=None):
    """``{pixels to one feature (1, 2, 4 ...): name of the module}``, found by running a black image through ``network``.

    At each resolution it is the last module to finish that has weights and keeps its input's shape (n, c, h, w), with more
    channels than an image: the end of a decoder's stage, and at the lowest resolution the middle of a U-Net. ``call`` runs the
    network where that is not ``network(x)``.
    """
    found, handles = {}, []

    def note(name):
        def hook(module, inputs, output):
            given = inputs[0] if inputs else None
            if torch.is_tensor(given) and torch.is_tensor(output) and output.ndim == 4 and output.shape == given.shape \
                    and output.shape[1] > 3 and SIDE % output.shape[-1] == 0:
                found[SIDE // output.shape[-1]] = name
        return hook

    training = network.training
    network.eval()                      # batch statistics stay as they are
    try:
        handles += [module.register_forward_hook(note(name)) for name, module in network.named_modules()
                    if name and next(module.parameters(), None) is not None]
        parameter = next(network.parameters())
        with torch.no_grad():
            (call or network)(torch.zeros(1, 3, SIDE, SIDE, device=parameter.device, dtype=parameter.dtype))
    finally:
        for handle in handles:
            handle.remove()
        network.train(training)
    return dict(sorted(found.items()))


class Recorder:
    """Keeps the energy maps (n, h, w) of the latest forward at the given stages; a block that repeats leaves its last.

    ``training``: record only where gradients are computed, so that validation goes unnoticed.
    """

    def __init__(self, network, stages, training):
        self.maps = {}
        for scale, name in stages.items():
            self._watch(network.get_submodule(name), scale, training)

    def _watch(self, module, scale, training):
        maps = self.maps                # a plain function without the recorder: networks are copied together with their hooks

        def hook(module, inputs, output):
            if torch.is_grad_enabled() or not training:
                maps[scale] = output.float().square().sum(1)
        module.register_forward_hook(hook)

    def take(self):
        """``{scale: map}`` of the latest forward, which is then forgotten."""
        taken = dict(self.maps)
        self.maps.clear()
        return taken


def affinity_loss(student, teacher):
    """Squared distance of unit-length energy maps, from 0 to 2: the mean over samples and over the scales of both.

    ``student`` and ``teacher`` are ``{scale: (n, h, w)}``. Maps of unequal size, from unequal padding, are resized to the
    student's.
    """
    distances = []
    for scale in student.keys() & teacher.keys():
        theirs = teacher[scale]
        if theirs.shape != student[scale].shape:
            theirs = F.interpolate(theirs[:, None], student[scale].shape[1:], mode="bilinear", align_corners=False)[:, 0]
        a, b = (F.normalize(maps.flatten(1), dim=1) for maps in (student[scale], theirs))
        distances.append((a - b).square().sum(1).mean())
    return torch.stack(distances).mean()
