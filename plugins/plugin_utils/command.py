# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line to type again. It repeats where and what, and no value: one may be a secret."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import typing as t

from ansible import constants as C
from ansible import context
from ansible.errors import AnsibleError
from ansible.parsing.splitter import parse_kv

PLAN_FILE = "plan.json"
# What a command says anew, or says for this run alone.
_OF_THE_RUN = ("runbook_plan", "runbook_steps", "runbook_max_risk", "runbook_rollback_id", "runbook_override")
# What a playbook is about, which is no secret.
_ABOUT = ("incident_id", "incident_action")
# Playbooks that run a runbook, and are called otherwise.
_RUN_ONE = r"wp_chat_incident_\w+"


def again(tags: str, extra: t.Sequence[str] = (), instead: tuple[str, str] | None = None, host: str = "") -> str | None:
    """The ansible-playbook command of this run with other tags, or none; None where there is no command line.

    `instead` is the name of one of its playbooks, and of the one beside it to run in its place; `host` the only one.
    """
    arguments: t.Mapping[str, t.Any] = context.CLIARGS
    playbooks = arguments.get("args")
    if not playbooks:
        return None
    if instead:
        old, new = instead
        name = rf"(^|[/.])(?:{re.escape(old)}|{_RUN_ONE})(?=(\.ya?ml)?$)"
        playbooks = [re.sub(name, rf"\g<1>{new}", str(one)) for one in playbooks]
    words = ["ansible-playbook", *(_short(str(name)) for name in playbooks), *(["--tags", tags] if tags else [])]
    inventories = [str(source) for source in arguments.get("inventory") or ()]
    if inventories and inventories != [str(source) for source in C.DEFAULT_HOST_LIST]:
        for source in inventories:
            words += ["-i", _short(source)]
    if host or arguments.get("subset"):
        words += ["-l", host or str(arguments["subset"])]
    for value in arguments.get("extra_vars") or ():
        # What an approved plan lists is of that run alone.
        if str(value).startswith("@") and os.path.basename(str(value)) != PLAN_FILE:
            words += ["-e", str(value)]
    for name, value in () if instead else _given().items():
        if name in _ABOUT:
            words += ["-e", f"{name}={value}"]
    if arguments.get("become"):
        words.append("-b")
    if arguments.get("become_ask_pass"):
        words.append("-K")
    for name in arguments.get("vault_ids") or ():
        words += ["--vault-id", str(name)]
    for name in arguments.get("vault_password_files") or ():
        words += ["--vault-password-file", _short(str(name))]
    if arguments.get("ask_vault_pass"):
        words.append("--ask-vault-pass")
    words += [f"@{_short(word[1:])}" if word.startswith("@") else word for word in extra]
    return " ".join(map(shlex.quote, words))


def onward(diagnosis: t.Mapping[str, t.Any]) -> str | None:
    """The command that runs what a triage says to run next."""
    first = next((entry for entry in diagnosis.get("runbooks") or [] if entry["breaches"]), None)
    if first is None:
        return None
    return again("diagnose", instead=(diagnosis["runbook"], first["runbook"]), host=diagnosis["host"])


def not_repeated() -> list[str]:
    """The names of the variables that were given by value, which the command above leaves out."""
    return [name for name in _given() if name not in (*_OF_THE_RUN, *_ABOUT)]


def _given() -> dict[str, t.Any]:
    """The variables that were given by value."""
    found: dict[str, t.Any] = {}
    for given in map(str, context.CLIARGS.get("extra_vars") or ()):
        if given.startswith("@"):
            continue
        with contextlib.suppress(AnsibleError, ValueError, TypeError):
            found.update(parse_kv(given) if given[:1] not in "{[" else json.loads(given))
    return found


def _short(path: str) -> str:
    """The path from here, where that is shorter; a collection playbook's name and a host list stay as they are."""
    if not os.path.isabs(path):
        return path
    relative = os.path.relpath(path)
    return relative if len(relative) < len(path) else path
