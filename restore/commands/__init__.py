"""One module a subcommand of `restore`: a docstring, `add_arguments(parser)` and `run(args)`."""
