"""Serve a page on which photos are restored in the browser (pip install 'anydepth[web]').

Everything stays on this computer: the page loads nothing from elsewhere, photos lie in a temporary folder while their
page is open and are deleted after that, and when the program ends (Ctrl-C). Only this computer can open the page
unless --host says otherwise; there is no password.
"""

import sys
from pathlib import Path

from ..errors import RestoreError

_PORT = 7860


def add_arguments(parser):
    parser.add_argument("-m", "--model", action="append", default=[], metavar="M",
                        help="checkpoint folder or file, shown beside the bundled networks and chosen first; may be repeated")
    parser.add_argument("--host", default="127.0.0.1", metavar="H",
                        help="address to listen at; 0.0.0.0 lets every computer in the network in (default: %(default)s)")
    parser.add_argument("--port", type=int, default=_PORT, metavar="P", help="0 takes any that is free (default: %(default)s)")
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    parser.add_argument("--max-upload", default="200MB", metavar="SIZE", help="of a photo's file (default: %(default)s)")
    parser.add_argument("--max-pixels", type=float, default=50, metavar="MP", help="of a photo, in megapixels (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: %(default)s)")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16", "fp16"), help="default: %(default)s")
    parser.add_argument("--runtime", default="torch", choices=("torch", "onnxruntime", "openvino", "auto"),
                        help="as for restore run (default: %(default)s)")
    parser.add_argument("--memory", metavar="SIZE", help="budget such as 2GB or 'unlimited'; above it a photo is restored in tiles "
                        "(default: 2GB on a CPU, 80%% of what an accelerator has free)")


def run(args):
    if not 0 <= args.port <= 65535:
        raise RestoreError(f"--port {args.port}: give a number from 1 to 65535, or 0 for any that is free")
    if not args.max_pixels > 0:
        raise RestoreError(f"--max-pixels {args.max_pixels:g}: give megapixels, more than 0")
    from ..checkpoint import bundled_names
    from ..footprint import parse_memory
    from ..memory import keep_freed_memory
    from ..web.server import LOCAL, serve
    from ..web.sessions import Limits
    upload = parse_memory(args.max_upload)
    if upload == float("inf"):
        raise RestoreError("--max-upload: give a size such as 200MB")
    models = list(dict.fromkeys([*args.model, *bundled_names()]))
    if not models:
        raise RestoreError("no network is bundled with this installation; give one with --model")
    for name in args.model:
        if not Path(name).exists() and name not in bundled_names():
            raise RestoreError(f"--model {name}: no such file or folder, and no bundled network of this name")

    def ready(address):
        print(f"AnyDepth is at {address}   (Ctrl-C ends it and deletes the photos)", flush=True)
        if args.host not in LOCAL:
            print(f"restore serve: every computer that reaches {args.host} can use it; there is no password", file=sys.stderr)
        if args.open:
            import webbrowser
            webbrowser.open(address)

    keep_freed_memory()
    serve(models, args.host, args.port, Limits(int(upload), int(args.max_pixels * 1e6)), ready, device=args.device,
          precision=args.precision, memory=args.memory, runtime=args.runtime)
