"""Pre-train a network on clean images.

  python -m pretrain RECIPE [--key value ...] [-o OUT] [--resume]   train (torchrun -m pretrain ... on several devices)
  python -m pretrain plan RECIPE [--key value ...]                   what the run will cost, before it runs
  python -m pretrain study STUDY [--key value ...] [-o OUT] [--resume] [--plan]   many small runs compared at equal cost
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
    if command == "study":
        return guarded("pretrain study", _study, argv[1:])
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
    from restore.errors import RestoreError

    from .plan import plan
    if (options["timed"] or 0) < 0:
        raise RestoreError(f"--timed: {options['timed']} is negative")
    print(plan(recipe, 2 if options["timed"] is None else options["timed"]))


def _study(argv):
    from restore.recipe import parse_command

    from . import study as studies
    study, options = parse_command(studies.Study, "python -m pretrain study", studies.__doc__, argv, [
        (["--plan"], {"action": "store_true", "help": "print the runs and the hours that they will take, and stop"}),
        (["--only"], {"nargs": "+", "metavar": "ARM", "help": "run these arms alone"}),
        (["--part"], {"metavar": "I/N", "help": "every N-th run from the I-th, for N processes side by side"}),
    ])
    out = Path(options["out"] or Path("runs") / Path(options["recipe_file"]).stem)
    part = studies.parse_part(options["part"])
    if (out / studies.FOLDER).exists() and not options["resume"] and not options["plan"]:
        raise studies.RestoreError(f"{out}: holds a study; add --resume to go on, or choose another folder")
    planned = studies.runs(study, out)
    print(studies.estimate(study, planned), flush=True)
    if not options["plan"]:
        studies.go(study, out, planned, options["only"] or (), part)


if __name__ == "__main__":
    sys.exit(main())
