"""Recipes: what a run is, as typed dataclasses, read from YAML (or a dict) and from the command line.

A recipe class is a dataclass whose fields are numbers, strings, booleans, lists, dictionaries or further such
dataclasses. Its optional method ``check()`` raises :class:`RestoreError`, naming the key, for values that cannot be.
The command line goes through jsonargparse; :func:`from_dict` and :func:`read` do the same work for a file without it.
"""

import dataclasses
import difflib
import math
import types
import typing
from pathlib import Path

from .errors import RestoreError


def from_dict(cls, values, where=""):
    """A recipe of class ``cls`` from nested dictionaries; RestoreError names what is unknown or of a wrong type."""
    if not isinstance(values, dict):
        raise RestoreError(f"{where.rstrip('.') or 'the recipe'}: expected keys and values, got {values!r}")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    for key in values:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, 1, 0.5)
            hint = f"did you mean {where}{near[0]}?" if near else f"known keys: {', '.join(sorted(fields))}"
            raise RestoreError(f"{where}{key}: no such key; {hint}")
    made = cls(**{key: _convert(hints[key], value, f"{where}{key}") for key, value in values.items()})
    if not where:
        check(made)
    return made


def check(recipe, where=""):
    """Call every ``check()`` in the recipe, the inner ones first; they raise RestoreError naming the key."""
    for field in dataclasses.fields(recipe):
        inner = getattr(recipe, field.name)
        if dataclasses.is_dataclass(inner):
            check(inner, f"{where}{field.name}.")
    if hasattr(recipe, "check"):
        try:
            recipe.check()
        except RestoreError as error:
            raise RestoreError(f"{where}{error}") from None


def require_within(recipe, lowest, highest, *keys):
    """For a recipe's ``check()``: RestoreError naming the first of ``keys`` that is not a finite number in
    ``lowest..highest``."""
    for key in keys:
        value = getattr(recipe, key)
        if not (lowest <= value <= highest and value < math.inf):                   # NaN is neither
            limits = f"is not in {lowest}..{highest}" if highest < math.inf else f"must be {lowest} or more, and finite"
            raise RestoreError(f"{key}: {value} {limits}")


def require_rising(recipe, lowest, highest, *keys):
    """The same for ranges: each of ``keys`` holds two numbers, the first no larger than the second."""
    for key in keys:
        value = list(getattr(recipe, key))
        if len(value) != 2 or not lowest <= value[0] <= value[1] <= highest:
            raise RestoreError(f"{key}: {value} must be two numbers that rise and lie in {lowest}..{highest}")


def to_dict(recipe):
    """The recipe as plain dictionaries, lists and scalars, every default written out."""
    return _plain(dataclasses.asdict(recipe))


def flatten(values, where=""):
    """Nested dictionaries as one dictionary with dotted keys."""
    flat = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f"{where}{key}."))
        else:
            flat[f"{where}{key}"] = value
    return flat


def read_yaml(path):
    """What a YAML (or JSON) file holds; raises RestoreError naming the file where it cannot be read or is neither."""
    import yaml
    try:
        return yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise RestoreError(f"{path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RestoreError(f"{path}: not YAML: {' '.join(str(error).split())}") from None


def read(cls, path, overrides=()):
    """The recipe in a YAML or JSON file; ``overrides`` are pairs of a dotted key and a value."""
    values = read_yaml(path)
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise RestoreError(f"{path}: expected keys and values, got {values!r}")
    for key, value in overrides:
        set_key(values, key, value, f"{path}: ")
    return from_dict(cls, values)


def set_key(values, key, value, where=""):
    """Set a dotted key in nested dictionaries, replacing what stands there; RestoreError where a part of it is no
    dictionary."""
    *groups, last = key.split(".")
    inner = values
    for group in groups:
        if inner.get(group) is None:
            inner[group] = {}
        inner = inner[group]
        if not isinstance(inner, dict):
            raise RestoreError(f"{where}{group} is {inner!r} there, so {key} cannot be given")
    inner[last] = value


def _convert(hint, value, where):
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, f"{where}.")
    if origin in (typing.Union, types.UnionType):
        for choice in arguments:
            if choice is type(None) and value is None:
                return None
            try:
                return _convert(choice, value, where)
            except RestoreError:
                continue
    elif origin is typing.Literal:
        if value in arguments:
            return value
        near = difflib.get_close_matches(str(value), [str(a) for a in arguments], 1, 0.5)
        raise RestoreError(f"{where}: {value!r} is none of {', '.join(map(str, arguments))}"
                           + (f"; did you mean {near[0]}?" if near else ""))
    elif origin is list and isinstance(value, (list, tuple)):
        return [_convert(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value)]
    elif origin is tuple and isinstance(value, (list, tuple)):
        if arguments[-1] is Ellipsis:
            return tuple(_convert(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
        if len(value) == len(arguments):
            return tuple(_convert(a, item, f"{where}[{i}]") for i, (a, item) in enumerate(zip(arguments, value)))
    elif origin is dict and isinstance(value, dict):
        return {_convert(arguments[0], k, where): _convert(arguments[1], v, f"{where}.{k}") for k, v in value.items()}
    elif hint is typing.Any or (hint in (dict, list, bool) and isinstance(value, hint)):
        return value
    elif hint in (int, float) and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:                                                    # YAML 1.1 reads 1e-4 as a word
            number = float(value)
        except (ValueError, OverflowError):
            number = None
        if number is not None and (hint is float or number.is_integer()):
            return hint(value) if isinstance(value, hint) else hint(number)
    elif hint is str and isinstance(value, (str, Path)):
        return str(value)
    raise RestoreError(f"{where}: expected {_name(hint)}, got {value!r}")


def _name(hint):
    return getattr(hint, "__name__", None) if isinstance(hint, type) else str(hint).replace("typing.", "")


def _plain(value):
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def parse_command(cls, prog, description, argv, extra=()):
    """``RECIPE [--key value ...] [-o OUT] [--resume]`` read by jsonargparse: ``(recipe, options)``.

    ``argv[0]`` is the recipe's path; every key of the recipe is an option (``--data.crop 64``). ``extra`` are more
    options, as (flags, keyword arguments) for ``add_argument``. Raises RestoreError for what the recipe or the command
    line gets wrong.
    """
    import jsonargparse
    argv, entries = _entries(cls, argv)
    parser = jsonargparse.ArgumentParser(prog=prog, description=description, exit_on_error=False, default_env=False)
    parser.add_argument("recipe_file", metavar="RECIPE", type=str, help="a YAML file")
    parser.add_argument("-o", "--out", type=str, help="folder of the run; by default runs/ and the recipe's name")
    parser.add_argument("--resume", action="store_true", help="go on from the last whole checkpoint in that folder")
    for flags, options in extra:
        parser.add_argument(*flags, **options)
    own = {"recipe_file", "out", "resume", *(flags[-1].lstrip("-").replace("-", "_") for flags, _ in extra)}
    parser.add_class_arguments(cls, as_group=False)
    try:
        given = parser.parse_args(argv, defaults=False)
    except jsonargparse.ArgumentError as error:
        raise RestoreError(_readable(error, cls)) from None
    values = given.as_dict() if hasattr(given, "as_dict") else vars(given)
    overrides = [(key, value) for key, value in flatten({k: v for k, v in values.items() if k not in own}).items()]
    return read(cls, values["recipe_file"], [*overrides, *entries]), {key: values.get(key) for key in own}


def _entries(cls, argv):
    """``(argv without them, overrides)`` for ``--tasks.NAME.KEY VALUE``: keys within the entries of a dictionary of
    dataclasses.

    jsonargparse knows such an entry only as a whole, and would replace what the recipe says of it.
    """
    import yaml
    groups = tuple(f"--{name}." for name, hint in typing.get_type_hints(cls).items()
                   if typing.get_origin(hint) is dict and dataclasses.is_dataclass(typing.get_args(hint)[1]))
    rest, overrides, waiting = [], [], list(argv)
    while waiting:
        flag, equals, value = waiting.pop(0).partition("=")
        if not flag.startswith(groups):
            rest.append(flag + equals + value)
        elif not equals and not waiting:
            raise RestoreError(f"{flag}: expected a value")
        else:
            overrides.append((flag[2:], yaml.safe_load(value if equals else waiting.pop(0))))
    return rest, overrides


def _readable(error, cls):
    """jsonargparse's message as one line that names the key, with the near name for an unknown one."""
    text = " ".join(str(error).split())
    if not text.startswith("unrecognized arguments: --"):
        return text.replace("Parser key ", "").replace("<class '", "").replace("'>", "").replace("typing.", "")
    wrong = text.split("--", 1)[1].split()[0].split("=")[0]
    near = difflib.get_close_matches(wrong, _keys(cls), 1, 0.5)
    return f"--{wrong}: no such key" + (f"; did you mean --{near[0]}?" if near else "")


def _keys(cls, where=""):
    for name, hint in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(hint):
            yield from _keys(hint, f"{where}{name}.")
        else:
            yield f"{where}{name}"
