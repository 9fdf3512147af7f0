# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Probe git: how many commits of the last days touch a part of a checkout, and which were the last to do so."""

from __future__ import annotations

import os
import shutil
import time
import typing as t

from ansible_collections.oncall.runbooks.plugins.module_utils import clock, procfs
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import Absent, NoAnswer
from ansible_collections.oncall.runbooks.plugins.module_utils.looking import Context
from ansible_collections.oncall.runbooks.plugins.module_utils.masking import mask_text

MOST = 50
SHOWN = 10
SUBJECT = 200
# A repository's own configuration may name programs to run, and a partial clone fetches what it lacks. With these it
# does neither, so that one which belongs to the service's user may be read.
HARMLESS = (
    "--no-pager", "--no-optional-locks", "--literal-pathspecs",
    "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null",
    "-c", "log.showSignature=false", "-c", "protocol.allow=never", "-c", "safe.directory=*",
)  # fmt: skip

SPEC: dict[str, t.Any] = {
    "path": {"type": "str"},
    "port": {"type": "int"},
    "under": {"type": "list", "elements": "str", "default": []},
    "seconds": {"type": "float", "default": 604800.0},
}
RULES: dict[str, t.Any] = {}


def validate(source: t.Mapping[str, t.Any]) -> None:
    """Raise ValueError with a sentence for what the types cannot say."""
    if source["seconds"] <= 0:
        raise ValueError(f"seconds is {source['seconds']}; it is a number above 0")


def describe(source: t.Mapping[str, t.Any]) -> str:
    """What is looked at, as the finding names it."""
    where = source["path"] or (f"folder of port {source['port']}" if source["port"] else "no checkout")
    return " ".join(["git", where, *source["under"]])


def look(context: Context, source: t.Mapping[str, t.Any], check: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Count the commits, and name the newest."""
    under = list(source["under"])
    path = source["path"] or _folder_of(context, source["port"])
    if not path:
        raise Absent("No checkout is known.")
    tool = shutil.which("git")
    if tool is None:
        raise NoAnswer(f"The commits of {path} cannot be listed: git is not installed.", "missing")
    # What git cannot read as a time it takes for now.
    since = max(86400.0, time.time() - source["seconds"])
    # Of coreutils, for the module's run_command has no deadline.
    command = [shutil.which("timeout") or "/usr/bin/timeout", str(context.timeout), tool, *HARMLESS, "-C", path]
    command += ["log", "--format=%h%x09%ct%x09%s", f"--max-count={MOST}", "--", *(under or ["."])]
    status, output, errors = context.run(command)
    if status:
        _explain(context, path, status, errors)
    commits = [line.split("\t", 2) for line in output.splitlines()]
    recent = sum(1 for _commit, date, _subject in commits if float(date) >= since)
    notes = [f"{name} does not exist in {path}" for name in under if not os.path.lexists(os.path.join(path, name))]
    if recent == MOST:
        notes.append(f"{MOST} or more")
    return {
        "value": recent,
        "evidence": {
            "checkout": path,
            "since": clock.utc(since),
            "commits": [
                {"commit": commit, "date": clock.utc(float(date)), "subject": mask_text(subject)[:SUBJECT]}
                for commit, date, subject in commits[:SHOWN]
            ],
        },
        "note": "; ".join(notes) or None,
    }


def _folder_of(context: Context, port: int | None) -> str | None:
    """The folder in which what listens on a port was started, where that may be seen."""
    if not port:
        return None
    try:
        found = context.once(("process", port, None), lambda: procfs.listeners(port))
        return os.readlink(f"/proc/{found[0]}/cwd") if found else None
    except NoAnswer as error:
        # A guess at where a checkout may be, not one that somebody named.
        raise Absent(f"{error} Or name the checkout.") from None
    except OSError as error:
        raise Absent(
            f"The folder of what listens on port {port} may not be seen ({error.strerror}); run with -b, or name the "
            "checkout."
        ) from None


def _explain(context: Context, path: str, status: int, errors: str) -> t.NoReturn:
    """Raise what git's refusal means."""
    said = errors.strip().splitlines()
    user = procfs.user(os.geteuid())
    if status == 124:
        raise NoAnswer(f"git log in {path} does not end within {context.timeout:g} s.", "timeout")
    if "dubious ownership" in errors or "unsafe repository" in errors:
        raise NoAnswer(
            f"git does not trust {path}, which does not belong to {user}: run git config --global --add safe.directory "
            f"{path} as {user}, or run with -b and the owner as --become-user.",
            "permission",
        )
    folder = os.path.join(path, ".git")
    if "Permission denied" in errors or (os.path.lexists(folder) and not os.access(folder, os.R_OK | os.X_OK)):
        raise NoAnswer(f"{path} may not be read by {user}; run with -b.", "permission")
    if not os.path.isdir(path):
        raise NoAnswer(f"{path} is no folder; correct the path of the checkout.", "no data")
    if "not a git repository" in errors and not os.path.lexists(folder):
        raise Absent(f"{path} is no checkout: it was deployed without .git.")
    raise NoAnswer(f"git log in {path} fails: {mask_text(said[0]) if said else f'status {status}'}.")
