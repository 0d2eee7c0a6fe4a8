"""The rules of the house: which package may import which, what stays light, no file that only one machine has."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("restore", "pretrain", "finetune", "data_tools")
SOURCES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def imported(path):
    """Top-level names that a file imports, also inside its functions; relative imports are its own package."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("package", PACKAGES)
def test_restore_is_the_ground_floor(package):
    allowed = {package} if package == "restore" else {package, "restore"}
    for path in SOURCES:
        if path.relative_to(ROOT).parts[0] == package:
            above = set(imported(path)) & set(PACKAGES) - allowed
            assert not above, f"{path.relative_to(ROOT)} imports {above}"


def loaded_by(code):
    """Modules in memory after ``code`` ran in a new Python."""
    script = f"{code}\nimport sys; print(' '.join(sys.modules))"
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(result.stdout.split())


@pytest.mark.parametrize("code, without", [
    ("import restore", {"torch", "numpy", "cv2", "PIL"}),
    ("import restore.cli", {"torch", "numpy", "cv2", "PIL"}),
    ("import restore.restorer, restore.commands.run", {"timm", "datasets", "accelerate", "gradio", "jsonargparse"}),
    ("import restore.training, restore.data, restore.losses, restore.degradations, pretrain.run, finetune.recipe",
     {"datasets", "jsonargparse"}),
])
def test_imports_stay_light(code, without):
    assert not loaded_by(code) & without


def test_every_command_is_there_and_says_what_it_does():
    import importlib

    from restore.cli import COMMANDS, module_of
    for name in COMMANDS:
        module = importlib.import_module(module_of(name))
        assert module.__doc__ and callable(module.add_arguments) and callable(module.run), name


def test_no_file_speaks_of_one_machine():
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    files = [ROOT / name for name in tracked.split("\0") if name] or SOURCES
    pattern = re.compile(r"(^|[^\w.])/(home|root|work)/[a-z]")
    for path in files:
        if path.suffix in (".py", ".md", ".yaml", ".cfg", ".toml", ".json", ".html", ".sh") and path.exists():
            assert not pattern.search(path.read_text(errors="ignore")), path


def test_public_functions_have_docstrings():
    bare = []
    for path in SOURCES:
        tree = ast.parse(path.read_text())
        if tree.body and not ast.get_docstring(tree):
            bare.append(str(path.relative_to(ROOT)))
        for node in tree.body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_") \
                    and not ast.get_docstring(node) and not (node.name in ("add_arguments", "run", "main")):
                bare.append(f"{path.relative_to(ROOT)}:{node.name}")
    assert not bare, bare
