"""Applies each fault of the tables in a throw-away copy, runs the tests that must notice it, and reports survivors.

``make mutants``, or ``python tests/mutants/run.py --help``. Exit status 1 if a fault survives, a row is stale, or the
named tests fail without the fault.
"""

import hashlib
import json
import re
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from sandbox import NO_TESTS, PASSED, USAGE, Sandbox, tracked_files
from tables import ROOT, Mutant, load_tables

KILLED, SURVIVED, STALE, RED = "killed", "survived", "stale", "red"
"""What becomes of a fault: noticed, not noticed, not applicable, or its tests fail without it."""

GREEN = "green"
"""The state of tests that pass without a fault."""

RESULTS = ROOT / "build" / "mutants.json"
"""Results by digest, so that an interrupted run goes on where it was."""


@dataclass(frozen=True)
class Result:
    """What became of a fault."""

    mutant: Mutant
    state: str
    seconds: float
    detail: str = ""
    """The reason of a state other than killed or survived."""


class Store:
    """States and times of earlier runs of the same rows on the same sources."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        self._held: dict[str, tuple[str, float]] = json.loads(path.read_text()) if path.is_file() else {}

    def get(self, key: str) -> tuple[str, float] | None:
        """State and seconds, or None."""
        return self._held.get(key)

    def put(self, key: str, state: str, seconds: float) -> None:
        """Keep them, also on disk."""
        with self._lock:
            self._held[key] = state, seconds
            self._path.parent.mkdir(exist_ok=True)
            scratch = self._path.with_suffix(".new")
            scratch.write_text(json.dumps(self._held))
            scratch.replace(self._path)


class Driver:
    """Judges faults in sandboxes, one for each thread."""

    def __init__(self, folder: Path, store: Store) -> None:
        self._folder, self._store = folder, store
        self._local = threading.local()
        self._baselines: dict[tuple[str, ...], tuple[str, float]] = {}
        self._digests = {
            name: hashlib.sha256((ROOT / name).read_bytes()).hexdigest()
            for name in tracked_files(ROOT)
            if not name.startswith("tests/mutants/")
        }

    def baseline(self, tests: tuple[str, ...]) -> None:
        """Run tests without any fault, and keep whether they pass, else what they print, and how long it takes."""
        key = self._key(tests)
        known = self._store.get(key)
        if known is None:
            start = time.monotonic()
            outcome = self._sandbox().run(tests, 3600)
            seconds = time.monotonic() - start
            if outcome.status == PASSED:
                known = GREEN, seconds
                self._store.put(key, *known)
            else:
                known = outcome.output[-2000:], seconds
        self._baselines[tests] = known

    def judge(self, mutant: Mutant) -> Result:
        """Apply a fault and run its tests, whose baseline is known."""
        sandbox = self._sandbox()
        try:
            text = mutant.mutated(sandbox.tree)
        except ValueError as error:
            return Result(mutant, STALE, 0, str(error))
        state, seconds = self._baselines[mutant.tests]
        if state != GREEN:
            return Result(mutant, RED, seconds, state)
        key = self._key(mutant.tests, mutant.file, mutant.old, mutant.new)
        known = self._store.get(key)
        if known:
            return Result(mutant, *known)
        start = time.monotonic()
        with sandbox.changed(mutant.file, text):
            # Compiling anew takes its time; on a busy machine, so does everything.
            outcome = sandbox.run(mutant.tests, 180 + 5 * seconds)
        seconds = time.monotonic() - start
        if outcome.status in (USAGE, NO_TESTS):
            return Result(mutant, RED, seconds, outcome.output[-2000:])
        state = SURVIVED if outcome.status == PASSED else KILLED
        self._store.put(key, state, seconds)
        return Result(mutant, state, seconds)

    def _key(self, tests: tuple[str, ...], *change: str) -> str:
        """A digest of all that the result depends on: what runs, its sources, and the change to them.

        Of the test files only those that are named are sources; tests import none of each other's.
        """
        named = tuple(test.partition("::")[0] for test in tests)
        sources = [
            (name, digest)
            for name, digest in self._digests.items()
            if not Path(name).name.startswith("test_") or name.startswith(named)
        ]
        return hashlib.sha256(json.dumps([sys.version, tests, change, sources]).encode()).hexdigest()

    def _sandbox(self) -> Sandbox:
        if not hasattr(self._local, "sandbox"):
            folder = Path(tempfile.mkdtemp(dir=self._folder))
            self._local.sandbox = Sandbox(ROOT, folder)
        return self._local.sandbox


def report(console: Console, results: list[Result]) -> None:
    """Print what was not killed, and the counts."""
    table = Table("Not killed", "Change", show_lines=True, expand=True)
    for result in results:
        if result.state != KILLED:
            mutant = result.mutant
            place = f"{result.state}: {mutant.about}\n{mutant.file}\n{' '.join(mutant.tests)}"
            change = result.detail or "\n".join(
                sign + line for sign, text in (("- ", mutant.old), ("+ ", mutant.new)) for line in text.splitlines()
            )
            table.add_row(escape(place), escape(change))
    if table.row_count:
        console.print(table)
    counts = {state: sum(result.state == state for result in results) for state in (KILLED, SURVIVED, STALE, RED)}
    console.print(f"{len(results)} mutants: " + ", ".join(f"{count} {state}" for state, count in counts.items()))


def main(
    only: Annotated[str, typer.Option(help="Run rows whose 'table file: about' matches this regular expression.")] = "",
    file: Annotated[str, typer.Option(help="Run rows whose source file's path contains this.")] = "",
    jobs: Annotated[int, typer.Option(min=1, help="Copies at work at the same time.")] = 1,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget the results of earlier runs.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print all results as JSON instead of a table.")] = False,
) -> None:
    """Apply faults one at a time, and report those that no test notices."""
    console = Console(stderr=as_json)
    mutants = [m for m in load_tables() if re.search(only, m.name) and file in m.file]
    if fresh:
        RESULTS.unlink(missing_ok=True)
    results: list[Result] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with (
        tempfile.TemporaryDirectory(prefix="lepton-mutants-") as folder,
        ThreadPoolExecutor(jobs) as pool,
        Progress(*columns, console=console) as progress,
    ):
        driver = Driver(Path(folder), Store(RESULTS))
        baselines = {mutant.tests for mutant in mutants}
        try:
            task = progress.add_task("Without faults", total=len(baselines))
            for future in as_completed([pool.submit(driver.baseline, tests) for tests in sorted(baselines)]):
                future.result()
                progress.advance(task)
            task = progress.add_task("Mutants", total=len(mutants))
            for future in as_completed([pool.submit(driver.judge, mutant) for mutant in mutants]):
                result = future.result()
                results.append(result)
                if result.state != KILLED:
                    progress.console.print(f"{result.state}: {result.mutant.name}", markup=False, soft_wrap=True)
                progress.advance(task)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    results.sort(key=lambda result: mutants.index(result.mutant))
    if as_json:
        print(json.dumps([asdict(result) for result in results], indent=2))
    report(console, results)
    if not results or any(result.state != KILLED for result in results):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
