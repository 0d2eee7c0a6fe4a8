"""All-in-one image restoration at any depth: the networks, the images, the degradations, the scores.

    import restore
    model = restore.load("dynet_small")              # a bundled name, a checkpoint folder or a .safetensors file
    restorer = restore.Restorer(model, depth="small")
    restorer("photo.jpg").save("photo.restored.jpg")
"""

import importlib

__version__ = "0.1.0"

# Public names and where they live. They are imported on first use, so that `import restore` stays instant.
_HOME = {
    "load": "checkpoint", "save": "checkpoint", "create_model": "models",
    "Restorer": "restorer", "read_image": "image", "write_image": "image", "Image": "image",
    "RestoreError": "errors", "ImageError": "errors", "CheckpointError": "errors",
}
__all__ = [*_HOME, "__version__"]


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module 'restore' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


def __dir__():
    return sorted(__all__)
