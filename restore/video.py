"""Videos, frame by frame: timestamps, audio and subtitles kept, memory bounded, and resumable after a crash.

Frames are restored in parts of ``PART`` frames. Each part is a file in the folder ``NAME.parts`` beside the output, whole
or not at all, so that a second run goes on where the first one stopped; at the end the parts and the other streams of
the source are copied into one file without encoding again.
"""

import heapq
import json
import os
import shutil
from pathlib import Path

import numpy as np

from .errors import RestoreError
from .files import atomic_path, require_space, write_bytes

PART = 100                                   # frames that a crash may cost
SUFFIXES = (".mp4", ".mov", ".mkv")


def restore_video(source, target, restorer, crf=16, progress=None):
    """Restore the video file ``source`` into ``target`` (``.mp4``, ``.mov`` or ``.mkv``, H.264) and return its count of frames.

    ``restorer`` takes and gives an array (h, w, 3) of ``uint8``. ``crf``: x264's quality, 0 (lossless) to 51. ``progress(frames)``
    is called after every frame with the frames done since the last call, also for those of an earlier run. Frames keep
    their timestamps, a rotation is baked in, and what else the container holds is copied. Raises :class:`RestoreError`.
    """
    source, target = Path(source), Path(target)
    if target.suffix not in SUFFIXES:
        raise RestoreError(f"{target}: the name ends in {', '.join(SUFFIXES)}")
    if not source.is_file():
        raise RestoreError(f"{source}: no such file")
    av = _pyav()
    require_space(target.parent, 2 * source.stat().st_size, "the result")
    parts = target.with_name(target.name + ".parts")
    try:
        with av.open(source) as container:
            if not container.streams.video:
                raise RestoreError(f"{source}: holds no video")
            _open_parts(parts, source, restorer, crf)
            count = _restore_parts(av, container, parts, restorer, crf, progress)
        if not count:
            raise RestoreError(f"{source}: holds no frames")
        with atomic_path(target) as temporary:
            _join(av, source, sorted(parts.glob("[0-9]*.nut")), temporary, target)
    except av.error.FFmpegError as error:
        raise RestoreError(f"{source}: {error}") from error
    shutil.rmtree(parts)
    return count


def count_frames(source):
    """How many frames ``source`` says it has, or an estimate from its duration, or None; raises :class:`RestoreError`."""
    av = _pyav()
    try:
        with av.open(Path(source)) as container:
            stream = next(iter(container.streams.video), None)
            if stream is None:
                return None
            duration = container.duration / av.time_base if container.duration else 0
            return stream.frames or round(duration * float(stream.average_rate or 0)) or None
    except (av.error.FFmpegError, OSError) as error:
        raise RestoreError(f"{source}: cannot be read as a video: {error}") from error


def _pyav():
    try:
        import av
    except ImportError as error:
        raise RestoreError("videos need PyAV: pip install 'anydepth[video]'") from error
    return av


def _open_parts(parts, source, restorer, crf):
    """Make the folder of parts, or empty it if it is of another source or other settings."""
    state = source.stat()
    job = {"source": source.name, "bytes": state.st_size, "modified": state.st_mtime_ns, "crf": crf,
           "restorer": str(getattr(restorer, "description", None)), "part": PART}
    note = parts / "job.json"
    try:
        same = json.loads(note.read_text()) == job
    except (OSError, ValueError):
        same = False
    if not same:
        shutil.rmtree(parts, ignore_errors=True)
        write_bytes(note, json.dumps(job))


def _restore_parts(av, container, parts, restorer, crf, progress):
    """Restore every part that is not there yet; returns the count of all frames."""
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    index, part = 0, None
    for frame in container.decode(stream):
        place = parts / f"{index // PART:06}.nut"
        if part is None and not place.exists():
            part = _Part(av, place, stream, crf)
        if part is not None:
            part.add(_restored(av, restorer, frame, index, stream))
        index += 1
        if progress:
            progress(1)
        if part is not None and index % PART == 0:
            part = part.commit()
    if part is not None:
        part.commit()
    return index


def _restored(av, restorer, frame, index, stream):
    """The frame after restoration, upright, at the time it had."""
    pixels = np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
    out = av.VideoFrame.from_ndarray(restorer(np.ascontiguousarray(pixels)), format="rgb24")
    out.time_base = stream.time_base
    out.pts = frame.pts if frame.pts is not None else round(index / stream.average_rate / stream.time_base)
    return out


class _Part:
    """A file of encoded frames that gets its name when it is whole. NUT keeps the source's time base exactly."""

    def __init__(self, av, path, source, crf):
        self.path, self.unfinished = path, path.with_suffix(".writing")
        self.container, self.source, self.crf = av.open(self.unfinished, "w", format="nut"), source, crf
        self.stream = None

    def add(self, frame):
        if self.stream is None:
            self.stream = self._encoder(frame)
        self.container.mux(self.stream.encode(frame))

    def commit(self):
        self.container.mux(self.stream.encode())
        self.container.close()
        os.replace(self.unfinished, self.path)

    def _encoder(self, frame):
        # without B-frames decoding order is display order, so that parts can be joined at any timestamps
        stream = self.container.add_stream("libx264", rate=self.source.average_rate, options={"crf": str(self.crf), "bf": "0"})
        stream.width, stream.height = frame.width, frame.height
        stream.pix_fmt = "yuv444p" if frame.width % 2 or frame.height % 2 else "yuv420p"
        stream.time_base = stream.codec_context.time_base = self.source.time_base
        for name in ("color_range", "color_primaries", "color_trc", "colorspace"):
            setattr(stream.codec_context, name, getattr(self.source.codec_context, name))
        return stream


def _join(av, source, parts, temporary, target):
    """Copy the packets of the parts, and those of the source's other streams, into one file in order of time."""
    with av.open(source) as original, av.open(parts[0]) as first, av.open(temporary, "w") as out:
        copies = {}
        video = out.add_stream_from_template(first.streams.video[0])
        for stream in original.streams:
            if stream.type in ("audio", "subtitle"):
                try:
                    copies[stream.index] = out.add_stream_from_template(stream)
                except (ValueError, av.error.FFmpegError) as error:
                    raise RestoreError(f"{target}: cannot hold the source's {stream.type} ({stream.codec_context.name}); name it "
                                       ".mkv, which can") from error
        out.metadata.update(original.metadata)
        others = [_packets(original, [original.streams[index] for index in copies], copies)] if copies else []
        for _, packet in heapq.merge(_joined(av, parts, video), *others, key=lambda item: item[0]):
            out.mux(packet)


def _joined(av, parts, video):
    for part in parts:
        with av.open(part) as container:
            yield from _packets(container, [container.streams.video[0]], {0: video})


def _packets(container, streams, copies):
    """``(seconds, packet)`` of ``streams``, each packet handed to its stream in the new file."""
    for packet in container.demux(streams):
        if packet.dts is not None:           # the last one is empty, to flush decoders
            when, packet.stream = packet.dts * packet.time_base, copies[packet.stream.index]
            yield when, packet
