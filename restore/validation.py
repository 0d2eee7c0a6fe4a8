"""Validation during training: the same pairs at every depth, PSNR per task, and a strip of pictures."""

import dataclasses

import torch


@dataclasses.dataclass
class Pair:
    """One validation image: ``input`` and ``target`` float32 (3, h, w) in [0, 1]; scores are averaged per ``task`` (a word)."""
    name: str
    task: str
    input: torch.Tensor
    target: torch.Tensor
