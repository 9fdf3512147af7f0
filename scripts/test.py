# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the tests:  scripts/test.py [lint] [sanity] [unit] [integration] [molecule]      (all five when none is named)

Each part is a list of commands. One that fails stops nothing: everything is run, and the end is a summary with the
closing line of every command, what could not run on this machine by name, and an exit status that is not 0 if anything
failed. The commands' whole output is under .test/.

Both ends of what we support are tested: Python 3.11 with ansible-core 2.19 and Python 3.13 with ansible-core 2.21, and
what runs on targets on Python 3.9 as well, as far as these interpreters are on the machine.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / ".test"
PARTS = ("lint", "sanity", "unit", "integration", "molecule")
CONTROLLER_PYTHONS = ("3.11", "3.13")
OLDEST_TARGET_PYTHON = "3.9"
TARGET_PYTHONS = ("3.9", "3.10", "3.11", "3.12", "3.13", "3.14")
MINUTES = 30  # that one command may take

# Commands that run at the same time: on two cores one alone would leave half of them idle.
WORKERS = max(2, os.cpu_count() or 0)
# The longest of tests/integration.
LONGEST = "tests/integration/test_remediation.py"

# What has no wheel on PyPI: program -> Debian's package.
PROGRAMS = {
    "git": "git",
    "jq": "jq",
    "shellcheck": "shellcheck",
    # Networks of the tests' own, and what blocks in them.
    "ip": "iproute2",
    "nft": "nftables",
    "ipset": "ipset",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "sshd": "openssh-server",
}


@dataclasses.dataclass(frozen=True)
class Python:
    """A virtual environment to run tests in."""

    version: str
    home: Path

    @property
    def bin(self) -> Path:
        return self.home / "bin"

    @functools.cached_property
    def ansible_core(self) -> str:
        found = list(self.home.glob("lib/python*/site-packages/ansible_core-*.dist-info"))
        return found[0].name.removeprefix("ansible_core-").removesuffix(".dist-info") if found else ""

    def __str__(self) -> str:
        return f"Python {self.version}" + (f", ansible-core {self.ansible_core}" if self.ansible_core else "")


MAIN = Python(f"{sys.version_info.major}.{sys.version_info.minor}", ROOT / ".venv")


@dataclasses.dataclass
class Result:
    part: str
    title: str
    passed: bool
    closing: list[str]


class Summary:
    """What the commands said; printed as they end, and once more at the end of everything."""

    def __init__(self, parts: tuple[str, ...]) -> None:
        self.parts = parts
        self.results: list[Result] = []
        self.not_run: list[str] = []
        self.lock = threading.Lock()

    def add(self, result: Result, log: Path, seconds: float) -> None:
        with self.lock:
            self.results.append(result)
            name = f"{result.part}: {result.title}"
            if result.passed:
                print(f"ok      {name} ({seconds:.0f} s)", flush=True)
            else:
                print(f"FAILED  {name} ({seconds:.0f} s); its output, also in {log.relative_to(ROOT)}:", flush=True)
                print(
                    "".join(f"    {line}\n" for line in log.read_text(errors="replace").splitlines()[-400:]), flush=True
                )

    def cannot_run(self, what: str) -> None:
        with self.lock:
            if what not in self.not_run:
                self.not_run.append(what)

    def print(self) -> int:
        failed = [result for result in self.results if not result.passed]
        print("\n== Closing lines")
        for part in self.parts:
            for result in (result for result in self.results if result.part == part):
                print(f"{'ok    ' if result.passed else 'FAILED'}  {part}: {result.title}")
                print("".join(f"{line}\n" for line in result.closing), end="")
        print("\n== What could not run here")
        print("\n".join(self.not_run) if self.not_run else "nothing: everything ran")
        print(f"\n== {len(self.results)} commands, {len(failed)} failed")
        for result in failed:
            # Once more, for who sees only the end.
            print(f"FAILED  {result.part}: {result.title}", *(f"    {line}" for line in result.closing), sep="\n")
        sys.stdout.flush()
        return 1 if failed or not self.results else 0


class Runner:
    def __init__(self, summary: Summary) -> None:
        self.summary = summary
        self.running: set[subprocess.Popen[bytes]] = set()
        self.venv_lock = threading.Lock()

    def run(
        self,
        part: str,
        title: str,
        command: Sequence[str | Path],
        *,
        python: Python = MAIN,
        env: Mapping[str, str] | None = None,
        cwd: Path = ROOT,
        closing: Callable[[str], list[str]] | None = None,
        proof: str = "",
    ) -> bool:
        """Run one command, its output into a log; `closing` picks from it the lines that the summary repeats. A command
        whose output has no line that matches `proof` has tested nothing, and that is a failure.
        """
        log = WORK / f"{part}-{re.sub(r'[^a-z0-9.]+', '-', title.lower()).strip('-')}.log"
        began = time.monotonic()
        passed = False
        with log.open("wb") as output:
            process = subprocess.Popen(
                [str(word) for word in command],
                cwd=cwd,
                env=environment(python) | dict(env or {}),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that what it started ends with it
            )
            self.running.add(process)
            try:
                passed = process.wait(timeout=MINUTES * 60) == 0
            except subprocess.TimeoutExpired:
                output.write(f"\nended after {MINUTES} minutes, which it did not need to\n".encode())
            finally:
                end(process)
                self.running.discard(process)
        text = log.read_text(errors="replace")
        lines = closing(text) if closing else [line for line in text.splitlines() if line.strip()][-1:]
        if passed and not re.search(proof, text, re.MULTILINE):
            passed = False
            lines.append("it ran, but tested nothing")
        self.summary.add(Result(part, title, passed, lines), log, time.monotonic() - began)
        return passed

    def stop(self) -> None:
        for process in list(self.running):
            end(process)

    def venv(self, part: str, version: str, *requirements: str) -> Python | None:
        """The environment for another Python version, made when first needed; None when there is no such Python."""
        with self.venv_lock:
            python = Python(version, ROOT / f".venv-{version}")
            wanted = "".join((ROOT / name).read_text() for name in requirements)
            stamp = python.home / ".installed"
            if stamp.is_file() and stamp.read_text() == wanted:
                return python
            interpreter = interpreters().get(version)
            if interpreter is None:
                return None
            if not python.bin.joinpath("python").exists() and not self.run(
                part, f"environment for Python {version}", [interpreter, "-m", "venv", "--clear", python.home]
            ):
                return None
            pip = [str(python.bin / "python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
            if not self.run(
                part,
                f"requirements for Python {version}",
                [*pip, *(word for name in requirements for word in ("-r", name))],
                closing=lambda _text: [],
            ):
                return None
            stamp.write_text(wanted)
            return python

    def controllers(self, part: str) -> Iterator[Python]:
        """Both ends of the Pythons, each with its ansible-core, that a controller may have."""
        yield MAIN
        for version in CONTROLLER_PYTHONS:
            if version != MAIN.version:
                python = self.venv(part, version, "requirements/test.txt")
                if python:
                    yield python
                else:
                    self.summary.cannot_run(f"{part} on Python {version}: there is no python{version} with venv here")

    def jobs(self) -> Iterator[tuple[str, Callable[[], None]]]:
        """Everything, each with its part, in the order in which the workers take it: the longest first and the short
        ones last, so that none of them has long to wait for the others in the end.
        """
        # All scenarios share one host, so they are one job.
        yield "molecule", self.molecule
        yield "integration", functools.partial(self.integration, LONGEST)
        yield "sanity", self.sanity
        yield "integration", self.integration_at_the_other_end
        yield "unit", self.unit
        yield "lint", self.lint
        yield "unit", self.unit_on_targets
        for path in sorted((ROOT / "tests/integration").glob("test_*.py")):
            test = str(path.relative_to(ROOT))
            if test != LONGEST:
                yield "integration", functools.partial(self.integration, test)

    # The five parts.

    def lint(self) -> None:
        # Some of these keep logs and caches in the home directory.
        run = functools.partial(self.run, "lint", env={"NO_COLOR": "1", "HOME": str(WORK / "home")})
        run("ruff check", ["ruff", "check", "."])
        run("ruff format", ["ruff", "format", "--check", "--output-format", "concise", "."])
        run("mypy", ["mypy"])
        run("yamllint", ["yamllint", "--strict", "."], closing=silent("no findings"))
        if have("shellcheck"):
            scripts = [path for path in tracked() if is_shell(path)]
            run("shellcheck", ["shellcheck", *scripts], closing=silent(f"no findings in {len(scripts)} scripts"))
        else:
            self.summary.cannot_run("lint: shellcheck (apt-get install shellcheck)")
        run("ansible-lint", ["ansible-lint"])
        run(
            "antsibull-docs",
            ["antsibull-docs", "lint-collection-docs", "--plugin-docs", "--validate-collection-refs=dependent", "."],
            closing=silent("no findings"),
        )
        run("module reference", ["scripts/docs.sh", "--check"])
        run("antsibull-changelog", ["antsibull-changelog", "lint"], closing=silent("no findings"))

    def sanity(self) -> None:
        if not have("shellcheck"):
            self.summary.cannot_run("sanity: shellcheck (apt-get install shellcheck)")
        for python in self.controllers("sanity"):
            # ansible-test refuses to run in a symlinked directory, so it gets a copy: without the two symlinks, which a
            # built collection does not have either, and as a repository of its own, for here git ignores all of it.
            home = WORK / f"sanity-{python.version}"
            collection = home / "ansible_collections/oncall/runbooks"
            shutil.rmtree(collection, ignore_errors=True)
            for path in tracked():
                if not path.is_symlink():
                    copy = collection / path
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(ROOT / path, copy)
            output_of(["git", "init", "--quiet", collection])
            self.provide_pip(python, home)
            self.run(
                "sanity",
                f"ansible-test sanity ({python})",
                ["ansible-test", "sanity", "--color", "no"],
                python=python,
                # ansible-test keeps its environments in the home directory.
                env={"HOME": str(home), "PATH": search_path(python, pythons_directory()), "PIP_QUIET": "1"},
                cwd=collection,
                closing=functools.partial(self.read_sanity, python),
                proof="^Running sanity test",
            )

    def provide_pip(self, python: Python, home: Path) -> None:
        """Put pip where ansible-test looks for it, so that it need not download a script from a server of its own."""
        code = (
            "from types import SimpleNamespace as N; from ansible_test._internal import python_requirements as r;"
            f"print(*{{r.get_venv_packages(N(version=v))['pip'] for v in {TARGET_PYTHONS!r}}})"
        )
        cache = home / ".ansible/test/cache"
        cache.mkdir(parents=True, exist_ok=True)
        for version in output_of([python.bin / "python", "-c", code]).split():
            script = cache / f"get_pip_{version.replace('.', '_')}.py"
            if not script.exists():
                pip = [str(python.bin / "python"), "-m", "pip", "--disable-pip-version-check"]
                output_of([*pip, "download", "--quiet", "--no-deps", "--dest", cache, f"pip=={version}"])
                script.write_text(
                    "import os, runpy, sys\n"
                    f"wheel = os.path.join({str(cache)!r}, 'pip-{version}-py3-none-any.whl')\n"
                    "sys.path.insert(0, wheel)\n"
                    "sys.argv[1:] = ['install', '--quiet', '--disable-pip-version-check', '--no-index', wheel]\n"
                    "runpy.run_module('pip', run_name='__main__', alter_sys=True)\n"
                )

    def read_sanity(self, python: Python, text: str) -> list[str]:
        for reason in re.findall(r"^WARNING: (Skipping (?:sanity test|tests disabled) .*)", text, re.MULTILINE):
            self.summary.cannot_run(f"sanity ({python}): {reason}")
        # A test that had nothing to look at is announced all the same: those of PowerShell and of older Pythons.
        powershell = any(path.suffix in {".ps1", ".psm1"} for path in tracked())
        ran = [
            (name, version)
            for name, version in re.findall(r'^Running sanity test "([^"]+)"(?: on Python (\S+))?', text, re.MULTILINE)
            if version in {"", *TARGET_PYTHONS} and (name != "pslint" or powershell)
        ]
        names = sorted({name for name, _version in ran})
        versions = [version for version in TARGET_PYTHONS if version in {version for _name, version in ran}]
        return [
            *re.findall(r"^FATAL: .*", text, re.MULTILINE),
            f"{len(ran)} sanity tests, compile and import on Python {', '.join(versions)}: {', '.join(names)}",
        ]

    def unit(self) -> None:
        for python in self.controllers("unit"):
            self.pytest("unit", python, "tests/unit")

    def unit_on_targets(self) -> None:
        """What runs on targets, with the oldest Python that they may have."""
        oldest = self.venv("unit", OLDEST_TARGET_PYTHON, "requirements/target-test.txt")
        if oldest:
            self.pytest("unit", oldest, "tests/unit/module_utils")
        else:
            version = OLDEST_TARGET_PYTHON
            self.summary.cannot_run(
                f"unit: module_utils on Python {version}: there is no python{version} with venv here"
            )

    # What the lab and the probes do is the same for every ansible-core, so the main Python has all of these.

    def integration(self, test: str) -> None:
        self.pytest("integration", MAIN, test)

    def integration_at_the_other_end(self) -> None:
        """What depends on ansible-core, with the other Python."""
        for python in self.controllers("integration"):
            if python is not MAIN:
                self.pytest("integration", python, "tests/integration", "-m", "both_ends")

    def pytest(self, part: str, python: Python, *where: str) -> None:
        def closing(text: str) -> list[str]:
            for skip in re.findall(r"^SKIPPED .*", text, re.MULTILINE):
                self.summary.cannot_run(f"{part} ({python}): {skip}")
            failures: list[str] = re.findall(r"^(?:FAILED|ERROR) .*", text, re.MULTILINE)
            return failures[:20] + [line for line in text.splitlines() if line.strip()][-1:]

        command = [str(python.bin / "python"), "-m", "pytest", *where]
        self.run(part, f"pytest {' '.join(where)} ({python})", command, python=python, closing=closing)

    def molecule(self) -> None:
        def closing(text: str) -> list[str]:
            wanted = r"executed \d+ |SCENARIO RECAP|^\S+ +: actions=|^(?:fatal|failed): "
            return [line[:1000] for line in text.splitlines() if re.search(wanted, line)]

        # The host of all scenarios: without one none can run, and hosts.py says in a sentence what that takes.
        work = WORK / "molecule"
        shutil.rmtree(work, ignore_errors=True)
        hosts = ["--dir", str(work / "hosts")]
        program = [str(MAIN.bin / "python"), "tests/hosts/hosts.py"]
        scenarios = sorted({path.parent.name for path in (ROOT / "molecule").glob("*/molecule.yml")} - {"default"})
        try:
            if not self.run("molecule", "a test host with systemd", [*program, "up", "vritti-1", *hosts]):
                self.summary.cannot_run(f"molecule: {', '.join(scenarios)}: there is no test host, see above")
                return
            for scenario in scenarios:
                # The host stays for the next one, whatever becomes of this one.
                command = ["molecule", "test", "--destroy", "never", "--scenario-name", scenario]
                self.run(
                    "molecule",
                    scenario,
                    command,
                    env={"MOLECULE_EPHEMERAL_DIRECTORY": str(work), "NO_COLOR": "1", "COLUMNS": "160"},
                    closing=closing,
                    proof=r"TASK \[Check that it is unlocked",
                )
        finally:
            self.run("molecule", "the test host is removed", [*program, "down", *hosts])


def work(worker: Callable[[], None]) -> None:
    """Let all workers run at the same time, and wait for them."""
    threads = [threading.Thread(target=worker, daemon=True) for _number in range(WORKERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# The machine.


def environment(python: Python) -> dict[str, str]:
    """The environment without what a person has set for work of their own: it should not decide what a test says."""
    private = (
        "ANSIBLE_",
        "MOLECULE_",
        "PYTHON",
        "PYTEST_",
        "COV_",
        "RUFF_",
        "MYPY",
        "VIRTUAL_ENV",
        "GIT_DIR",
        "GIT_WORK_TREE",
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith(private)}
    return kept | {"PATH": search_path(python), "LC_ALL": "C.UTF-8"}


def search_path(python: Python, *first: Path) -> str:
    """The environment's programs before those of the machine. A version manager's shims are left out: interpreters()
    knows what is behind them, and a program that finds one takes it for a Python that works.
    """
    rest = [
        directory
        for directory in os.environ.get("PATH", os.defpath).split(os.pathsep)
        if Path(directory).name != "shims"
    ]
    return os.pathsep.join([*map(str, first), str(python.bin), *rest])


def output_of(command: Sequence[str | Path]) -> str:
    return subprocess.run(
        [str(word) for word in command], check=True, stdout=subprocess.PIPE, text=True, env=environment(MAIN), cwd=ROOT
    ).stdout


def end(process: subprocess.Popen[bytes]) -> None:
    """End a command and everything that it left running."""
    try:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=10)
    except ProcessLookupError:
        pass
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@functools.cache
def interpreters() -> dict[str, str]:
    """Every Python that works here: version -> path. Version managers put shims on the PATH that work only for the
    version that is switched on, so a shim is followed to the interpreters behind it.
    """
    found = {}
    for version in TARGET_PYTHONS:
        name = f"python{version}"
        candidates: list[Path] = []
        for directory in map(Path, os.environ.get("PATH", os.defpath).split(os.pathsep)):
            if directory.name == "shims":
                candidates += sorted(directory.parent.glob(f"versions/{version}.*/bin/{name}"), reverse=True)
            else:
                candidates.append(directory / name)
        for candidate in candidates:
            if (
                candidate.is_file()
                and not subprocess.run(
                    [candidate, "-c", "import ensurepip, venv"],
                    stderr=subprocess.DEVNULL,
                    env={"PATH": os.defpath},
                    check=False,
                ).returncode
            ):
                found[version] = str(candidate)
                break
    return found


@functools.cache
def pythons_directory() -> Path:
    """A directory with nothing but the working interpreters, to be first on ansible-test's PATH."""
    directory = WORK / "pythons"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    for version in TARGET_PYTHONS:
        if version in interpreters():
            (directory / f"python{version}").symlink_to(interpreters()[version])
    return directory


@functools.cache
def tracked() -> tuple[Path, ...]:
    """The files of the checkout, relative to it: those that git tracks and those that it would."""
    names = output_of(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]).split("\0")
    return tuple(path for path in map(Path, sorted(filter(None, names))) if os.path.lexists(ROOT / path))


def is_shell(path: Path) -> bool:
    file = ROOT / path
    if not file.is_file() or file.is_symlink():
        return False
    with file.open("rb") as content:
        return bool(re.match(rb"#!.*\b(ba)?sh\b", content.readline(100)))


def silent(words: str) -> Callable[[str], list[str]]:
    """For a program that says nothing when it has no findings."""
    return lambda text: [line for line in text.splitlines() if line.strip()][-1:] or [words]


def have(program: str) -> bool:
    return shutil.which(program) is not None


def install_programs() -> None:
    missing = [package for program, package in PROGRAMS.items() if not have(program)]
    if not missing:
        return
    if os.geteuid() != 0 or not have("apt-get"):
        print(
            f"missing here: {' '.join(missing)}; on Debian and Ubuntu: sudo apt-get install {' '.join(missing)}",
            flush=True,
        )
        return
    print(f"apt-get install {' '.join(missing)}", flush=True)
    with (WORK / "apt.log").open("wb") as log:
        for command in (["apt-get", "update"], ["apt-get", "install", "--yes", "--no-install-recommends", *missing]):
            env = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
            if subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=env, check=False
            ).returncode:
                print(f"{' '.join(command)} failed: see .test/apt.log", flush=True)


def main(arguments: list[str]) -> int:
    unknown = [name for name in arguments if name not in PARTS]
    if unknown:
        print(f"{', '.join(unknown)}: no such part; the parts are {', '.join(PARTS)}", file=sys.stderr)
        return 2
    parts = tuple(part for part in PARTS if part in arguments) or PARTS
    WORK.joinpath("home").mkdir(parents=True, exist_ok=True)
    install_programs()
    if not have("git"):
        print("git is needed to know which files belong to the checkout", file=sys.stderr)
        return 1

    summary = Summary(parts)
    runner = Runner(summary)
    signal.signal(signal.SIGTERM, signal.default_int_handler)

    jobs = [(part, job) for part, job in runner.jobs() if part in parts]
    lock = threading.Lock()

    def worker() -> None:
        while True:
            with lock:
                if not jobs:
                    return
                part, job = jobs.pop(0)
            try:
                job()
            except Exception as error:  # noqa: BLE001 - a part that breaks is a failure of that part, not of the others
                log = WORK / f"{part}-runner.log"
                log.write_text(f"{type(error).__name__}: {error}\n")
                summary.add(Result(part, "the runner itself", False, [str(error)]), log, 0)

    began = time.monotonic()
    try:
        work(worker)
    except KeyboardInterrupt:
        with lock:
            jobs.clear()
        runner.stop()
        print("\nstopped", file=sys.stderr)
        return 130
    status = summary.print()
    print(f"== {(time.monotonic() - began) / 60:.1f} minutes", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
