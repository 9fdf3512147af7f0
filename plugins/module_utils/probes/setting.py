# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Probe setting: the value of one setting in an environment file, unless it is a secret."""

from __future__ import annotations

import os
import re
import typing as t

from ansible_collections.oncall.runbooks.plugins.module_utils import environment_files, judge, procfs
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import Absent, NoAnswer
from ansible_collections.oncall.runbooks.plugins.module_utils.looking import Context, absolute
from ansible_collections.oncall.runbooks.plugins.module_utils.probes import log

SPEC: dict[str, t.Any] = {
    "path": {"type": "str"},
    "name": {"type": "str", "required": True},
    # Where it is looked for when the file has not got it; a relative one starts where what listens on the port does.
    "dotenv": {"type": "str"},
    "port": {"type": "int"},
    # What the service takes for no value,
    "placeholders": {"type": "list", "elements": "str", "default": []},
    # and its own value where it is not set.
    "default": {"type": "str"},
    # In place of the value: whether it is no more than this,
    "at_most": {"type": "float"},
    # or how many lines of a log name it: options of the probe log, with $value for it in `match`.
    "logged": {"type": "dict"},
}
RULES: dict[str, t.Any] = {}
PLACEHOLDER = "(a placeholder)"


def validate(source: t.Mapping[str, t.Any]) -> None:
    """Raise ValueError with a sentence for what the types cannot say."""
    environment_files.check_name(source["name"])
    if source["logged"]:
        strange = sorted(set(source["logged"]) - set(log.SPEC))
        if strange or "path" not in source["logged"]:
            raise ValueError(
                f"logged has {strange[0]!r}, which the probe log has not" if strange else "logged has no path"
            )
        log.validate(_in_log(source["logged"], ""))


def describe(source: t.Mapping[str, t.Any]) -> str:
    """What is looked at, as the finding names it."""
    also = f" and {source['dotenv']}" if source["dotenv"] else ""
    return f"setting {source['name']} in {source['path'] or 'no file'}{also}"


def look(context: Context, source: t.Mapping[str, t.Any], check: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Read the file once, and tell of the setting what everybody may know."""
    path, name = source["path"], source["name"]
    if not path:
        raise Absent("no environment file is known")
    settings = _settings(context, path)
    note = None if settings is not None else f"{path} does not exist"
    value = (settings or {}).get(name)
    if value is None and source["dotenv"]:
        # The process's environment goes before it.
        path = absolute(context, source["dotenv"], source["port"])
        value = (_settings(context, path) or {}).get(name)
        if value is not None:
            note = f"{path} sets it"
    if value is not None and any(word in value.lower() for word in source["placeholders"]):
        text = PLACEHOLDER
    else:
        text = environment_files.shown(name, value)
    if value is None and source["default"] is not None:
        text, note = source["default"], f"it is not set, so this is the default{f'; {note}' if note else ''}"
    if source["logged"]:
        seen = log.look(context, _in_log(source["logged"], text), check)
        return {**seen, "evidence": {"text": text, **seen["evidence"]}, "note": seen["note"] or note}
    if source["at_most"] is None:
        return {"value": text, "evidence": {"text": text}, "note": note}
    number, most = judge.number(text), source["at_most"]
    if number is None:
        raise NoAnswer(f"{name} in {path} is {text}, which is no number; correct it there.", "no data")
    fits = number <= most
    return {
        "value": fits,
        "evidence": {"text": text},
        "note": note if fits else f"{name} is {text} in {path}, and {most:g} would be less",
    }


def _in_log(options: t.Mapping[str, t.Any], value: str) -> dict[str, t.Any]:
    """A source of the probe log for lines that name the value."""
    made = {name: option.get("default") for name, option in log.SPEC.items()}
    made.update(options, window=float(options.get("window") or made["window"]))
    made["match"] = str(made["match"]).replace("$value", re.escape(value))
    return made


def _settings(context: Context, path: str) -> dict[str, str] | None:
    """The settings of a file; None where it does not exist."""
    try:
        return context.once(("setting", path), lambda: environment_files.load(path))
    except FileNotFoundError:
        return None
    except PermissionError:
        raise NoAnswer(f"{path} may not be read by {procfs.user(os.geteuid())}; run with -b.", "permission") from None
    except OSError as error:
        raise NoAnswer(f"{path} cannot be read ({error.strerror}); correct the path of the environment file.") from None
