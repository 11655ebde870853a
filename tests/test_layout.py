"""The laws of the layout: what a reader may rely on without looking.

A module and its test are a pair: gateway/session/replay.py has tests/session/test_replay.py. Where several
modules are only worth testing together (a vocabulary and the machine that speaks it), tests/session/
test_session.py may cover them instead, but then it must import them by name: a file that happens to be there
proves nothing.
"""

from __future__ import annotations

import ast
import io
import json
import re
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import gateway

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "gateway"
CLIENT_LOCKS = ROOT / "tests" / "clients" / "requirements"
MODULES = sorted(PACKAGE.rglob("*.py"))
OURS = [path for folder in ("gateway", "tests", "bench") for path in sorted((ROOT / folder).rglob("*.py"))]

LONGEST_FUNCTION = 60  # lines; what a screen shows at once
GRAB_BAGS = {"utils", "util", "common", "helpers", "helper", "core", "manager", "misc"}
MUTABLE = {"list", "dict", "set", "bytearray", "defaultdict", "deque", "Counter", "OrderedDict"}
MUTABLE_DISPLAYS = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def shown(path: Path, node: ast.stmt | ast.expr | None = None) -> str:
    name = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
    return f"{name}:{node.lineno}" if node else str(name)


def none(found: Iterable[object]) -> None:
    """Fail with all of what was found, one to a line."""
    listed = [str(one) for one in found]
    assert not listed, "\n" + "\n".join(listed)


def imported(path: Path) -> set[str]:
    """The modules that a file imports, as far as they can be told from names."""
    names: set[str] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def has_test(module: Path) -> bool:
    inside = module.relative_to(PACKAGE)
    if (ROOT / "tests" / inside.parent / f"test_{module.stem}.py").exists():
        return True
    name = ".".join(module.relative_to(ROOT).with_suffix("").parts)
    package = inside.parent.name
    together = [ROOT / "tests" / inside.parent / f"test_{package}.py", ROOT / "tests" / f"test_{package}.py"]
    return any(path.exists() and name in imported(path) for path in together)


def test_every_module_has_its_test() -> None:
    """A module without a test of its own name, or of its package that imports it, does not pass."""
    modules = [path for path in MODULES if path.stem not in {"__init__", "__main__"}]
    none(shown(path) for path in modules if not has_test(path))


def test_no_module_is_a_grab_bag() -> None:
    """A module's name says what is in it."""
    none(shown(path) for path in MODULES if GRAB_BAGS & {path.stem, path.parent.name})


def mutable(value: ast.expr | None) -> bool:
    if isinstance(value, ast.Call):
        called = value.func.attr if isinstance(value.func, ast.Attribute) else getattr(value.func, "id", "")
        return called in MUTABLE
    return isinstance(value, MUTABLE_DISPLAYS)


def module_state(path: Path) -> Iterator[str]:
    """Names at module level that hold something mutable and are not written as constants."""
    for node in tree(path).body:
        if isinstance(node, ast.Assign):
            targets, final = node.targets, False
        elif isinstance(node, ast.AnnAssign):
            targets, final = [node.target], "Final" in ast.unparse(node.annotation)
        else:
            continue
        names = [target.id for target in targets if isinstance(target, ast.Name)]
        if mutable(node.value) and not final:
            yield from (f"{shown(path, node)} {n}" for n in names if not n.isupper() and n != "__all__")


def test_no_module_holds_state() -> None:
    """State belongs to objects that are handed in; constants are written in capitals or Final."""
    state = [found for path in MODULES for found in module_state(path)]
    nodes = ((path, node) for path in MODULES for node in ast.walk(tree(path)))
    none(state + [shown(path, node) for path, node in nodes if isinstance(node, ast.Global)])


def lost_checks(path: Path) -> Iterator[str]:
    """Structs with keywords, and members of more than one class or with bounds: mypyc drops all that."""
    lossy = re.compile(r"\b(Annotated|Literal|Optional|Union)\b|\|")
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ClassDef) and any("Struct" in ast.unparse(base) for base in node.bases):
            if node.keywords:
                yield shown(path, node)
            members = (member for member in node.body if isinstance(member, ast.AnnAssign))
            yield from (shown(path, one) for one in members if lossy.search(ast.unparse(one.annotation)))


def test_compiled_structs_check_what_they_say() -> None:
    """What msgspec would check, the compiler must leave there: see docs/design.md."""
    hook = project()["tool"]["hatch"]["build"]["targets"]["wheel"]["hooks"]["mypyc"]
    compiled = [ROOT / name for name in hook["include"]]
    assert compiled
    none(found for path in compiled for found in lost_checks(path))


def test_imports_are_absolute() -> None:
    """An import names the whole path, so that it can be searched for."""
    nodes = ((path, node) for path in OURS for node in ast.walk(tree(path)))
    none(shown(path, n) for path, n in nodes if isinstance(n, ast.ImportFrom) and n.level)


def test_functions_fit_on_a_screen() -> None:
    """No function of the product is longer than LONGEST_FUNCTION lines."""
    functions = (
        (path, node)
        for path in MODULES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    lengths = [(shown(p, n), n.name, (n.end_lineno or n.lineno) - n.lineno + 1) for p, n in functions]
    none(found for found in lengths if found[2] > LONGEST_FUNCTION)


IGNORES = re.compile(r"#\s*(?:noqa\b(?::\s*[A-Z]+\d+(?:,\s*[A-Z]+\d+)*)?|type:\s*ignore\b(?:\[[^\]]*\])?)")


def unexplained(path: Path) -> Iterator[str]:
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        if token.type == tokenize.COMMENT and IGNORES.search(token.string):
            reason = IGNORES.sub("", token.string)
            if len(re.findall(r"\w{2,}", reason)) < 2:
                yield f"{shown(path)}:{token.start[0]}"


def test_ignores_give_their_reason() -> None:
    """Every noqa and type: ignore says on its line why the rule is wrong there."""
    none(found for path in OURS for found in unexplained(path))


def test_the_laws_can_be_broken(tmp_path: Path) -> None:
    """The searches above find what they search for, and let pass what is allowed."""
    path = tmp_path / "sample.py"
    path.write_text(
        "seen = {}\n"
        "CODES = {}\n"
        "queue: deque[int] = collections.deque()\n"
        "table: Final = []\n"
        "x = f()  # noqa: S101\n"
        "x = f()  # type: ignore[misc]\n"
        "x = f()  # noqa: S101 - the caller has checked it\n"
        "x = f()  # type: ignore[misc]  # their stub is wrong\n"
        "class Said(Struct, frozen=True):\n"
        "    channel: int\n"
        "    at: Annotated[int, Meta(ge=0)]\n"
        "    by: str | None\n"
    )
    assert list(module_state(path)) == [f"{path}:1 seen", f"{path}:3 queue"]
    assert list(unexplained(path)) == [f"{path}:5", f"{path}:6"]
    assert list(lost_checks(path)) == [f"{path}:9", f"{path}:11", f"{path}:12"]


def test_layers_hold() -> None:
    """The import-linter contracts of pyproject.toml are kept."""
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_versions_agree() -> None:
    """The package, its metadata and the changelog name the same version."""
    version = project()["project"]["version"]
    assert gateway.__version__ == version
    assert re.search(rf"^## {re.escape(version)}\b", (ROOT / "CHANGELOG.md").read_text(), re.M)


def plain(requirement: str) -> str:
    """A requirement's name as PyPI compares it."""
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found, requirement
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def documented() -> dict[str, list[str]]:
    """The packages in each table of docs/dependencies.md, in their order."""
    text = (ROOT / "docs" / "dependencies.md").read_text()
    tables = dict(section.split("\n", 1) for section in text.split("\n## ")[1:])
    rows = {title: re.findall(r"^\| (?!package|-)(.+?) \|", body, re.M) for title, body in tables.items()}
    return {title.partition(" (")[0]: found for title, found in rows.items()}


def test_dependencies_are_argued() -> None:
    """docs/dependencies.md has a row for each direct dependency, in order, and no other."""
    declared, tables = project(), documented()
    wanted = {
        "Run time": declared["project"]["dependencies"],
        "Real speech in the emulator": declared["project"]["optional-dependencies"]["asr"],
        "Several hosts": declared["project"]["optional-dependencies"]["fleet"],
        "Durations of more formats": declared["project"]["optional-dependencies"]["media"],
        "Development": declared["dependency-groups"]["dev"],
    }
    for title, requirements in wanted.items():
        assert [plain(name) for name in tables[title]] == [plain(name) for name in requirements]


def test_client_suites_are_argued() -> None:
    """The client table names what the client environments are made of."""
    wanted = {plain(path.read_text()) for path in CLIENT_LOCKS.glob("*.in")}
    for path in CLIENT_LOCKS.glob("*/package.json"):
        wanted |= set(json.loads(path.read_text())["dependencies"])
    assert {row.split()[0] for row in documented()["Clients that Gateway is tested with"]} == wanted


def test_rows_are_complete() -> None:
    """Every dependency has a licence, a reason and a rejected alternative."""
    text = (ROOT / "docs" / "dependencies.md").read_text()
    rows = [
        [cell.strip() for cell in row.strip("|").split("|")] for row in re.findall(r"^\|.*\|$", text, re.M)
    ]
    none(row for row in rows if len(row) != 4 or not all(row))


def test_locks_hold_every_dependency() -> None:
    """What pyproject.toml asks for is in the lock files, pinned."""
    declared = project()
    run = declared["project"]["dependencies"]
    dev = [
        *run,
        *declared["project"]["optional-dependencies"]["asr"],
        *declared["project"]["optional-dependencies"]["fleet"],
        *declared["project"]["optional-dependencies"]["media"],
        *declared["dependency-groups"]["dev"],
    ]
    for lock, wanted in (("run", run), ("dev", dev)):
        pinned = re.findall(r"^([\w.-]+)==", (ROOT / "requirements" / f"{lock}.txt").read_text(), re.M)
        assert {plain(name) for name in wanted} <= set(pinned), lock


def test_locks_name_no_host() -> None:
    """A lock file names packages and hashes; where they come from is the reader's own setting."""
    locks = [*(ROOT / "requirements").glob("*.txt"), *CLIENT_LOCKS.glob("*.txt")]
    unlike = re.compile(r"^(?!#|[\w.-]+==[^/]+$|    --hash=sha256:[0-9a-f]{64}).+", re.M)
    none(f"{shown(lock)} {line}" for lock in locks for line in unlike.findall(lock.read_text()))
    for lock in CLIENT_LOCKS.glob("*/package-lock.json"):
        packages = json.loads(lock.read_text())["packages"]
        none(name for name, entry in packages.items() if name and "integrity" not in entry)
        none(name for name, entry in packages.items() if "resolved" in entry)
