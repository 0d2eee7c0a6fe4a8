"""The fast way to run a network on a CPU: the same modules and weights, another forward for the blocks that bind.

What binds the plain forward of these networks is not arithmetic but memory: the depthwise convolutions, the layer norms
and the gates each pass over tensors of hundreds of megabytes. Here a Restormer block or a gated one walks down the image in **strips of rows**
small enough that everything between its input and its output stays in the cache. A depthwise convolution keeps the
last rows of the strip before, so nothing is computed twice. Channel attention needs one sum over the whole image
(q kT), so its block walks twice: once for that sum, then for the output, where the small attention matrix and the output
projection have become one matrix and v is made where it is used. AnyDepth's dense convolutions run near the matrix rate
as they are; only what lies between them is fused into them.

:func:`fast` returns a network with the same call and, to rounding, the same output; training and export keep the plain
forward. What stays as it is (3x3 convolutions, skips, prompts) is run by the plain modules.
"""

import copy

import torch
import torch.nn.functional as F
from torch import nn

from .fused import convolve, convolve_with
from .models.anydepth import Loop
from .models.gunet import GatedBlock, GUNet, fold_batchnorm
from .models.layers import TransformerBlock

STRIP_BYTES = 6 << 20                        # of the widest intermediate of a strip, for each thread: measured, flat from 4 to 8 MB


def fast(model, dtype=torch.float32):
    """A network for inference on CPUs that equals ``model`` to rounding and shares the weights that it need not repack.

    ``dtype``: ``torch.float32``, or ``torch.bfloat16`` for what lies between the first and the last convolution; these
    two and the global residual stay float32, because a bfloat16 output costs quality. Give float32 images in either
    case. The result is a snapshot of the weights. In float32 a network without a block known here is returned as it is.
    """
    known = any(type(module) in FAST for module in model.modules())
    if not known and (dtype == torch.float32 or not hasattr(model, "embed")):
        return model
    if isinstance(model, GUNet):
        model = fold_batchnorm(model)
    shared = {id(t): t for t in [*model.parameters(), *model.buffers()]} if dtype == torch.float32 else {}
    quick = copy.deepcopy(model, shared).eval()
    if dtype != torch.float32:
        halve(quick, dtype)
    _swap(quick)
    return quick


def halve(model, dtype):
    """``model`` itself, turned to ``dtype`` but for its first and its last convolution (``embed`` and ``output``)."""
    ends = model.embed, model.output
    model.embed = model.output = None
    model.to(dtype)
    model.embed, model.output = Cast(ends[0], dtype), Cast(ends[1], torch.float32)
    return model


def _swap(module):
    for name, child in module.named_children():
        if type(child) in FAST:
            setattr(module, name, FAST[type(child)](child))
        else:
            _swap(child)


class Cast(nn.Module):
    """``inner`` run in float32, its result handed on in ``outside``."""

    def __init__(self, inner, outside):
        super().__init__()
        self.inner, self.outside = inner, outside

    def forward(self, x):
        return self.inner(x.float()).to(self.outside)


class StripTransformer(nn.Module):
    """:class:`restore.models.layers.TransformerBlock` in strips of rows."""

    def __init__(self, block):
        super().__init__()
        attention, ffn = block.attn, block.ffn
        self.channels, self.heads = attention.project_out.weight.shape[0], attention.heads
        self.norm1, self.norm2 = _norm(block.norm1), _norm(block.norm2)
        c = self.channels
        qkv, depthwise = _matrix(attention.qkv), attention.qkv_depthwise.weight.detach()
        self.to_qk, self.to_v = qkv[:, :2 * c].contiguous(), qkv[:, 2 * c:].contiguous()
        self.qk_depthwise, self.v_depthwise = depthwise[:2 * c].contiguous(), depthwise[2 * c:].contiguous()
        self.temperature = attention.temperature.detach().float()
        self.project = _matrix(attention.project_out)
        # the hidden channels are padded to whole vectors: 127 -> 128, 255 -> 256 ...; gelu(0) * 0 adds nothing
        hidden = ffn.project_out.weight.shape[1]
        self.hidden = -(-hidden // 16) * 16
        pad = self.hidden - hidden
        self.to_gate, self.to_value = (F.pad(half, (0, pad)).contiguous() for half in _matrix(ffn.project_in).chunk(2, dim=1))
        self.gate_depthwise, self.value_depthwise = (F.pad(half, (0, 0) * 3 + (0, pad))
                                                     for half in ffn.depthwise.weight.detach().chunk(2))
        self.from_hidden = F.pad(_matrix(ffn.project_out), (0, 0, 0, pad))

    def forward(self, x):
        pixels = x.permute(0, 2, 3, 1).contiguous()
        out = torch.empty_like(pixels)
        for image, result in zip(pixels, out):
            self._mix(image, self._attention(image), result)
        return out.permute(0, 3, 1, 2)

    def _strips(self, image):
        width = image.shape[1]
        rows = max(4, torch.get_num_threads() * STRIP_BYTES // (2 * self.hidden * width * image.element_size()))
        return rows, image.split(rows)

    def _attention(self, image):
        """The matrix (c, c) that takes v to the attention's projected output, from a pass over ``image`` (h, w, c)."""
        c, per_head = self.channels, self.channels // self.heads
        rows, strips = self._strips(image)
        window = RollingDepthwise(self.qk_depthwise, image, rows)
        gram = image.new_zeros(self.heads, per_head, per_head, dtype=torch.float32)
        squares = image.new_zeros(2 * c, dtype=torch.float32)
        for i, strip in enumerate(strips, 1):
            torch.mm(self._normed(strip, self.norm1), self.to_qk, out=window.room(len(strip)))
            qk = window.advance(last=i == len(strips))
            squares += (qk * qk).sum(0)      # many times as fast as torch.linalg.vector_norm down the columns
            gram += self._products(qk)
        q_norm, k_norm = squares.sqrt_().clamp_min_(1e-12).view(2, self.heads, per_head)
        attention = (gram / (q_norm[:, :, None] * k_norm[:, None, :]) * self.temperature).softmax(dim=-1)
        projection = self.project.float().view(self.heads, per_head, c)
        return (attention.transpose(1, 2) @ projection).reshape(c, c).to(image.dtype)

    def _products(self, qk):
        """q kT of the heads, (heads, c / heads, c / heads), from pixels (n, 2c); threads share heads, or parts of the only one."""
        parts = torch.get_num_threads() if self.heads == 1 and len(qk) % torch.get_num_threads() == 0 else 1
        q, k = qk.view(parts, -1, 2, self.heads, self.channels // self.heads).unbind(2)          # (parts, n, heads, c / heads)
        return torch.matmul(q.permute(0, 2, 3, 1), k.transpose(1, 2)).sum(0, dtype=torch.float32)

    def _mix(self, image, attention, result):
        """Write the block's output into ``result``, given the matrix of :meth:`_attention`."""
        rows, strips = self._strips(image)
        v_window = RollingDepthwise(self.v_depthwise, image, rows)
        gate_window = RollingDepthwise(self.gate_depthwise, image, rows + 1, "gelu")
        value_window = RollingDepthwise(self.value_depthwise, image, rows + 1)
        flat, flat_result = image.view(-1, self.channels), result.view(-1, self.channels)
        attended = done = 0                  # pixels that the attention, and the feed-forward, have finished
        waiting = flat[:0]
        for i, strip in enumerate(strips, 1):
            last = i == len(strips)
            torch.mm(self._normed(strip, self.norm1), self.to_v, out=v_window.room(len(strip)))
            v = v_window.advance(last)
            y = torch.addmm(flat[attended:attended + len(v)], v, attention)
            attended += len(v)
            normed, finished = self._normed(y, self.norm2), len(y) // image.shape[1]
            torch.mm(normed, self.to_gate, out=gate_window.room(finished))
            torch.mm(normed, self.to_value, out=value_window.room(finished))
            gated = value_window.advance(last).mul_(gate_window.advance(last))
            waiting = torch.cat([waiting, y])
            torch.addmm(waiting[:len(gated)], gated, self.from_hidden, out=flat_result[done:done + len(gated)])
            waiting = waiting[len(gated):]
            done += len(gated)

    def _normed(self, rows, norm):
        return F.layer_norm(rows, (self.channels,), *norm, 1e-5).view(-1, self.channels)


class StripGated(nn.Module):
    """:class:`restore.models.gunet.GatedBlock`, its normalisation folded, in strips of rows.

    The sigmoid, the gate and the sum happen in the passes of the convolutions. A strip computes the value's two rows
    above and below it again, which is cheaper than keeping them.
    """

    def __init__(self, block):
        super().__init__()
        for name in ("value", "gate", "depthwise", "project"):
            conv = getattr(block, name)
            setattr(self, name, (conv.weight.detach(), conv.bias.detach()))
        self.channels = len(block.project.bias)

    def forward(self, x):
        pixels = x.permute(0, 2, 3, 1).contiguous()
        out = torch.empty_like(pixels)
        for image, result in zip(pixels, out):
            self._gate(image, result)
        return out.permute(0, 3, 1, 2)

    def _gate(self, image, result):
        height, width, channels = image.shape
        step = max(4, torch.get_num_threads() * STRIP_BYTES // (channels * width * image.element_size()))
        for top in range(0, height, step):
            bottom = min(top + step, height)
            strip = as_batch(image[top:bottom])
            gate = convolve(strip, *self.gate, then="sigmoid")
            mixed = convolve_with(as_batch(self._values(image, top, bottom)), gate, "mul", *self.depthwise, groups=channels)
            result[top:bottom] = as_rows(convolve_with(mixed, strip, "add", *self.project))

    def _values(self, image, top, bottom):
        """The value of the rows from ``top`` to ``bottom``, mirrored by two pixels beyond the image."""
        height, width, channels = image.shape
        first, last = max(0, top - 2), min(bottom + 2, height)
        padded = image.new_empty(bottom - top + 4, width + 4, channels)
        inside = padded[first - top + 2:last - top + 2]
        inside[:, 2:-2] = as_rows(convolve(as_batch(image[first:last]), *self.value))
        inside[:, :2], inside[:, -2:] = inside[:, 3:5].flip(1), inside[:, -5:-3].flip(1)
        if top == 0:
            padded[:2] = padded[3:5].flip(0)
        beyond = bottom + 2 - last
        if beyond:
            padded[-beyond:] = padded[-2 * beyond - 1:-beyond - 1].flip(0)
        return padded


class FusedLoop(nn.Module):
    """:class:`restore.models.anydepth.Loop`: the leaky ReLU and the sum happen in the passes of the convolutions, and what
    scales an iteration goes into the weights of its second one."""

    def __init__(self, loop):
        super().__init__()
        self.norm = _norm(loop.norm)
        self.first, self.second = ((conv.weight.detach(), conv.bias.detach()) for conv in (loop.conv1, loop.conv2))
        self.scale = None if loop.scale is None else loop.scale.detach()

    def forward(self, x, repeats):
        for t in range(1, repeats + 1):
            weight, bias = self.second
            if self.scale is not None:
                factor = Loop.scale_at(self, t, repeats)
                weight, bias = weight * factor[..., None], bias * factor.flatten()
            normed = F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2], *self.norm, 1e-5).permute(0, 3, 1, 2)
            x = convolve_with(convolve(normed, *self.first, padding=(1, 1), then="leaky_relu"), x, "add", weight, bias, padding=(1, 1))
        return x


class RollingDepthwise:
    """A depthwise 3x3 convolution over rows that arrive from top to bottom, with zero beyond the image.

    ``room(n)`` is where the next n rows are to be written, as a matrix (n * width, channels); ``advance(last)`` convolves
    what has arrived and returns the finished rows in the same form: one row late, until the last. ``rows`` is the most
    that one step brings; ``then`` is what follows the convolution (see :mod:`restore.fused`).
    """

    def __init__(self, weight, image, rows, then="none"):
        self.weight, self.then = weight, then
        self.channels = len(weight)
        self.buffer = image.new_empty(rows + 3, image.shape[1], self.channels)
        self.buffer[0] = 0
        self.held, self.filled = 1, 0

    def room(self, rows):
        self.filled = self.held + rows
        return self.buffer[self.held:self.filled].view(-1, self.channels)

    def advance(self, last):
        buffer = self.buffer
        if last:
            buffer[self.filled] = 0
            self.filled += 1
        out = convolve(as_batch(buffer[:self.filled]), self.weight, padding=(0, 1), groups=self.channels, then=self.then)
        if not last:
            self.held = 2
            buffer[:2] = buffer[self.filled - 2:self.filled].clone()         # the two may overlap
        return as_rows(out).reshape(-1, self.channels)


def as_batch(rows):
    """Rows of pixels (h, w, c) as a batch (1, c, h, w) that PyTorch sees as channels-last."""
    return rows[None].permute(0, 3, 1, 2)


def as_rows(batch):
    """A batch of one image (1, c, h, w), channels-last, as its rows (h, w, c)."""
    return batch[0].permute(1, 2, 0)


FAST = {TransformerBlock: StripTransformer, GatedBlock: StripGated, Loop: FusedLoop}


def _norm(norm):
    return norm.weight.detach(), norm.bias.detach()


def _matrix(conv):
    """The weight of a 1x1 convolution as the matrix (in, out) that pixels in rows are multiplied with."""
    return conv.weight.detach()[:, :, 0, 0].t().contiguous()
