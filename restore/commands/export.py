"""Write a network at one depth as an ONNX, OpenVINO or torch.export file that runs without this package.

The file is opened in its own runtime and compared with the network at two sizes before it is written. Its metadata
tells the value range, the multiple that its sides need, the depth and the licence; `restore run -m FILE` runs it, and
examples/run_onnx.py shows how to do so with onnxruntime and numpy alone.

--int8 FOLDER writes the convolutions of an ONNX file in 8 bits, all but the first and the last. Half of the images in
FOLDER give the ranges, the other half measure what is lost, which is printed; above --max-loss nothing is written. FOLDER
holds input/ and target/ with images of the same names, or clean photos, which then get noise of sigma 25.
"""

from ..errors import RestoreError
from .info import parse_size


def add_arguments(parser):
    parser.add_argument("model", metavar="MODEL", help="bundled name, checkpoint folder or .safetensors")
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="NAME.onnx, NAME.xml (OpenVINO) or NAME.pt2 (torch)")
    parser.add_argument("--adapter", metavar="FILE", help="of python -m finetune adapt: its changes go into the file's weights")
    parser.add_argument("--format", choices=("onnx", "openvino", "torch"), help="default: by the suffix of OUT")
    parser.add_argument("-d", "--depth", metavar="D", help="default: the model's")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "fp16"), help="of the stored weights (default: %(default)s)")
    parser.add_argument("--int8", metavar="FOLDER", help="8-bit convolutions, calibrated on these images (ONNX)")
    parser.add_argument("--max-loss", type=float, default=0.3, metavar="DB", help="that --int8 may cost (default: %(default)s dB)")
    parser.add_argument("--size", default="dynamic", metavar="dynamic|HxW", help="of the images (default: %(default)s)")
    parser.add_argument("--license", default="Apache-2.0", metavar="L", help="for the metadata (default: %(default)s)")


def run(args):
    from pathlib import Path

    from ..checkpoint import load
    from ..depth import format_depth
    from ..export import FORMATS, TOLERANCE, export
    by_suffix = {suffix: name for name, suffix in FORMATS.items()}
    suffix = Path(args.output).suffix
    if suffix not in by_suffix:
        raise RestoreError(f"-o {args.output}: the name ends in {', '.join(by_suffix)}")
    size = None if args.size == "dynamic" else parse_size(args.size)
    if args.int8 and (args.format or by_suffix[suffix], args.precision) != ("onnx", "fp32"):
        raise RestoreError("--int8: goes with the ONNX format and no --precision")
    model = load(args.model)
    if args.adapter:
        from .. import adapter
        model = adapter.load(args.adapter).merged(model)
    done = f"{args.model}: {model.name}, depth {format_depth(model.repeats(args.depth)) or 'fixed'}, size {args.size} -> {args.output}"
    if args.int8:
        from ..quantize import export_int8, read_pairs
        pairs = read_pairs(args.int8, size)
        before, after = export_int8(model, args.output, pairs, args.depth, size, args.license, args.max_loss)
        print(f"{done}\n8 bits lose {before - after:.3f} dB ({before:.3f} -> {after:.3f}) on {len(pairs) // 2} images that did not "
              f"calibrate (allowed: {args.max_loss} dB)")
        return
    error = export(model, args.output, args.format or by_suffix[suffix], args.depth, size, args.precision, args.license)
    print(f"{done}\ndiffers from the network by {error:.1e} of the change that it makes, at two sizes (allowed: {TOLERANCE[args.precision]:.0e})")
