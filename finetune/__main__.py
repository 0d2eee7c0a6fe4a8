"""Fine-tune a checkpoint on a mixture of restoration tasks, or train a network on it from scratch.

  python -m finetune RECIPE --from CHECKPOINT [--key value ...] [-o OUT] [--resume]
  python -m finetune --pairs IN GT --from CHECKPOINT [--steps N] [--key value ...] [-o OUT]   two folders are enough
  python -m finetune count RECIPE                                  what the recipe's folders hold, without training
  python -m finetune distill RECIPE --teacher CKPT --student NAME|CKPT    a small network that learns from a large one
  python -m finetune allocate CKPT --pairs IN GT --budget 3gmacs -o OUT    OUT/student.yaml: a student for distill that fits
  python -m finetune adapt CKPT --real DIR [--clear DIR] [--task rain] -o OUT    to your own photos, without clean versions
  python -m finetune average CHECKPOINT CHECKPOINT [...] -o OUT.safetensors    the mean of several runs' weights
  python -m finetune fold CHECKPOINT -o OUT.safetensors            gUNet without batch normalisations, for deployment
"""

import argparse
import json
import sys
from pathlib import Path

RECIPES = Path(__file__).parent / "recipes"


def main(argv=None):
    """Run ``python -m finetune`` and return its exit status."""
    from restore.cli import guarded
    argv = list(sys.argv[1:] if argv is None else argv)
    command = argv[0] if argv else ""
    if command in ("", "-h", "--help"):
        print(__doc__.strip() + "\n\npython -m finetune RECIPE --help lists every key of a recipe.")
        return 0 if argv else 2
    commands = {"count": _count, "fold": _fold, "distill": _distill, "allocate": _allocate, "adapt": _adapt,
                "average": _average}
    if command in commands:
        return guarded(f"finetune {command}", commands[command], argv[1:])
    return guarded("finetune", _train, argv)


def _parse(argv, cls=None):
    from restore.recipe import parse_command

    from .recipe import Recipe
    cls = cls or Recipe
    argv = [f"--start{arg[6:]}" if arg == "--from" or arg.startswith("--from=") else arg for arg in argv]
    argv, name = _two_folders(argv)
    recipe, options = parse_command(cls, "python -m finetune", __doc__, argv)
    return recipe, Path(options["out"] or Path("runs") / (name or Path(options["recipe_file"]).stem)), bool(options["resume"])


def _two_folders(argv):
    """``--pairs IN GT`` as the recipe ``pairs.yaml`` with these folders; ``(argv, name of the run)``."""
    from restore.errors import RestoreError
    if "--pairs" not in argv:
        return argv, None
    at = argv.index("--pairs")
    folders, others = argv[at + 1:at + 3], argv[:at] + argv[at + 3:]
    if len(folders) < 2 or any(folder.startswith("-") for folder in folders):
        raise RestoreError("--pairs: give two folders, the degraded images and the clean ones")
    recipe = [] if others and not others[0].startswith("-") else [str(RECIPES / "pairs.yaml")]
    return [*recipe, *others, "--tasks", json.dumps({"pairs": {"pairs": [folders]}})], Path(folders[0]).absolute().name


def _train(argv):
    recipe, out, resume = _parse(argv)
    from .run import run, tell_once
    tell_once(f"final weights: {run(recipe, out, resume)}")


def _distill(argv):
    from . import distill
    from .run import tell_once
    recipe, out, resume = _parse(argv, distill.Distill)
    tell_once(f"final weights: {distill.run(recipe, out, resume)}")


def _allocate(argv):
    parser = argparse.ArgumentParser(prog="python -m finetune allocate", description="Measure what each level of a network is "
                                     "worth on pairs of images, and cut repeats and channels where that costs least, until "
                                     "it fits a budget.")
    parser.add_argument("checkpoint", help="of a network with depths, or a bundled name")
    parser.add_argument("--pairs", nargs="+", action="append", required=True, metavar="DIR",
                        help="a set of pairs, or two folders, degraded and clean; may be given again for another task")
    parser.add_argument("--budget", required=True, help="such as 3gmacs (of a 256x256 image) or 500kparams")
    parser.add_argument("-o", "--out", required=True, help="folder for student.yaml, importance.png and importance.json")
    parser.add_argument("-d", "--depth", help="the depth that is cut; by default the largest")
    parser.add_argument("--images", type=int, default=8, help="of each set, evenly spread (default 8)")
    parser.add_argument("--side", type=int, default=128, help="pixels of their centres (default 128; 0: whole)")
    parser.add_argument("--repeats-only", action="store_true", help="keep all channels, and so the weights")
    parser.add_argument("--compare", action="store_true", help="write uniform.yaml too, with every level cut alike")
    args = parser.parse_args(argv)
    from .allocate import run
    run(args.checkpoint, args.pairs, args.budget, args.out, args.depth, args.images, args.side, args.repeats_only, args.compare)


def _adapt(argv):
    from restore.errors import RestoreError
    from restore.recipe import parse_command

    from .adapt import Adaptation, run
    if argv and not argv[0].startswith("-"):
        argv = ["--start", *argv]
    at = argv.index("--task") + 1 if "--task" in argv else 0
    task = argv[at] if 0 < at < len(argv) else "haze"
    recipe = RECIPES / f"adapt_{task}.yaml"
    if not recipe.is_file():
        raise RestoreError(f"--task {task}: there are haze and rain")
    argv = _joined(argv, "--pairs")
    recipe, options = parse_command(Adaptation, "python -m finetune adapt", __doc__, [str(recipe), *argv])
    name = Path(recipe.real).absolute().name
    out = Path(options["out"] or Path("runs") / f"adapt-{name}")
    run(recipe, out, bool(options["resume"]))


def _joined(argv, flag):
    """``--pairs IN GT`` as one list, which jsonargparse reads."""
    if flag not in argv:
        return argv
    at = argv.index(flag) + 1
    end = next((i for i in range(at, len(argv)) if argv[i].startswith("-")), len(argv))
    return [*argv[:at], json.dumps(argv[at:end]), *argv[end:]]


def _count(argv):
    recipe, _, _ = _parse(argv)
    from .mixture import find_sources, table
    print(table(find_sources(recipe)))


def _average(argv):
    parser = argparse.ArgumentParser(prog="python -m finetune average", description="The mean of the weights of several runs "
                                     "that began from the same checkpoint.")
    parser.add_argument("checkpoints", nargs="+")
    parser.add_argument("-o", "--out", required=True, help="a .safetensors file, or a folder")
    args = parser.parse_args(argv)
    from restore import checkpoint

    from .average import average
    checkpoint.save(average(args.checkpoints), args.out)
    print(f"{args.out}: the mean of {len(args.checkpoints)} checkpoints")


def _fold(argv):
    parser = argparse.ArgumentParser(prog="python -m finetune fold", description="Fold a gUNet's batch normalisations into its "
                                     "convolutions: the same output with fewer operations.")
    parser.add_argument("checkpoint")
    parser.add_argument("-o", "--out", required=True, help="a .safetensors file, or a folder")
    args = parser.parse_args(argv)
    from restore import checkpoint
    from restore.models.gunet import fold_batchnorm
    model = fold_batchnorm(checkpoint.load(args.checkpoint))
    checkpoint.save(model, args.out)
    print(f"{args.out}: {model.name} without batch normalisations")


if __name__ == "__main__":
    sys.exit(main())
