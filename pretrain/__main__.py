"""Pre-train a network on clean images.

  python -m pretrain RECIPE [--key value ...] [-o OUT] [--resume]   train (torchrun -m pretrain ... on several devices)
  python -m pretrain plan RECIPE [--key value ...]                   what the run will cost, before it runs
  python -m pretrain bench [--help]                                  speed of a training step and of the data pipeline
"""

import sys
from pathlib import Path


def main(argv=None):
    """Run ``python -m pretrain`` and return its exit status."""
    from restore.cli import guarded
    argv = list(sys.argv[1:] if argv is None else argv)
    command = argv[0] if argv else ""
    if command == "bench":
        from .bench import main as bench
        return guarded("pretrain bench", bench, argv[1:])
    if command == "plan":
        return guarded("pretrain plan", _plan, argv[1:])
    if command in ("", "-h", "--help") and len(argv) < 2:
        print(__doc__.strip() + "\n\npython -m pretrain RECIPE --help lists every key of a recipe.")
        return 0 if argv else 2
    return guarded("pretrain", _train, argv)


def _parse(argv, prog, extra=()):
    from restore.recipe import parse_command

    from .recipe import Recipe
    return parse_command(Recipe, prog, __doc__, argv, extra)


def _train(argv):
    recipe, options = _parse(argv, "python -m pretrain")
    from .run import run
    out = options["out"] or Path("runs") / Path(options["recipe_file"]).stem
    print(f"final weights: {run(recipe, out, bool(options['resume']))}")


def _plan(argv):
    recipe, options = _parse(
        argv,
        "python -m pretrain plan",
        [(["--timed"], {"type": int, "help": "steps of each depth to time for the hours (2); 0 for none"})],
    )
    from .plan import plan
    print(plan(recipe, 2 if options["timed"] is None else options["timed"]))


if __name__ == "__main__":
    sys.exit(main())
