"""Turn a published checkpoint (DyNet, PromptIR, gUNet) into one of ours.

The architecture is recognised from the names of the weights. Tensors that the published network declares and never
uses are dropped. Nothing in the file is executed.
"""


def add_arguments(parser):
    parser.add_argument("file", metavar="FILE", help="a .pth, .pt, .ckpt or .safetensors file")
    parser.add_argument("-o", "--output", required=True, metavar="OUT",
                        help="OUT.safetensors for one file, or a folder for model.safetensors and config.json")
    parser.add_argument("--arch", metavar="NAME", help="the network, if its keys do not tell: dynet, promptir, "
                                                       "gunet_t, gunet_s, gunet_b or gunet_d")


def run(args):
    from ..checkpoint import import_published, save
    from ..depth import count_parameters

    model = import_published(args.file, args.arch)
    save(model, args.output)
    print(f"{args.file}: {model.name}, {count_parameters(model) / 1e6:.3f} M parameters -> {args.output}")
