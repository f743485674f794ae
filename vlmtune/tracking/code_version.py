"""Which code made an artifact: a fingerprint of just the modules that a step uses.

ZenML's own cache sees only a step's function, not what it calls. Here the imports are followed
from the step's module through this project's packages, so that editing the report's template
runs the evaluation again, and quantises nothing.
"""

import ast
import hashlib
import importlib.metadata
from functools import cache
from pathlib import Path

PROJECT_ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("vlmtune", "materializers", "steps")

# Libraries whose version can change what a step makes, and the ones they bring along.
RESULT_SHAPING = {
    "torch": ["torch"],
    "transformers": ["transformers", "bitsandbytes", "accelerate", "tokenizers", "torchvision"],
    "peft": ["peft"],
    "trl": ["trl"],
    "liger_kernel": ["liger-kernel"],
    "datasets": ["datasets"],
    "PIL": ["pillow"],
    "qwen_vl_utils": ["qwen-vl-utils"],
    "bs4": ["beautifulsoup4"],
    "imagehash": ["imagehash"],
    "py3langid": ["py3langid"],
    "scipy": ["scipy"],
    "evaluate": ["evaluate", "sacrebleu", "rouge-score"],
}


def code_version(module: str) -> str:
    """SHA-256 over a module, all project modules it imports (lazily or not), their data files
    and the versions of the libraries that shape results; 64 hex digits.

    Args:
        module: dotted name, such as `steps.train_qlora`.
    """
    digest = hashlib.sha256()
    libraries: set[str] = set()
    for path in used_files(module):
        digest.update(f"{path.relative_to(PROJECT_ROOT).as_posix()}\0".encode())
        digest.update(path.read_bytes())
        if path.suffix == ".py":
            libraries |= {name.partition(".")[0] for name in _imported_names(path)}
    for library in sorted(libraries & set(RESULT_SHAPING)):
        for package in RESULT_SHAPING[library]:
            digest.update(f"{package}=={importlib.metadata.version(package)}\n".encode())
    return digest.hexdigest()


def used_files(module: str) -> list[Path]:
    """The files of all project modules that a module imports, itself included, sorted."""
    seen: set[Path] = set()
    waiting = [_module_file(module)]
    while waiting:
        path = waiting.pop()
        if path is None or path in seen:
            continue
        seen.add(path)
        waiting += [_module_file(name) for name in _imported_names(path)]
    return sorted(seen | {file for path in seen for file in _data_files(path)})


@cache
def _imported_names(path: Path) -> tuple[str, ...]:
    """Dotted names of everything a file imports, inside functions too.

    `from a.b import c` counts as `a.b` and as `a.b.c`: c may be a module.
    """
    names = []
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.append(node.module)
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return tuple(names)


def _module_file(name: str) -> Path | None:
    """The source file of a project module; None for anything else."""
    if name.partition(".")[0] not in PACKAGES:
        return None
    path = PROJECT_ROOT.joinpath(*name.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def _data_files(module_file: Path) -> list[Path]:
    """Templates, metric modules and the like: what lies beside a module and is named in it."""
    source = module_file.read_text(encoding="utf-8")
    found = []
    for entry in module_file.parent.iterdir():
        if entry.is_dir() and f'"{entry.name}"' in source:
            found += [
                path
                for path in entry.rglob("*")
                if path.is_file() and "__pycache__" not in path.parts
            ]
        elif entry.is_file() and entry.suffix != ".py" and f'"{entry.name}"' in source:
            found.append(entry)
    return found
