# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Have the faiss package itself read an index, in a process of its own that may take only so much memory and time."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import typing as t

from ansible_collections.oncall.runbooks.plugins.module_utils.faiss_index import (
    INDEX,
    TOLERANCE,
    VECTORIZER,
    WAY_OUT,
    Clock,
    File,
    Files,
    Seen,
    problem,
)

LEAST_MEMORY = 2 << 30
_DEFAULT_SECONDS = 120.0

# Runs in the service's interpreter, which may be any Python 3. It says all it knows in one line of JSON.
_SCRIPT = r"""
import json, resource, sys
options = json.loads(sys.argv[1])
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_AS, (options["memory"], options["memory"]))
resource.setrlimit(resource.RLIMIT_CPU, (options["seconds"], options["seconds"] + 1))
told = {}

def run():
    try:
        import numpy
        import faiss
    except ImportError as error:
        told["missing"] = getattr(error, "name", None) or "faiss"
        told["said"] = str(error)
        return
    told["faiss"] = getattr(faiss, "__version__", "?")
    if hasattr(faiss, "omp_set_num_threads"):
        faiss.omp_set_num_threads(1)
    try:
        index = faiss.read_index(options["index"])
    except RuntimeError as error:
        told["error"] = str(error).strip().splitlines()[-1]
        return
    count, size = int(index.ntotal), int(index.d)
    told.update(ntotal=count, dimension=size)
    flat = faiss.downcast_index(index.index)
    vectors = faiss.rev_swig_ptr(flat.get_xb(), count * size).reshape(count, size)
    odd, odd_count, not_finite = [], 0, 0
    for start in range(0, count, 16384):
        part = vectors[start:start + 16384]
        with numpy.errstate(all="ignore"):
            norms = numpy.sqrt((part.astype(numpy.float64) ** 2).sum(axis=1))
            finite = numpy.isfinite(norms)
            wrong = ~finite | (numpy.abs(norms - 1) > options["tolerance"])
        not_finite += int((~finite).sum())
        odd_count += int(wrong.sum())
        odd += [[int(start + row), float(norms[row])] for row in numpy.nonzero(wrong)[0][:5]]
    told.update(odd_count=odd_count, not_finite=not_finite, odd=[[row, repr(norm)] for row, norm in odd[:5]])
    if not odd_count:
        chosen = sorted(set(int(place) for place in numpy.linspace(0, count - 1, min(count, 8))))
        scores, ids = index.search(numpy.ascontiguousarray(vectors[chosen]), 1)
        told["searched"] = len(chosen)
        # Two chunks with the same text have the same vector, and either is a right answer.
        told["lost"] = [row for row, score, found in zip(chosen, scores[:, 0], ids[:, 0])
                        if abs(float(score) - 1) > options["tolerance"] or not 0 <= found < count
                        or (found != row and not numpy.allclose(vectors[row], vectors[int(found)], atol=1e-3))]
    if options["pickle"]:
        try:
            import joblib
            load = joblib.load
        except ImportError:
            import pickle
            def load(path):
                with open(path, "rb") as file:
                    return pickle.load(file)
        try:
            told["vocabulary"] = len(load(options["pickle"]).vocabulary_)
        except ImportError as error:
            told["missing"] = getattr(error, "name", None) or "joblib"
            told["said"] = str(error)
        except MemoryError:
            raise
        except Exception as error:
            told["pickle_error"] = type(error).__name__

try:
    run()
except MemoryError:
    told["memory"] = True
print("\n" + json.dumps(told))
"""


def look(seen: Seen, files: Files, python: str, load_pickle: bool, memory_limit: int | None, until: Clock) -> None:
    """Add to a sound look what faiss says; where it cannot be asked, nothing is known."""
    interpreter = python or sys.executable or "python3"
    index, pickled = t.cast(File, files[INDEX]), files[VECTORIZER] if load_pickle else None
    memory = memory_limit or max(LEAST_MEMORY, 3 * index.size)
    seconds = _DEFAULT_SECONDS if until.left is None else until.left
    options = {
        "index": _handle(index),
        "pickle": pickled and _handle(pickled),
        "memory": memory,
        "seconds": max(1, int(seconds) + 1),
        "tolerance": TOLERANCE,
    }
    told = _ask(seen, interpreter, options, [file for file in (index, pickled) if file], seconds)
    if told is not None:
        _judge(seen, files, told, interpreter, memory)


def _handle(file: File) -> str:
    # The file that was looked at, whatever has its name by now.
    return f"/proc/self/fd/{file.stream.fileno()}"


def _ask(
    seen: Seen, interpreter: str, options: dict[str, t.Any], files: t.Sequence[File], seconds: float
) -> dict[str, t.Any] | None:
    if not shutil.which(interpreter):
        _unknown(seen, f"{interpreter} is no program that can be run; correct python")
        return None
    about = os.fstat(files[0].stream.fileno())
    as_owner: dict[str, t.Any] = {}
    if os.geteuid() == 0 and about.st_uid:
        # The interpreter, and what a pickle runs, are the service's.
        as_owner = {"user": about.st_uid, "group": about.st_gid, "extra_groups": []}
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    command = [interpreter, "-I", "-c", _SCRIPT, json.dumps(options)]
    more = {
        "pass_fds": [file.stream.fileno() for file in files],
        "cwd": "/",
        "env": {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8", **threads},
        **as_owner,
    }
    try:
        output, status = asyncio.run(_run(command, more, max(0.1, seconds)))
    except asyncio.TimeoutError:
        _unknown(seen, f"faiss did not end within {seconds:g} s; allow more time, or look with depth quick")
        return None
    except OSError as error:
        _unknown(seen, f"{interpreter} cannot be run: {error.strerror}; correct python")
        return None
    last = output.decode("utf-8", "replace").rstrip().rpartition("\n")[2]
    try:
        return t.cast("dict[str, t.Any]", dict(json.loads(last)))
    except (ValueError, TypeError):
        why = f"signal {-status}" if status < 0 else f"status {status}"
        _unknown(seen, f"{interpreter} ended with {why} when it read {files[0].name}; try it by hand")
        return None


async def _run(command: list[str], options: dict[str, t.Any], seconds: float) -> tuple[bytes, int]:
    """What a process writes within its time, and its status; a module's run_command knows no time limit."""
    quiet = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(
        *command, stdin=quiet, stdout=asyncio.subprocess.PIPE, stderr=quiet, **options
    )
    try:
        output, _errors = await asyncio.wait_for(process.communicate(), seconds)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return output, process.returncode or 0


def _unknown(seen: Seen, why: str) -> None:
    seen["limits"].append(why)
    seen["state"] = "unknown"


def _judge(seen: Seen, files: Files, told: dict[str, t.Any], interpreter: str, memory: int) -> None:
    index = t.cast(File, files[INDEX])
    seen["faiss_version"] = told.get("faiss")
    if told.get("memory") or "failed to map" in told.get("said", "") or "bad_alloc" in told.get("error", ""):
        _unknown(seen, f"reading {index.name} takes more than {memory >> 20} MiB of memory; allow more")
        return
    if told.get("missing"):
        package = {"faiss": "faiss-cpu"}.get(told["missing"], told["missing"])
        _unknown(
            seen,
            f"{told['missing']} is not installed for {interpreter}; name the service's own interpreter as python, or "
            f"install {package}",
        )
    if "error" in told:
        said = told["error"].replace(_handle(index), index.name)
        problem(seen, "unreadable", f"faiss cannot read {index.name}: {said}; {WAY_OUT}.")
        return
    if "ntotal" not in told:
        return
    if (told["ntotal"], told["dimension"]) != (seen["ntotal"], seen["dimension"]):
        problem(
            seen,
            "damaged",
            f"faiss finds {told['ntotal']} vectors of {told['dimension']} dimensions in {index.name}, and its header "
            f"says {seen['ntotal']} of {seen['dimension']}; {WAY_OUT}.",
        )
    elif told["odd_count"]:
        row, norm = told["odd"][0]
        problem(
            seen,
            "vectors",
            f"{told['odd_count']} of {seen['ntotal']} vectors in {index.name} have not the length 1 "
            f"({told['not_finite']} of them are no numbers), the first is {row} with {norm}; {WAY_OUT}.",
        )
    elif told["lost"]:
        problem(
            seen,
            "search",
            f"a search in {index.name} for its own vector {told['lost'][0]} does not find it; {WAY_OUT}.",
        )
    vectorizer = files[VECTORIZER]
    if "pickle_error" in told:
        problem(
            seen,
            "tfidf_broken",
            f"{vectorizer.name if vectorizer else VECTORIZER} cannot be loaded: {told['pickle_error']}; {WAY_OUT}.",
        )
    if told.get("vocabulary") not in (None, seen["tfidf_columns"]) and seen["tfidf_columns"] is not None:
        problem(
            seen,
            "tfidf_mismatch",
            f"{vectorizer.name if vectorizer else VECTORIZER} has a vocabulary of {told['vocabulary']} words, and the "
            f"matrix has {seen['tfidf_columns']} columns; {WAY_OUT}, all four files together.",
        )
