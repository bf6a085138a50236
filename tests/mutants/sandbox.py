"""A throw-away copy of the repository in which tests run against changed sources; the working tree is never touched.

No cache may answer for a changed source. Bytecode is told by time and size of its source, so every change has a time of
its own. Numba's compiled functions are kept in a folder of the copy, and those of modules that import the changed file,
directly or not, are set aside while it is changed: numba looks at the file of a function only, not at what it calls.
Builds of the simulator are found by the content of all that goes into them, so what the user's cache holds is linked,
and new builds stay in the copy.
"""

import ast
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PACKAGES = {"lepton_hw": ".", "lepton_rtl": "rtl", "lepton_sim": "sim", "lepton": "host"}
"""The folder on the path of each package."""

PASSED, USAGE, NO_TESTS = 0, 4, 5
"""Exit statuses of pytest."""


@dataclass(frozen=True)
class Outcome:
    """How a run of pytest ended."""

    status: int | None
    """The exit status; None if it ran out of time."""
    output: str


def tracked_files(root: Path) -> list[str]:
    """Files of the working tree that git tracks or would track."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout
    return sorted(name for name in set(listed.split("\0")) if name and (root / name).is_file())


class Sandbox:
    """A copy of the repository ``root`` in the folder ``folder``, which must not exist yet."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.tree = folder / "tree"
        """Where the copy is."""
        for name in tracked_files(root):
            target = self.tree / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, target, follow_symlinks=False)
        self._numba, self._aside, self._temporary = (folder / name for name in ("numba", "aside", "tmp"))
        self._environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(str(self.tree / path) for path in PACKAGES.values()),
            "NUMBA_CACHE_DIR": str(self._numba),
            "LEPTON_CACHE": str(_linked_cache(folder / "cache")),
        }
        self._imports = _imports(self.tree)
        self._changes = 0
        self._check_imports()

    def run(self, tests: Sequence[str], limit: float) -> Outcome:
        """Run pytest with the arguments ``tests`` up to the first failure, for ``limit`` seconds at most."""
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--hypothesis-profile=mutants"]
        process = subprocess.Popen(
            [*command, f"--basetemp={self._temporary}", *tests],
            cwd=self.tree,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=limit)
        except BaseException as error:
            # Simulators and interpreters that the tests have started are in the group, too.
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            return Outcome(None, output)
        return Outcome(process.returncode, output)

    @contextmanager
    def changed(self, file: str, text: str) -> Iterator[None]:
        """Have the file hold another text, and what is compiled of it be compiled anew."""
        path = self.tree / file
        original, times = path.read_bytes(), path.stat()
        stems = {Path(module).stem for module in self._importers(file)}
        self._move_compiled(stems, self._numba, self._aside)
        self._changes += 1
        try:
            path.write_text(text)
            os.utime(path, (times.st_mtime, times.st_mtime + 2 * self._changes))
            yield
        finally:
            path.write_bytes(original)
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
            self._move_compiled(stems, self._numba, None)
            self._move_compiled(stems, self._aside, self._numba)

    def _importers(self, file: str) -> set[str]:
        """Files that import ``file``, directly or not, and itself."""
        found, waiting = {file}, [file]
        while waiting:
            imported = waiting.pop()
            new = {name for name, imports in self._imports.items() if imported in imports} - found
            found |= new
            waiting += new
        return found

    @staticmethod
    def _move_compiled(stems: set[str], source: Path, target: Path | None) -> None:
        """Move what numba has compiled of modules with these names; without a target, delete it."""
        for path in [*source.glob("**/*.nbi"), *source.glob("**/*.nbc")]:
            if path.name.partition(".")[0] in stems:
                if target is None:
                    path.unlink()
                else:
                    place = target / path.relative_to(source)
                    place.parent.mkdir(parents=True, exist_ok=True)
                    path.replace(place)

    def _check_imports(self) -> None:
        """Raise :class:`RuntimeError` unless the copy's packages are the ones that its tests import."""
        code = f"import {', '.join(PACKAGES)}; print(*(m.__file__ for m in ({', '.join(PACKAGES)})), sep='\\n')"
        found = subprocess.run(
            [sys.executable, "-c", code], env=self._environment, cwd=self.tree, check=True, capture_output=True
        )
        for line in found.stdout.decode().splitlines():
            if not Path(line).is_relative_to(self.tree):
                raise RuntimeError(f"copy: tests must import its own packages, not {line}; look at the installation")


def _linked_cache(folder: Path) -> Path:
    """A folder for ``$LEPTON_CACHE`` with links to what the user's holds."""
    user = Path(os.environ.get("LEPTON_CACHE") or Path.home() / ".cache" / "lepton")
    for target, source in ((folder, user), (folder / "verilated", user / "verilated")):
        target.mkdir(parents=True)
        for path in source.iterdir() if source.is_dir() else ():
            if path.is_dir() and path.name != "verilated" and not path.name.startswith("."):
                (target / path.name).symlink_to(path)
    return folder


def _imports(tree: Path) -> dict[str, set[str]]:
    """The files of the packages, each with those that it imports anywhere in it."""
    modules = {}
    for package, folder in PACKAGES.items():
        base = tree / folder
        for path in (base / package).rglob("*.py"):
            parts = path.relative_to(base).with_suffix("").parts
            modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    files = {module: str(path.relative_to(tree)) for module, path in modules.items()}
    imports: dict[str, set[str]] = {}
    for module, path in modules.items():
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        names: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                parents = package.split(".")
                start = parents[: len(parents) - node.level + 1] if node.level else []
                source = ".".join([*start, *([node.module] if node.module else [])])
                names |= {source, *(f"{source}.{alias.name}" for alias in node.names)}
        imports[files[module]] = {files[name] for name in names if name in files}
    return imports
