"""Restore an image with an exported file: python run_onnx.py model.onnx photo.png restored.png

Needs onnxruntime, numpy and Pillow alone. The whole image goes through at once; see restore run for tiles.
"""

import sys

import numpy as np
import onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
facts = session.get_modelmeta().custom_metadata_map
multiple, minimum = int(facts["anydepth.multiple"]), int(facts["anydepth.minimum"])
image = np.asarray(Image.open(sys.argv[2]).convert("RGB"), np.float32) / 255
height, width, _ = image.shape
bottom, right = (max(minimum, -(-side // multiple) * multiple) - side for side in (height, width))
padded = np.pad(image, ((0, bottom), (0, right), (0, 0)), mode="symmetric" if min(height, width) <= multiple else "reflect")
restored = session.run(None, {"image": padded.transpose(2, 0, 1)[None]})[0][0].transpose(1, 2, 0)[:height, :width]
Image.fromarray((restored.clip(0, 1) * 255).round().astype(np.uint8)).save(sys.argv[3])
