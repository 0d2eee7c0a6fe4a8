"""Degradations: pure functions ``(image, generator, **strength)``, one file each.

Every function takes a float32 tensor (3,h,w) or (n,3,h,w) in [0,1] on any device and a ``torch.Generator`` on that
device, and returns a new tensor of the same shape, type and device in [0,1]; the input is left as it was. The same
state of the generator gives the same bits, whatever the number of threads. A batch is degraded image by image with
one generator, so that ``f(batch, g)`` equals ``f(batch[0], g)``, ``f(batch[1], g)`` ... stacked.

The strength comes from the caller; where good ranges take thought (rain, haze) the file also has ranges as a frozen
dataclass that a recipe can set, and a function that draws from them.
"""
