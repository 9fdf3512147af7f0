# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The probes by name; adding one is two lines here. A probe is a module with SPEC, RULES, validate, describe, look."""

from __future__ import annotations

import importlib
import typing as t

if t.TYPE_CHECKING:
    # Never run: Ansible packs what is imported anywhere, and a target compiles only the probes that are used.
    from ansible_collections.oncall.runbooks.plugins.module_utils.probes import (
        blocklist,
        dlq,
        faiss,
        file,
        git,
        host,
        http,
        jsonl,
        kyrodb,
        log,
        process,
        prometheus,
        remediation,
        service,
        setting,
        sqlite,
    )

__all__ = [
    "blocklist",
    "dlq",
    "faiss",
    "file",
    "git",
    "host",
    "http",
    "jsonl",
    "kyrodb",
    "log",
    "process",
    "prometheus",
    "remediation",
    "service",
    "setting",
    "sqlite",
]
PACKAGE = "ansible_collections.oncall.runbooks.plugins.module_utils.probes"


class _Probes(t.Mapping[str, t.Any]):
    def __getitem__(self, name: str) -> t.Any:
        if name not in __all__:
            raise KeyError(name)
        return importlib.import_module(f"{PACKAGE}.{name}")

    def __iter__(self) -> t.Iterator[str]:
        return iter(__all__)

    def __len__(self) -> int:
        return len(__all__)


PROBES: t.Mapping[str, t.Any] = _Probes()
