"""The ``restore`` command: one subcommand a file in ``restore/commands``, imported only when it is called."""

import argparse
import importlib
import os
import sys

from .errors import RestoreError

# name -> what the list of commands says of it; the module of the same name holds add_arguments and run
COMMANDS = {
    "demo": "restore sample photos at two depths and show what it costs",
    "run": "restore images: files, folder trees or globs",
    "serve": "a page in the browser on which photos are restored",
    "video": "restore a video, its sound and its timestamps kept",
    "degrade": "show or apply noise, JPEG, masking, rain and haze",
    "info": "parameters and MACs of a network at each depth",
    "import": "turn a published checkpoint into one of ours",
    "depths": "quality and cost of each depth, as a table and a curve",
    "export": "write a network as an ONNX, OpenVINO or torch.export file",
    "speed": "milliseconds at each depth, beside what this machine can do",
    "bench": "score models on benchmark sets, with the protocol beside every number",
}


def module_of(command):
    """``import`` is a keyword, so every command module that clashes ends in an underscore."""
    return f"restore.commands.{'import_' if command == 'import' else command}"


def main(argv=None):
    """Run one ``restore`` command and return its exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview())
        return 0 if argv else 2
    if argv[0] == "--version":
        from . import __version__
        print(f"anydepth {__version__}")
        return 0
    name = argv[0]
    if name not in COMMANDS:
        print(f"restore: no command {name!r}; there are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    module = importlib.import_module(module_of(name))
    parser = argparse.ArgumentParser(prog=f"restore {name}", description=module.__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    module.add_arguments(parser)
    return guarded(f"restore {name}", module.run, parser.parse_args(argv[1:]))


def guarded(prog, function, *args):
    """Call ``function``; a user's error becomes one line on stderr and status 1, Ctrl-C status 130."""
    try:
        return function(*args) or 0
    except RestoreError as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{prog}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:                    # the reader went away, as in `restore info | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _overview():
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {what}" for name, what in COMMANDS.items()]
    return "\n".join(["usage: restore COMMAND ...", "", *lines, "", "restore COMMAND --help tells the rest."])


if __name__ == "__main__":
    sys.exit(main())
