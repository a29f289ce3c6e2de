"""The imports and calls that the package may and may not contain."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import unziplora_cli

PACKAGE = Path(unziplora_cli.__file__).parent
FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))

FORBIDDEN_IMPORTS = {
    # unpickle or execute files
    *("pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "code", "codeop"),
    *("yaml", "ruamel", "runpy", "imp"),
    # unpack archives, which can write anywhere
    *("zipfile", "tarfile", "zipimport"),
    # parsers that resolve external references
    *("xml", "lxml"),
}
PROCESSES = {"cli/_opening.py", "doctor/environment.py"}
"""The only modules that start other programs: nvidia-smi and the like, and what opens a file."""
OWN_PROCESSES = {"workflows/demo.py"}
"""The only modules that start this program a second time, for a function of their own."""
DYNAMIC_IMPORTS = {"doctor/environment.py"}
NETWORK = {"hub.py", "network.py", "doctor/environment.py", "ui/server.py"}
"""The only modules that import an HTTP library or sockets; the page's server only listens."""


@cache
def nodes(file: str) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(ast.parse((PACKAGE / file).read_text(encoding="utf-8"))))


def imported(file: str) -> set[str]:
    """All imports of a module with their parents: a.b.c gives a, a.b and a.b.c."""
    names = set()
    for node in nodes(file):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {".".join(name.split(".")[: i + 1]) for name in names for i in range(name.count(".") + 1)}


def calls(file: str) -> Iterator[tuple[str, ast.Call]]:
    """All calls of a module with their name: `torch.load`, `eval`, `open`."""
    for node in nodes(file):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


@pytest.mark.parametrize("file", FILES)
def test_no_module_unpickles_unpacks_or_executes_files(file):
    assert not imported(file) & FORBIDDEN_IMPORTS
    for name, call in calls(file):
        last = name.split(".")[-1]
        assert name not in ("eval", "exec", "compile", "__import__", "os.system", "os.popen"), call.lineno
        assert last not in ("extractall", "unpack_archive", "load_module", "allow_pickle"), call.lineno
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert keywords.get("shell", "False") == "False", call.lineno
        assert keywords.get("trust_remote_code", "False") == "False", call.lineno
        assert keywords.get("allow_pickle", "False") == "False", call.lineno


def test_torch_load_is_called_once_with_weights_only():
    loads = [
        (file, {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords})
        for file in FILES
        for name, call in calls(file)
        if name.endswith("torch.load") or (name == "load" and "torch.load" in imported(file))
    ]
    assert [file for file, _ in loads] == ["adapters/merge_weights.py"]
    assert loads[0][1]["weights_only"] == "True"


def test_processes_are_started_in_few_modules_and_never_by_a_shell():
    assert {file for file in FILES if "subprocess" in imported(file)} == PROCESSES
    for file in PROCESSES:
        for name, call in calls(file):
            if name.startswith("subprocess."):
                keywords = {keyword.arg for keyword in call.keywords}  # None: of a dict, which may hold any
                assert keywords.isdisjoint({None, "shell", "executable"}), f"{file}:{call.lineno}"
    assert not [file for file in FILES if {"pty", "os.system"} & imported(file)]
    assert {file for file in FILES if "multiprocessing" in imported(file)} == OWN_PROCESSES
    for file in OWN_PROCESSES:
        started = [call for name, call in calls(file) if name.split(".")[-1] == "Process"]
        targets = [ast.unparse(k.value) for call in started for k in call.keywords if k.arg == "target"]
        functions = {node.name for node in nodes(file) if isinstance(node, ast.FunctionDef)}
        assert len(targets) == len(started) == 1
        assert set(targets) <= functions


def test_modules_are_imported_by_name_in_one_module():
    dynamic = {file for file in FILES for name, _ in calls(file) if name.endswith("import_module")}
    assert dynamic <= DYNAMIC_IMPORTS


def test_http_is_used_in_few_modules():
    http = {"requests", "httpx", "aiohttp", "urllib.request", "http", "socket", "urllib3"}
    assert {file for file in FILES if http & imported(file)} <= NETWORK


def test_models_are_loaded_only_from_safetensors():
    """Every from_pretrained that reads weights passes use_safetensors."""
    for file in FILES:
        for name, call in calls(file):
            if name.endswith("from_pretrained") and not re.search("Tokenizer|Processor", name):
                assert "use_safetensors=True" in ast.unparse(call), f"{file}:{call.lineno}"


def test_the_package_contains_no_pickle_and_no_binary():
    allowed = {
        ".py",
        ".typed",
        ".json",
        ".txt",
        ".toml",
        ".png",
        ".safetensors",
        ".md",
        ".html",
        ".css",
        ".js",
    }
    kinds = {path.suffix for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert kinds <= allowed
