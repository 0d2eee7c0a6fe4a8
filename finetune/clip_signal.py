"""The directional CLIP loss (StyleGAN-NADA, arXiv 2108.00946; for haze BiLaLoRA, arXiv 2603.10872), an optional signal.

What a restoration changes in an image, seen by CLIP, shall point where the words do that name the change: from "a photo
with haze" to "a clear photo". open_clip (extra ``[clip]``) gives the network; its weights are a file of the user's,
nothing is downloaded.
"""

from pathlib import Path

import torch
import torch.nn.functional as F

from restore.errors import RestoreError

WORDS = {"haze": ("a photo with haze", "a clear photo"), "rain": ("a photo with rain", "a photo without rain")}
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)      # CLIP's own normalisation


class Direction:
    """``direction(before, after)`` is one minus the cosine between the change from ``before`` to ``after``, batches (n,
    3, h, w) in [0, 1], and the change from one text to the other: 0 where they agree, 2 where they are opposed."""

    def __init__(self, model, weights, task, device="cpu"):
        try:
            import open_clip
        except ImportError as error:
            raise RestoreError("the signal clip needs open_clip: pip install 'anydepth[clip]'") from error
        if not Path(weights).is_file():
            raise RestoreError(f"clip_weights: {weights}: no such file; give the file of open_clip's weights for {model}")
        try:
            network = open_clip.create_model(model, pretrained=str(weights), device=device)
        except Exception as error:           # open_clip raises its own, torch's and pickle's errors
            raise RestoreError(f"clip_weights: {weights} is not of {model}: {str(error).splitlines()[0][:200]}") from error
        self.network = network.eval().requires_grad_(False)
        size = self.network.visual.image_size
        self.size = (size, size) if isinstance(size, int) else tuple(size)
        with torch.no_grad():
            tokens = open_clip.get_tokenizer(model)(list(WORDS[task])).to(device)
            first, second = F.normalize(self.network.encode_text(tokens), dim=-1)
        self.words = F.normalize(second - first, dim=-1)

    def __call__(self, before, after):
        change = self._embed(after) - self._embed(before)
        return (1 - F.cosine_similarity(change, self.words[None], dim=-1)).mean()

    def _embed(self, images):
        mean, std = (images.new_tensor(values)[:, None, None] for values in (_MEAN, _STD))
        images = F.interpolate(images.clamp(0, 1), self.size, mode="bicubic", align_corners=False, antialias=True)
        return F.normalize(self.network.encode_image((images - mean) / std), dim=-1)
