"""Videos: every frame at its own time, the audio as it was, and a crash that costs one part at most."""

from fractions import Fraction

import numpy as np
import pytest

from restore import RestoreError
from restore.cli import main

av = pytest.importorskip("av", reason="PyAV is not installed (the extra [video])")
from restore import video

FRAMES, TIMES = 11, [0, 40, 80, 130, 160, 210, 240, 280, 330, 360, 500]       # milliseconds, not evenly spaced


class Darker:
    """A restorer whose work can be seen in any frame, and that can be made to fail."""

    def __init__(self, fail_at=None):
        self.calls, self.fail_at = 0, fail_at

    def __call__(self, pixels):
        if self.calls == self.fail_at:
            raise KeyboardInterrupt
        self.calls += 1
        return pixels // 2


@pytest.fixture
def clip(tmp_path):
    """Gray frames that grow lighter, with a tone, in a container of either kind."""
    path = tmp_path / "clip.mkv"
    with av.open(path, "w") as out:
        picture = out.add_stream("libx264", rate=25, options={"crf": "1"})
        picture.width, picture.height, picture.pix_fmt = 48, 32, "yuv420p"
        picture.time_base = picture.codec_context.time_base = Fraction(1, 1000)
        sound = out.add_stream("aac", rate=8000)
        for i, time in enumerate(TIMES):
            frame = av.VideoFrame.from_ndarray(np.full((32, 48, 3), 20 * i + 20, np.uint8), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            out.mux(picture.encode(frame))
        tone = (np.sin(np.arange(4096) / 5) * 20000).astype(np.int16)[None]
        frame = av.AudioFrame.from_ndarray(tone, format="s16", layout="mono")
        frame.sample_rate, frame.pts = 8000, 0
        out.mux(sound.encode(frame))
        out.mux(picture.encode())
        out.mux(sound.encode())
    return path


def frames_of(path):
    with av.open(path) as container:
        return [(round(float(f.pts * f.time_base) * 1000), f.to_ndarray(format="rgb24")) for f in container.decode(video=0)]


def audio_of(path):
    with av.open(path) as container:
        return [bytes(p) for p in container.demux(audio=0) if p.size]


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_frames_times_and_audio(clip, tmp_path, suffix):
    done = []
    target = tmp_path / f"out{suffix}"
    assert video.restore_video(clip, target, Darker(), progress=done.append) == FRAMES == sum(done)
    frames = frames_of(target)
    assert [time for time, _ in frames] == TIMES
    for (_, given), (_, got) in zip(frames_of(clip), frames):
        assert abs(got.astype(float) - given // 2).mean() < 3
    assert audio_of(target) == audio_of(clip) and len(audio_of(clip)) > 2
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["clip.mkv", target.name])


def test_goes_on_after_a_crash(clip, tmp_path, monkeypatch):
    monkeypatch.setattr(video, "PART", 4)
    whole, broken = tmp_path / "whole.mkv", tmp_path / "broken.mkv"
    video.restore_video(clip, whole, Darker())
    with pytest.raises(KeyboardInterrupt):
        video.restore_video(clip, broken, Darker(fail_at=6))
    assert not broken.exists()
    second = Darker()
    video.restore_video(clip, broken, second)
    assert second.calls == FRAMES - 4                # the first part was kept, the second begun anew
    assert all(t == u and np.array_equal(a, b) for (t, a), (u, b) in zip(frames_of(whole), frames_of(broken), strict=True))


def test_parts_of_other_settings_are_not_mixed(clip, tmp_path, monkeypatch):
    monkeypatch.setattr(video, "PART", 4)
    with pytest.raises(KeyboardInterrupt):
        video.restore_video(clip, tmp_path / "o.mkv", Darker(fail_at=6))
    again = Darker()
    video.restore_video(clip, tmp_path / "o.mkv", again, crf=20)
    assert again.calls == FRAMES


def test_refuses_what_it_cannot_do(clip, tmp_path, capsys):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    for source, target, says in ((clip, "o.avi", "ends in"), (tmp_path / "none.mp4", "o.mp4", "no such file"),
                                 (tmp_path / "broken.mp4", "o.mp4", "broken.mp4")):
        with pytest.raises(RestoreError, match=says):
            video.restore_video(source, tmp_path / target, Darker())
    assert main(["video", str(tmp_path / "broken.mp4"), str(tmp_path / "o.mp4")]) == 1
    assert "cannot be read" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["broken.mp4", "clip.mkv"]


def test_command_end_to_end(clip, tmp_path):
    from test_models import TINY

    from restore import create_model, save
    save(create_model("gunet_t", **TINY["gunet_t"]), tmp_path / "m.safetensors")
    assert main(["video", str(clip), str(tmp_path / "out.mp4"), "-m", str(tmp_path / "m.safetensors")]) == 0
    assert [time for time, _ in frames_of(tmp_path / "out.mp4")] == TIMES
    assert main(["video", str(clip), str(tmp_path / "out.mp4"), "-m", str(tmp_path / "m.safetensors")]) == 1
