"""python -m data_tools COMMAND ...: build a set of good images out of whatever there is, every rejection explained.

  build    RECIPE | SOURCE [-o FOLDER]   scan, measure, join, decide, report, export; goes on where it stopped
  scan, measure, join, decide, report, export  RECIPE [-o FOLDER]   one stage alone
  inspect  IMAGE ... [--thresholds FILE]       metrics and verdict of single images
  diff     A B                                 what two decisions (work folders) disagree on
  niqe-fit FOLDER ... -o FILE                  fit NIQE's model of good images on images of your own
  bench    [--labels CSV --clean FOLDER ...]   speed beside the decoding floor, accuracy on labelled images

RECIPE is a YAML file; a folder, an archive or a list of URLs by itself is a recipe with every default. Any key can be
given on the command line: --measure.timeout 30 --rules.blurry.sharpness 0.8 --engine ray --workers 4
"""

import sys

from restore.cli import guarded

STAGES = ("scan", "measure", "join", "decide", "report", "export")


def main(argv=None):
    """Run one command; returns the exit status: 0, or 1 for what the user can mend."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if argv else 2
    command, arguments = argv[0], argv[1:]
    if command in ("build", *STAGES):
        from .build import command as function
        return guarded(f"data_tools {command}", function, command, arguments)
    if command in ("inspect", "diff", "bench", "niqe-fit"):
        from . import commands
        return guarded(f"data_tools {command}", getattr(commands, command.replace("-", "_")), arguments)
    import difflib
    near = difflib.get_close_matches(command, ["build", *STAGES, "inspect", "diff", "bench", "niqe-fit"], 1, 0.5)
    print(f"data_tools: no command {command!r}" + (f"; did you mean {near[0]}?" if near else "")
          + " (python -m data_tools --help lists them)", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
