"""Published state dicts of DyNet, PromptIR and gUNet in our names: one table of names a family.

The architecture is recognised from the keys, and its width and blocks from the shapes, so that variants which their
authors made narrower or deeper come in too.
"""

import re

from .errors import CheckpointError
from .models import create_model
from .models.gunet import BLOCKS

# Regular expressions from the published name to ours, applied in order to every key.
RESTORMER_NAMES = [
    (r"^patch_embed\.proj\.", "embed."),
    (r"^(encoder|decoder)_level(\d)\.", r"\1\2."),
    (r"^down(\d)_\d\.body\.0\.", r"down\1.conv."),
    (r"^up\d_(\d)\.body\.0\.", lambda m: f"up{m[1]}.conv."),
    (r"^reduce_chan_level(\d)\.", r"merge\1."),
    (r"^reduce_noise_level(\d)\.", r"prompt\1.reduce."),
    (r"^noise_level(\d)\.", r"prompt\1.block."),
    (r"^prompt(\d)\.prompt_param$", r"prompt\1.prompt.components"),
    (r"^prompt(\d)\.linear_layer\.", r"prompt\1.prompt.weights."),
    (r"^prompt(\d)\.conv3x3\.", r"prompt\1.prompt.conv."),
    (r"\.norm(\d)\.body\.", r".norm\1."),
    (r"\.attn\.qkv_dwconv\.", ".attn.qkv_depthwise."),
    (r"\.ffn\.dwconv\.", ".ffn.depthwise."),
]
GUNET_NAMES = [
    (r"^inconv\.proj\.", "embed."),
    (r"^outconv\.proj(\.0)?\.", "output."),
    (r"^layers\.3\.blocks\.", "middle."),
    (r"^layers\.([012])\.blocks\.", r"encoder.\1."),
    (r"^layers\.([456])\.blocks\.", lambda m: f"decoder.{6 - int(m[1])}."),
    (r"\.conv\.Wv\.0\.", ".value."),
    (r"\.conv\.Wv\.1\.", ".depthwise."),
    (r"\.conv\.Wg\.0\.", ".gate."),
    (r"\.conv\.proj\.", ".project."),
    (r"^(downs\.\d)\.proj\.", r"\1."),
    (r"^(ups\.\d)\.proj\.0\.", r"\1."),
    (r"^(fusions\.\d)\.mlp\.1\.", r"\1.squeeze."),
    (r"^(fusions\.\d)\.mlp\.3\.", r"\1.excite."),
]
# Declared by the published networks and never used by them.
UNUSED = {"dynet": r"^reduce_noise_channel_[123]\.", "promptir": r"^(chnl_reduce|reduce_noise_channel_)[123]\."}
FAMILIES = ("dynet", "promptir", *BLOCKS)


def convert(tensors, arch=None, source="state dict"):
    """A network of ours, in training mode, holding the published ``tensors`` (name → tensor).

    ``arch`` is one of dynet, promptir, gunet_t, gunet_s, gunet_b and gunet_d, or ``None`` to tell from the keys.
    Raises :class:`CheckpointError` naming what is missing, left over or of another shape.
    """
    if arch is not None and arch not in FAMILIES:
        raise CheckpointError(f"--arch {arch}: published checkpoints of {', '.join(FAMILIES)} can be converted")
    tensors = _without_prefix(tensors)
    found = _recognise(tensors)
    if found is None:
        raise CheckpointError(f"{source}: its keys ({', '.join(list(tensors)[:3])} ...) are of no network known here. "
                              "Expected DyNet's or PromptIR's (patch_embed.proj.weight, encoder_level1..., latent..., "
                              "refinement...) or gUNet's (inconv.proj.weight, layers.0.blocks.0...)")
    if arch is not None and arch.split("_")[0] != found.split("_")[0]:
        raise CheckpointError(f"{source}: --arch {arch}, and its keys are those of {found}")
    name = arch or found
    ours = _renamed(tensors, name)
    try:
        model = create_model(name, **(_gunet_config(ours) if name in BLOCKS else _restormer_config(ours, name)))
    except (KeyError, IndexError, ValueError) as error:
        raise CheckpointError(f"{source}: recognised as {name}, and it is incomplete or malformed "
                              f"(at {error}). Expected the whole state dict of the published network.") from error
    if name in BLOCKS and BLOCKS[name] != model.config["blocks"]:
        raise CheckpointError(f"{source}: --arch {name} has {BLOCKS[name]} blocks a stage, and the file "
                              f"{model.config['blocks']}")
    _check(ours, model.state_dict(), name, source)
    model.load_state_dict(ours)
    return model


def _without_prefix(tensors):
    """Keys without what trainers put before all of them, such as ``module.`` or ``net.``."""
    prefix = re.compile(r"^(module|net|model|network|netG|generator|_orig_mod)\.")
    while tensors and all(prefix.match(key) for key in tensors):
        tensors = {prefix.sub("", key): value for key, value in tensors.items()}
    return tensors


def _recognise(tensors):
    """The name of the architecture that has these keys, or None."""
    if "inconv.proj.weight" in tensors and any(key.startswith("layers.0.blocks.") for key in tensors):
        blocks = 1 + max(int(m[1]) for m in (re.match(r"layers\.0\.blocks\.(\d+)\.", key) for key in tensors) if m)
        return {count: name for name, count in BLOCKS.items()}.get(blocks, "gunet_t")
    if "patch_embed.proj.weight" in tensors and any(key.startswith("latent.") for key in tensors):
        return "promptir" if any(key.startswith("latent.0.") for key in tensors) else "dynet"
    return None


def _renamed(tensors, name):
    ours = {}
    for key, value in tensors.items():
        if name in UNUSED and re.match(UNUSED[name], key):
            continue
        for pattern, replacement in GUNET_NAMES if name in BLOCKS else RESTORMER_NAMES:
            key = re.sub(pattern, replacement, key)
        # The published prompt has a leading axis of one: (1, components, channels, size, size).
        ours[key] = value[0] if key.endswith(".components") and value.ndim == 5 else value
    return ours


def _restormer_config(ours, name):
    prompts = [ours[f"prompt{i}.prompt.components"].shape for i in (1, 2, 3)]
    first = "" if name == "dynet" else "0."
    levels = ("encoder1", "encoder2", "encoder3", "latent")
    config = dict(width=ours["embed.weight"].shape[0],
                  heads=tuple(ours[f"{level}.{first}attn.temperature"].shape[0] for level in levels),
                  prompt_channels=tuple(shape[1] for shape in prompts),
                  prompt_sizes=tuple(shape[2] for shape in prompts),
                  refinement=_count(ours, "refinement."))
    if name == "promptir":
        config["blocks"] = tuple(_count(ours, f"{level}.") for level in levels)
    return config


def _gunet_config(ours):
    return dict(blocks=_count(ours, "encoder.0."), width=ours["embed.weight"].shape[0])


def _count(tensors, prefix):
    """How many numbered modules stand below ``prefix``."""
    return 1 + max(int(key[len(prefix):].split(".")[0]) for key in tensors if key.startswith(prefix))


def _check(ours, expected, name, source):
    missing = sorted(expected.keys() - ours.keys())
    extra = sorted(ours.keys() - expected.keys())
    shapes = [f"{key} is {tuple(ours[key].shape)}, expected {tuple(expected[key].shape)}"
              for key in expected if key in ours and ours[key].shape != expected[key].shape]
    problems = [f"{what} {', '.join(keys[:3])}{f' and {len(keys) - 3} more' if len(keys) > 3 else ''}"
                for what, keys in (("missing", missing), ("unknown", extra), ("of another shape:", shapes)) if keys]
    if problems:
        raise CheckpointError(f"{source}: recognised as {name}, but {'; '.join(problems)}. "
                              "Expected the whole state dict of the published network.")
