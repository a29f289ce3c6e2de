"""Imports point down: a module imports only from layers below its own."""

import ast
from collections.abc import Iterator
from pathlib import Path

import unziplora_cli

PACKAGE = Path(unziplora_cli.__file__).parent
LAYERS = (
    ("errors",),
    ("paths", "resources"),
    ("events", "vocabulary"),
    ("files", "checks"),
    ("config",),
    ("color", "image_formats", "image_repair"),
    ("dependencies", "images", "packages", "preferences", "prompts"),
    ("job",),
    ("method",),
    ("accel",),
    ("network",),
    ("hub",),
    ("adapters", "projects", "sdxl"),
    ("model_cache",),
    ("report",),
    ("training", "evaluation"),
    ("doctor",),
    ("workflows",),
    ("ui",),
    ("cli",),
    ("__main__",),
)
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}


def imports(file: Path) -> Iterator[str]:
    """The parts of the package that a module imports, including imports inside functions."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} has a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name.split(".")[1] for name in names if name.startswith("unziplora_cli."))


def test_every_part_has_a_layer():
    parts = {
        path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert parts - {"__init__"} <= set(LEVEL)


def test_imports_point_down():
    wrong = []
    for file in PACKAGE.rglob("*.py"):
        part = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if part == "__init__":
            continue
        for other in set(imports(file)) - {part, "__version__"}:
            if LEVEL[other] >= LEVEL[part]:
                wrong.append(f"{file.relative_to(PACKAGE)} imports {other}")
    assert wrong == []


def test_the_method_knows_nothing_of_the_project():
    for file in (PACKAGE / "method").glob("*.py"):
        assert set(imports(file)) <= {"method"}
