"""What may import what, and that references to docs/model.md lead somewhere."""

from __future__ import annotations

import ast
import re
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORE = ROOT / "uniavgen_core"
GENERIC = ("model", "sampling", "media", "weights", "training")
HOST = (
    "comfy",
    "comfy_api",
    "comfy_extras",
    "execution",
    "folder_paths",
    "latent_preview",
    "nodes",
    "server",
)
TERMS = (
    "asymmetric cross-modal interaction",
    "face-aware modulation",
    "temporal-aligned interpolation",
    "temporal-aligned window",
    "modality-aware classifier-free guidance",
)


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


MODULES = {name_of(path): path for folder in (CORE, ROOT / "nodes") for path in sources(folder)}


def imported(path: Path, nodes) -> set[str]:
    """Full names of the modules that import statements name, those of this repository and others."""
    package = name_of(path) if path.name == "__init__.py" else name_of(path).rpartition(".")[0]
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            steps = package.split(".")
            base = ".".join(steps[: len(steps) - node.level + 1]) if node.level else ""
            module = ".".join(x for x in (base, node.module) if x)
            for alias in node.names:
                inner = f"{module}.{alias.name}".strip(".")
                found.add(inner if inner in MODULES else module)
    return found


def everywhere(path: Path) -> set[str]:
    return imported(path, ast.walk(tree(path)))


def at_module_level(path: Path) -> set[str]:
    """Imports that run when the module is imported, those for type checkers left out."""

    def run(body):
        for node in body:
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
                continue
            yield node
            for part in ("body", "orelse", "handlers", "finalbody"):
                if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                    yield from run(getattr(node, part, []))

    return imported(path, run(tree(path).body))


def test_no_module_imports_itself_by_a_detour():
    graph = {name: at_module_level(path) & MODULES.keys() - {name} for name, path in MODULES.items()}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


@pytest.mark.parametrize(
    "path",
    [
        *(path for room in GENERIC for path in sources(CORE / room)),
        *(CORE / name for name in ("conditioning.py", "pipeline.py", "modes.py") if (CORE / name).exists()),
        *sources(ROOT / "nodes"),
    ],
    ids=name_of,
)
def test_nothing_generic_imports_the_theatre(path):
    assert [name for name in everywhere(path) if name.startswith("uniavgen_core.theatre")] == []


@pytest.mark.parametrize("path", sources(CORE), ids=name_of)
def test_the_core_imports_nothing_of_the_host(path):
    assert [name for name in everywhere(path) if name.split(".")[0] in HOST] == []


@pytest.mark.parametrize("path", sources(CORE / "model"), ids=name_of)
def test_the_network_imports_nothing_of_the_core_but_itself(path):
    own = [name for name in everywhere(path) if name.startswith("uniavgen_core")]
    assert [name for name in own if not name.startswith("uniavgen_core.model")] == []


@pytest.mark.parametrize("term", TERMS)
def test_the_terms_of_the_paper_are_found_in_the_code_and_in_its_formulas(term):
    files = [path for path in sources(CORE) if term in path.read_text(encoding="utf-8").lower()]
    assert files
    assert term in (ROOT / "docs" / "model.md").read_text(encoding="utf-8").lower()


def test_references_to_the_formulas_name_sections_that_exist():
    """ "docs/model.md sections 4, 5 and 10.1", "sections 1 to 5"."""
    sections = set(re.findall(r"^## (\d+)\.", (ROOT / "docs" / "model.md").read_text(encoding="utf-8"), re.M))
    code = [*MODULES.values(), *(path for path in sources(ROOT / "tests") if path != Path(__file__))]
    texts = [re.sub(r"\s+", " ", path.read_text(encoding="utf-8")) for path in code]
    named = [x for text in texts for x in re.findall(r"docs/model\.md (?!says|writes)([^):;]*)", text)]
    assert len(named) > 30
    assert [x for x in named if not re.match(r"sections? \d", x)] == []
    numbers = {
        n
        for x in named
        for n in re.findall(r"\b(\d+)(?:\.\d+)?\b", re.match(r"[sections\d.,\- ando]+", x)[0])
    }
    assert numbers - sections == set()


def test_files_and_classes_named_in_the_formulas_exist():
    text = (ROOT / "docs" / "model.md").read_text(encoding="utf-8")
    files = set(re.findall(r"`((?:[a-z_]+/)*[a-z0-9_]+\.(?:py|txt))`", text))
    assert len(files) > 15
    missing = [name for name in files if not (CORE / name).exists() and not (ROOT / name).exists()]
    assert missing == []
    code = "\n".join(path.read_text(encoding="utf-8") for path in MODULES.values())
    classes = set(re.findall(r"`([A-Z][a-z]+[A-Za-z]*|[AV]2[AV])`", text)) - {"Config"}
    assert [name for name in classes if not re.search(rf"^class {name}\b", code, re.M)] == []
