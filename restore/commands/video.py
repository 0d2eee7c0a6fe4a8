"""Restore a video frame by frame: timestamps, audio and subtitles are kept, the picture is encoded as H.264.

Started again after a crash or Ctrl-C, it goes on where it was; until it is finished, what is done lies in OUT.parts.
Every frame is restored by itself. Needs PyAV: pip install 'anydepth[video]'.
"""

import sys
from pathlib import Path

from ..checkpoint import DEFAULT_MODEL
from ..errors import RestoreError


def add_arguments(parser):
    parser.add_argument("input", metavar="IN", type=Path, help="any video that FFmpeg reads")
    parser.add_argument("output", metavar="OUT", type=Path, help="NAME.mp4, NAME.mov or NAME.mkv")
    parser.add_argument("-m", "--model", default=DEFAULT_MODEL, metavar="M", help="default: %(default)s")
    parser.add_argument("-d", "--depth", metavar="D", help="default: the model's")
    parser.add_argument("--device", default="auto", help="default: %(default)s")
    parser.add_argument("--adapter", metavar="FILE", help="of python -m finetune adapt, as for restore run")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16", "fp16"), help="default: %(default)s")
    parser.add_argument("--memory", metavar="SIZE", help="budget such as 2GB, as for restore run")
    parser.add_argument("--crf", type=int, default=16, metavar="Q", help="of x264, 0 (lossless) to 51 (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")


def run(args):
    if not 0 <= args.crf <= 51:
        raise RestoreError(f"--crf {args.crf}: give a number from 0 to 51")
    if args.output.exists() and not args.overwrite:
        raise RestoreError(f"{args.output} exists; --overwrite replaces it")
    if args.output.exists() and args.output.resolve() == args.input.resolve():
        raise RestoreError(f"{args.output}: the result would replace the input")
    from ..video import count_frames, restore_video
    if not args.input.is_file():
        raise RestoreError(f"{args.input}: no such file")
    frames = count_frames(args.input)
    from tqdm import tqdm

    from ..depth import format_depth
    from ..memory import keep_freed_memory
    from ..restorer import Restorer
    keep_freed_memory()
    restorer = Restorer(args.model, args.depth, args.device, args.precision, args.memory, adapter=args.adapter)
    depth = format_depth(restorer.depth) or "fixed"
    restorer.description = f"{args.model} {depth} {args.precision} {args.memory}{f' {args.adapter}' if args.adapter else ''}"
    print(f"{args.model}: {restorer.model.name}, depth {depth}, {restorer.device}, {args.precision}", file=sys.stderr)
    with tqdm(total=frames, unit="frame", disable=None) as bar:
        count = restore_video(args.input, args.output, restorer, args.crf, bar.update)
    print(f"{args.output}: {count} frames", file=sys.stderr)
