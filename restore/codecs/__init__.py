"""Image files, one format a module: bytes to a :class:`Raster` and back, without losing depth, alpha or metadata.

``restore.image`` is the door to all of this. A format module has ``read(data) -> Raster`` and
``write(raster, file, quality)``, with ``file`` open for binary writing; it raises ``ValueError`` (or lets its decoder
raise) for data that it cannot take, and ``restore.image`` turns that into an ``ImageError`` which names the file.
"""
