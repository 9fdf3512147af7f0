# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Probe setting: the value of one setting in an environment file, unless it is a secret."""

from __future__ import annotations

import os
import typing as t

from ansible_collections.oncall.runbooks.plugins.module_utils import environment_files, procfs
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import Absent, NoAnswer
from ansible_collections.oncall.runbooks.plugins.module_utils.looking import Context

SPEC: dict[str, t.Any] = {
    "path": {"type": "str"},
    "name": {"type": "str", "required": True},
}
RULES: dict[str, t.Any] = {}


def validate(source: t.Mapping[str, t.Any]) -> None:
    """Raise ValueError with a sentence for what the types cannot say."""
    environment_files.check_name(source["name"])


def describe(source: t.Mapping[str, t.Any]) -> str:
    """What is looked at, as the finding names it."""
    return f"setting {source['name']} in {source['path'] or 'no file'}"


def look(context: Context, source: t.Mapping[str, t.Any], check: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Read the file once, and tell of the setting what everybody may know."""
    path, name = source["path"], source["name"]
    if not path:
        raise Absent("no environment file is known")
    settings: dict[str, str] = {}
    note = None
    try:
        settings = context.once(("setting", path), lambda: environment_files.load(path))
    except FileNotFoundError:
        note = f"{path} does not exist"
    except PermissionError:
        raise NoAnswer(f"{path} may not be read by {procfs.user(os.geteuid())}; run with -b.", "permission") from None
    except OSError as error:
        raise NoAnswer(f"{path} cannot be read ({error.strerror}); correct the path of the environment file.") from None
    text = environment_files.shown(name, settings.get(name))
    return {"value": text, "evidence": {"text": text}, "note": note}
