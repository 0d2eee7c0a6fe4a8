"""Photos that lie in the scikit-image package, so that a demonstration needs no download: one has a measured depth."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from .errors import RestoreError
from .image import read_rgb8

# name -> file below skimage/data. All are in the wheel; scikit-image's documentation names the authors and licences.
PHOTOS = {"astronaut": "astronaut.png", "coffee": "coffee.png", "chelsea": "chelsea.png",
          "motorcycle": "motorcycle_left.png"}
_DISPARITY = {"motorcycle": "motorcycle_disp.npz"}

# Calibration of the motorcycle pair (Middlebury 2014), as scikit-image documents it: in pixels, pixels, millimetres
_FOCAL, _OFFSET, _BASELINE = 994.978, 31.086, 193.001


def photo(name):
    """One of :data:`PHOTOS` as a uint8 array (h,w,3); raises :class:`RestoreError` if it is not there."""
    return read_rgb8(file(name))


def file(name):
    """The path of one of :data:`PHOTOS`; raises :class:`RestoreError` if it is not there."""
    return _path(PHOTOS[name])


def depth(name):
    """Distances in metres (h,w), float32, of a photo that comes with a disparity map; None for the others.

    Where the stereo measurement has a hole, the nearest measured pixel fills it.
    """
    if name not in _DISPARITY:
        return None
    from scipy.ndimage import distance_transform_edt
    with np.load(_path(_DISPARITY[name])) as file:
        disparity = file["arr_0"]
    holes = ~np.isfinite(disparity)
    rows, columns = distance_transform_edt(holes, return_distances=False, return_indices=True)
    return (_BASELINE * _FOCAL / (disparity[rows, columns] + _OFFSET) / 1000).astype(np.float32)


def _path(file):
    package = find_spec("skimage")
    path = Path(package.submodule_search_locations[0], "data", file) if package else None
    if path is None or not path.is_file():
        raise RestoreError(f"the sample photo {file} is not in this installation of scikit-image; "
                           "reinstall it (pip install --force-reinstall scikit-image), or give photos of your own")
    return path
