"""Restore images: files, folder trees or globs.

Without -o the result lies beside its input as NAME.restored.EXT; with -o FOLDER it keeps its name, and the tree below
each folder its structure; with one input, -o may name a file. An output has the format of its suffix, the bit depth
as far as the format has it, the alpha and the metadata of its input. Finished outputs are never touched unless
--overwrite says so: with --resume they are skipped, so an interrupted run goes on where it was.

Started as several processes (torchrun or accelerate launch -m restore run ...), each takes its share of the files.

A file that cannot be restored is reported and the rest goes on; the exit status is then 1.
"""

import contextlib
import errno
import glob
import os
import sys
import time
import warnings
from pathlib import Path

from ..checkpoint import DEFAULT_MODEL
from ..errors import ImageError, RestoreError
from ..files import expand, require_space
from ..memory import collector_paused

MARK = ".restored"
_LARGE = 4_000_000                           # pixels from which the time is told beforehand
_STALE = 60                                  # seconds: no image takes longer to write
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def add_arguments(parser):
    parser.add_argument("inputs", nargs="+", metavar="IN", help="a file, a folder (with all below it) or a quoted glob")
    parser.add_argument("-o", "--output", metavar="OUT", help="a folder, or for a single input a file")
    parser.add_argument("-m", "--model", default=DEFAULT_MODEL, metavar="M",
                        help="bundled name, checkpoint folder or .safetensors (default: %(default)s)")
    parser.add_argument("--adapter", metavar="FILE", help="of python -m finetune adapt, for this model; works at every depth")
    parser.add_argument("-d", "--depth", metavar="D", help="small, large, repeats such as 2,3,3,4, or auto "
                        "with --budget (default: the model's)")
    parser.add_argument("--budget", metavar="B", help="for each image the best depth within 200ms, 20gmacs or 1GB (times are "
                        "measured once for each device and remembered)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: %(default)s)")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16", "fp16"), help="default: %(default)s")
    parser.add_argument("--runtime", default="torch", choices=("torch", "onnxruntime", "openvino", "auto"),
                        help="auto takes the fastest that is installed; all but torch export the network once (default: %(default)s)")
    parser.add_argument("--memory", metavar="SIZE", help="budget such as 2GB or 'unlimited'; above it an image is restored in "
                        "tiles, which changes the result slightly (default: 2GB on a CPU, 80%% of what an accelerator has free)")
    parser.add_argument("--quality", type=int, metavar="Q", help="of JPEG and lossy WebP, 1 to 100 (default: 95, or the input's "
                        "own if that is finer)")
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--resume", action="store_true", help="skip inputs whose output exists")
    existing.add_argument("--overwrite", action="store_true", help="replace outputs that exist")


def run(args):
    if args.quality is not None and not 1 <= args.quality <= 100:
        raise RestoreError(f"--quality {args.quality}: give a number from 1 to 100")
    with collector_paused():
        from .. import image, restorer       # noqa: F401 - and with them torch, which is most of a small image's time
    rank, world = (int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
    jobs = work_list(args.inputs, args.output)[rank::world]      # its own outputs alone are looked at below
    finished = {target for _, target in jobs if target.exists()}
    if finished and not (args.resume or args.overwrite):
        raise RestoreError(f"{min(finished)} exists{f', and {len(finished) - 1} more outputs' if len(finished) > 1 else ''}; "
                           "--resume skips them, --overwrite replaces them")
    if args.resume:
        jobs = [job for job in jobs if job[1] not in finished]
        for _, target in jobs:
            _sweep(target)
        if finished:
            print(f"{len(finished)} finished before, {len(jobs)} to do", file=sys.stderr)
    if not jobs:
        return 0
    return _restore_all(jobs, _restorer(args), args.quality)


def work_list(inputs, output=None):
    """``[(input, output), ...]`` as paths, in the order of the work. Nothing is read or written.

    In a folder, earlier results (``NAME.restored.EXT``, or whatever lies below ``output``) are no inputs. Raises
    :class:`RestoreError` if there is nothing to do, two inputs share an output, an output is an input, or an
    output's format is not written.
    """
    named = {str(Path(name).absolute()) for name in inputs}
    single = len(inputs) == 1 and Path(inputs[0]).is_file()
    to_file = output is not None and single and Path(output).suffix and not Path(output).is_dir()
    folder = None if output is None or to_file else Path(output)
    if folder is not None and folder.is_file():
        raise RestoreError(f"{output}: is a file, and {len(inputs)} inputs need a folder")
    outputs = None if folder is None or _inside(named, folder) else folder.resolve()
    jobs = []
    for path, relative in expand(inputs):
        if str(path.absolute()) not in named and (path.stem.endswith(MARK) or (outputs and outputs in path.resolve().parents)):
            continue
        if to_file:
            target = Path(output)
        elif folder is not None:
            target = folder / relative
        else:
            target = path.with_name(f"{path.stem}{MARK}{path.suffix}")
        jobs.append((path, target))
    if not jobs:
        raise RestoreError(f"{', '.join(map(str, inputs))}: no images there")
    _check(jobs)
    return jobs


def _inside(named, folder):
    """Whether one of the inputs is ``folder`` or lies in it: then what is there was asked for."""
    here = folder.resolve()
    return any(here == Path(name).resolve() or here in Path(name).resolve().parents for name in named)


def _check(jobs):
    from ..image import check_writable
    sources = {path.resolve(): path for path, _ in jobs}
    taken = {}
    for path, target in jobs:
        check_writable(target)
        place = target.resolve()
        if place in sources:
            raise RestoreError(f"{target}: the result of {path} would replace an input; choose another folder with -o")
        if place in taken:
            raise RestoreError(f"{path} and {taken[place]} would both become {target}; restore them in two runs, or give "
                               "their common folder")
        if place.is_dir():
            raise RestoreError(f"{target}: is a folder where the result of {path} should go")
        taken[place] = path


def _restorer(args):
    from ..depth import format_depth
    from ..memory import keep_freed_memory
    from ..restorer import Restorer
    keep_freed_memory()
    depth = args.depth or ("auto" if args.budget else None)
    restorer = Restorer(args.model, depth, _device(args.device), args.precision, args.memory, budget=args.budget,
                        runtime=args.runtime, adapter=args.adapter)
    depth = f"within {args.budget}" if args.budget else format_depth(restorer.depth) or "fixed"
    print(f"{args.model}: {restorer.model.name}, depth {depth}, "
          f"{restorer.device}, {args.precision}{f', adapter {args.adapter}' if args.adapter else ''}", file=sys.stderr)
    return restorer


def _device(name):
    """Of several processes on a machine each takes the GPU of its number."""
    if name == "auto" and "LOCAL_RANK" in os.environ:
        import torch
        if torch.cuda.is_available():
            return f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"
    return name


def _restore_all(jobs, restorer, quality):
    from tqdm import tqdm

    from ..image import image_size
    warnings.filterwarnings("ignore", module="PIL")          # what matters of them is an error of ours
    sizes, failed = {}, 0
    for path, _ in jobs:
        try:
            height, width = image_size(path)
            sizes[path] = height * width / 1e6
        except ImageError:                   # reported when its turn comes
            sizes[path] = 0
    layout = "{percentage:3.0f}%|{bar}| {n:.2f}/{total:.2f} MP [{elapsed}<{remaining}{postfix}]"
    with tqdm(total=sum(sizes.values()), bar_format=layout, disable=None) as bar:
        for count, (path, target) in enumerate(jobs, 1):
            bar.set_postfix_str(f"{count}/{len(jobs)} {path.name}")
            before = bar.n
            try:
                _restore_one(path, target, restorer, quality, bar)
            except RestoreError as error:
                if isinstance(error.__cause__, OSError) and error.__cause__.errno in _DISK_FULL:
                    raise RestoreError(f"{error}. Stopped after {count - 1} of {len(jobs)}; free some space and go on with "
                                       "--resume") from error
                failed += 1
                tqdm.write(f"restore run: error: {error}", file=sys.stderr)
            bar.update(before + sizes[path] - bar.n)
    if failed:
        print(f"restore run: {failed} of {len(jobs)} failed", file=sys.stderr)
    return int(failed > 0)


def _restore_one(path, target, restorer, quality, bar):
    from tqdm import tqdm

    from ..budget import readable_seconds, seconds
    from ..depth import format_depth
    from ..image import check_writable, read_image
    image = read_image(path)
    check_writable(target, alpha=image.alpha is not None)
    _, height, width = image.pixels.shape
    _require_space(target, height * width * (1 if image.gray else 3) * image.bits // 8)
    notes = list(image.notes)
    if restorer.budget:
        restorer = restorer.for_size(height, width)
        notes.append(f"depth {format_depth(restorer.depth)}")
    tiles = restorer.count_tiles(height, width)
    if tiles > 1:
        tall, wide = restorer.tile(height, width)
        notes.append(f"restored in {tiles} tiles of {wide} x {tall}, which differs slightly from the whole (see --memory)")
    if height * width >= _LARGE:
        notes.append(f"{height * width / 1e6:.1f} megapixels, about {readable_seconds(seconds(restorer, height, width))}")
    for note in notes:
        tqdm.write(f"{path}: {note}", file=sys.stderr)
    pixels, image.pixels = image.pixels, None                # so that the input goes before the output is written
    image.pixels = restorer.restore(pixels, lambda done: bar.update(done / 1e6))
    del pixels
    image.save(target, quality)


def _sweep(target):
    """Remove what a killed run may have left of ``target``: the hidden temporary file of :mod:`restore.files`."""
    pattern = glob.escape(f".{target.stem[:80]}.") + "?" * 8 + glob.escape(target.suffix)
    for path in target.parent.glob(pattern):
        with contextlib.suppress(OSError):   # another process may be at it
            if time.time() - path.stat().st_mtime > _STALE:
                path.unlink()


def _require_space(target, needed):
    try:
        require_space(target.parent, needed, "the result")
    except RestoreError as error:
        raise RestoreError(str(error)) from OSError(errno.ENOSPC, "No space left on device")
