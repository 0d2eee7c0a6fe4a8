"""The :class:`Restorer`: a network, ready for images of any size and kind, within a budget of memory."""

import copy
import os

import numpy as np
import torch

from .errors import RestoreError
from .footprint import available_memory, measure, parse_memory
from .memory import release_freed_memory
from .tiling import run_tiled, spans

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}

_DEFAULT_MEMORY = 2e9                        # on a CPU, for the whole process: a 24-megapixel photo fits
_SHARE = 0.8                                 # of what is free, at most
_PROCESS = 9.7e8                             # what Python, torch and the network take without any image: measured, CUDA's torch
_OVERHEAD = 1.65                             # of a network beyond its tensors: scratch buffers, holes in the heap; measured
_LEAST = 1.5e8                               # for the network, however small the budget
_SMALL = 256 * 256                           # up to this many pixels an image is never cut
_FLOOR = 48                                  # pixels a side: a tile that fails here fails for good


class Restorer:
    """Restores images with a network, whole where memory allows it and in overlapping tiles where not.

    ``model`` is a network or what :func:`restore.load` takes; it is moved to the device and put into evaluation mode.
    ``depth`` is one of its names, a tuple of repeats, or None for its default. ``device`` ``"auto"`` takes CUDA, Apple's
    MPS or the CPU, in this order. ``precision`` is ``"fp32"``, ``"bf16"`` (the first and the last
    convolution and the global residual stay in 32 bits) or ``"fp16"`` (autocast; the residual stays in 32 bits).

    ``memory`` is a budget in bytes, or such as ``"2GB"``: on a CPU for the whole process, on an accelerator for what torch
    allocates there. None is 2 GB on a CPU (less if less is free) and 80 % of an accelerator's free memory;
    ``"unlimited"`` never cuts unless memory runs out. ``overlap`` is how many pixels neighbouring tiles share.

    ``depth="auto"`` takes for each image the best depth within ``budget``, such as ``"200ms"``, ``"20gmacs"`` or ``"1GB"``
    (see :mod:`restore.budget`).

    ``runtime`` is ``"torch"``, ``"onnxruntime"``, ``"openvino"`` or ``"auto"``, the fastest on this processor of those that are
    installed; another one than torch exports the network on first use and keeps the file in the user's cache.
    ``model`` may also be a file of ``restore export`` (``.onnx``, ``.xml``, ``.pt2``), which brings its runtime.

    ``adapter`` is an :class:`restore.adapter.Adapter` or its file; :meth:`adapted` switches it on and off.

    **Tiles change the result slightly**: channel attention and prompts look at the whole of what they are given. Noise in
    tiles of 208 pixels came within 47 dB PSNR of the whole; haze, which is one for the whole image, needs tiles as
    large as memory allows. More overlap than the default brought nothing. With
    the same settings the same image gives the same tiles; :meth:`tile` tells which. On a CPU the network runs through
    :func:`restore.fast.fast`, on CUDA through :func:`restore.gpu.on_gpu`, snapshots of its weights; ``compiled`` fuses the
    kernels there, which takes minutes for each new size.
    """

    def __init__(self, model, depth=None, device="auto", precision="fp32", memory=None, overlap=32, budget=None,
                 runtime="torch", adapter=None, compiled=False):
        if precision not in PRECISIONS:
            raise RestoreError(f"precision {precision!r}: there are {', '.join(PRECISIONS)}")
        if overlap < 0:
            raise RestoreError(f"overlap {overlap}: give a number of pixels, 0 or more")
        self.device = choose_device(device)
        self.memory = None if memory is None else parse_memory(memory)
        self.precision = precision
        if str(model).endswith((".onnx", ".xml", ".pt2")) and isinstance(model, (str, os.PathLike)):
            if adapter is not None:
                raise RestoreError(f"{model}: an exported file takes no adapter; export its checkpoint anew with --adapter")
            from .runtimes import FileNetwork
            self.device = choose_device("cpu")
            model = FileNetwork(model, precision)
        elif isinstance(model, (str, os.PathLike)):
            from .checkpoint import load
            model = load(model, self.device)
        self.base = model.to(self.device).eval()
        self.model = self._with(adapter)
        if (depth == "auto") != (budget is not None):
            raise RestoreError("depth auto and a budget such as 200ms, 20gmacs or 1GB go together")
        self.budget = None
        if budget is not None:
            from .budget import parse_budget
            self.budget, depth = parse_budget(budget), None
        self.depth = model.repeats(depth) or None
        self.overlap = -(-overlap // model.multiple) * model.multiple
        self._cost = None                    # of the network: bytes, and bytes per pixel
        self._most = float("inf")            # pixels: less after a tile has run out of memory
        self.runtime, self.compiled = runtime, compiled
        self._choose_network()

    def _choose_network(self):
        """Set what is run, and the precision that it is run in; None if it has that in its weights."""
        self.network, self._autocast = self.model, PRECISIONS[self.precision]
        if self.runtime != "torch":
            from .runtimes import converted, fastest
            if self.device.type != "cpu":
                raise RestoreError(f"runtime {self.runtime}: runs on the CPU; give --device cpu, or no runtime")
            if self.runtime == "auto":
                self.runtime = fastest(self)
        if self.runtime != "torch":
            self.network = converted(self.model, self.depth, self.runtime, self.precision)
        elif self.device.type == "cuda":
            from .gpu import on_gpu
            self.network = on_gpu(self.model, PRECISIONS[self.precision] or torch.float32, self.compiled)
        elif self.device.type == "cpu" and self.precision != "fp16":
            from .fast import fast
            self.network = fast(self.model, PRECISIONS[self.precision] or torch.float32)
        if self.network is not self.model or hasattr(self.model, "facts"):
            self._autocast = None

    def __call__(self, image, progress=None):
        """Restore ``image`` and return the same kind of thing.

        A path gives an :class:`restore.image.Image`, which has ``save(path)``; an ``Image``, a PIL image, an array
        ``(h, w)``, ``(h, w, 1)``, ``(h, w, 3)`` or ``(h, w, 4)`` (``uint8``, ``uint16`` or floating point in [0, 1]), or a
        tensor ``(3, h, w)`` in [0, 1] gives its like. Alpha is carried through; of a gray image the result is averaged.
        Raises :class:`RestoreError` for anything else.
        """
        from . import image as files
        if isinstance(image, (str, os.PathLike)):
            image = files.read_image(image)
        if isinstance(image, files.Image):
            return image.with_pixels(self.restore(image.pixels, progress))
        if torch.is_tensor(image):
            return self.restore(image, progress)
        if isinstance(image, np.ndarray):
            return self._array(image, progress)
        if type(image).__module__.partition(".")[0] == "PIL" or hasattr(image, "getbands"):
            return self._pillow(image, progress)
        raise RestoreError(f"a {type(image).__name__} is not an image: give a path, a PIL image, an array or a tensor")

    def restore(self, pixels, progress=None):
        """Restore a tensor ``(3, h, w)`` in [0, 1]; returns one like it, clamped to [0, 1], where the input lies.

        ``progress(pixels)`` is called after every tile with the number of pixels done since the last call; they add
        up to ``h * w``. Raises :class:`RestoreError` for another shape, for values that are not finite, or if not even
        a small tile fits into memory.
        """
        if not torch.is_tensor(pixels) or pixels.ndim != 3 or pixels.shape[0] != 3 or not pixels.numel():
            shape = tuple(pixels.shape) if torch.is_tensor(pixels) else type(pixels).__name__
            raise RestoreError(f"an image is a tensor (3, height, width) with at least one pixel, not {shape}")
        if not pixels.is_floating_point():
            raise RestoreError(f"an image tensor is floating point in [0, 1], not {pixels.dtype}; use an array for bytes")
        if not all(bool(torch.isfinite(plane).all()) for plane in pixels):
            raise RestoreError("the image holds values that are not numbers (NaN or infinite)")
        chosen = self.for_size(*pixels.shape[1:])
        with torch.no_grad():
            out = chosen._run(pixels.detach().float(), progress, chosen.tile(*pixels.shape[1:]))
            return out.clamp_(0, 1).to(pixels.dtype)

    def at(self, depth):
        """This restorer at another depth, sharing the network and all settings."""
        other = copy.copy(self)
        other.depth, other.budget, other._cost = self.model.repeats(depth) or None, None, None
        if other.runtime != "torch":         # its file is one depth
            other._choose_network()
        return other

    def adapted(self, adapter):
        """This restorer with another adapter, its file, or None for none; all weights that it leaves alone are shared."""
        other = copy.copy(self)
        other.model, other._cost = self._with(adapter), None
        other._choose_network()
        return other

    def on(self, runtime):
        """This restorer on another runtime, at the same depth and with the same settings."""
        other = copy.copy(self)
        other.runtime, other._cost = runtime, None
        other._choose_network()
        return other

    def _with(self, adapter):
        if adapter is None:
            return self.base
        from .adapter import Adapter, load
        return (adapter if isinstance(adapter, Adapter) else load(adapter)).merged(self.base)

    def for_size(self, height, width):
        """This restorer at the depth that its budget allows for such an image; itself if it has no budget."""
        if self.budget is None:
            return self
        from .budget import choose_depth
        return self.at(choose_depth(self, self.budget, height, width))

    def footprint(self):
        """Bytes that the network takes at work: ``(fixed, per pixel)``, beyond its weights and the image."""
        if self._cost is None and hasattr(self.network, "footprint"):
            self._cost = self.network.footprint()
        if self._cost is None:
            self._cost = measure(getattr(self.network, "plain", self.network), self.depth, 8 * self.model.multiple, 16 * self.model.multiple)
        return self._cost

    def tile(self, height, width):
        """``(height, width)`` of the tiles for an image of this size: its own size if it is run whole."""
        return self._fit(height, width, min(self._most, self._affordable(height, width)))

    def count_tiles(self, height, width):
        """How many tiles an image of this size takes; 1 is the whole image."""
        rows, columns = self.cuts(height, width)
        return len(rows) * len(columns)

    def cuts(self, height, width):
        """The tiles of an image of this size: the spans of their rows, and those of their columns."""
        return tuple(spans(whole, part, self.overlap, self.model.multiple)
                     for whole, part in zip((height, width), self.tile(height, width), strict=True))

    def _run(self, pixels, progress, tile):
        """Whole if it is no larger than ``tile`` and memory allows it, else in tiles, each of them by this rule."""
        _, height, width = pixels.shape
        if tile == (height, width):
            out = self._forward(pixels)
            if out is not None:
                if progress:
                    progress(height * width)
                return out
            self._most = height * width // 2
            tile = self._fit(height, width, self._most)
            if self._most < _FLOOR ** 2 or tile == (height, width):
                raise RestoreError(f"out of memory on {self.device}, even for {width} x {height} pixels; free some, or use "
                                   "a smaller depth, another precision or --device cpu")

        def piece(part, report):
            size = tuple(part.shape[1:])
            out = self._run(part, report, self._fit(*size, self._most))
            release_freed_memory()
            return out

        return run_tiled(piece, pixels, tile, self.overlap, self.model.multiple, progress)

    def _forward(self, pixels):
        """The network on one piece, or None if memory ran out."""
        try:
            batch = pixels.to(self.device)[None]
            with torch.autocast(self.device.type, self._autocast, enabled=self._autocast is not None):
                out = self.network(batch, self.depth)[0]
            out = out.float().to(pixels.device)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            out = None
        if out is None:                      # outside the handler, whose traceback keeps the tensors alive
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        elif not torch.isfinite(out).all():
            advice = "" if self.precision == "fp32" else f"; {self.precision} has too small a range for it, try bf16 or fp32"
            raise RestoreError(f"the network's output holds values that are not numbers{advice}")
        return out

    def _fit(self, height, width, pixels):
        """The largest tile of at most ``pixels``: as square as can be, on the grid, no larger than the image."""
        if height * width <= pixels:
            return height, width
        multiple = self.model.multiple
        side = int(pixels ** 0.5)
        if min(height, width) > side:
            tall = wide = side
        elif height <= width:
            tall, wide = height, int(pixels // height)
        else:
            tall, wide = int(pixels // width), width
        least = 2 * multiple
        return tuple(whole if part >= whole else max(least, part // multiple * multiple)
                     for part, whole in ((tall, height), (wide, width)))

    def _affordable(self, height, width):
        """Pixels that the network may be given at once for an image of this size."""
        if height * width <= _SMALL or self.memory == float("inf"):
            return float("inf")
        fixed, per_pixel = self.footprint()
        room = self._room(height * width) / _OVERHEAD
        return max(_SMALL / 4, (room - fixed) / max(per_pixel, 1.0))

    def _room(self, pixels):
        """Bytes for the network while an image of so many pixels is held."""
        weights = 2 * sum(p.numel() * p.element_size() for p in self.model.parameters())    # as they came, and repacked
        if self.device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(self.device)
            used = torch.cuda.memory_allocated(self.device)
            free += torch.cuda.memory_reserved(self.device) - used
            return free * _SHARE if self.memory is None else min(self.memory - used, free)
        held = 0 if self.device.type == "mps" else _PROCESS + weights + 2 * 12 * pixels
        budget = self.memory
        if budget is None:                   # a fixed sum, so that the same image always gives the same tiles
            budget = min(_DEFAULT_MEMORY, available_memory() * _SHARE + _PROCESS + weights)
        return max(_LEAST, budget - held)

    def _array(self, array, progress):
        from .image import from_array, to_array
        stack = array[:, :, None] if array.ndim == 2 else array
        if stack.ndim != 3 or stack.shape[2] not in (1, 3, 4):
            raise RestoreError(f"an image array is (h, w), (h, w, 1), (h, w, 3) or (h, w, 4), not {array.shape}")
        out = self.restore(from_array(stack[:, :, :3]), progress)
        bits = {"uint8": 8, "uint16": 16}.get(array.dtype.name, 32)
        if stack.shape[2] == 1:
            out = out.mean(0, keepdim=True).expand(3, -1, -1)
        color = to_array(out, bits)[:, :, :min(3, stack.shape[2])].astype(array.dtype, copy=False)
        return np.concatenate([color, stack[:, :, 3:]], 2).reshape(array.shape)

    def _pillow(self, image, progress):
        from PIL import Image

        from .codecs.pillow import arrays
        if image.mode.startswith("I;16"):
            return Image.fromarray(self._array(np.asarray(image).astype(np.uint16), progress))
        if image.mode == "F":
            return Image.fromarray(self._array(np.asarray(image), progress))
        try:
            color, alpha, _ = arrays(image, image.info.get("icc_profile") or b"")
        except ValueError as error:
            raise RestoreError(f"a PIL image of mode {image.mode} is not supported: {error}") from error
        out = self._array(color, progress)
        if alpha is not None:
            out = np.concatenate([out, alpha[:, :, None]], 2)
        return Image.fromarray(out[:, :, 0] if out.shape[2] == 1 else out)


def choose_device(device="auto"):
    """The ``torch.device`` of a name; ``"auto"`` is CUDA, MPS or the CPU. Raises :class:`RestoreError` if it is not there."""
    if str(device) == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:     # a torch without CUDA raises AssertionError
        raise RestoreError(f"device {device!r} is not available here ({str(error).splitlines()[0]}); use auto or cpu") from error
    return chosen


def out_of_memory(error):
    """Whether ``error`` says that memory ran out; torch has a class of its own for it on accelerators alone."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error).lower()
    return any(sign in text for sign in ("out of memory", "not enough memory", "can't allocate memory", "alloc_failed"))
