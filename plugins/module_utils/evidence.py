# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a restart would wipe out: the end of the log, and the processes and the memory as they were."""

from __future__ import annotations

import re
import time
import typing as t

from ansible_collections.oncall.runbooks.plugins.module_utils import procfs
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import Absent, NoAnswer
from ansible_collections.oncall.runbooks.plugins.module_utils.looking import Context
from ansible_collections.oncall.runbooks.plugins.module_utils.masking import mask_text
from ansible_collections.oncall.runbooks.plugins.module_utils.probes import log

LOG_SECONDS = 600.0
LINES = 1000
# Of /proc/PID/status: names and numbers, no arguments, which may hold secrets.
_STATUS = re.compile(r"^(?:Name|State|PPid|Uid|Threads|Vm(?:Peak|Size|HWM|RSS|Swap)|Rss\w+):.*$", re.MULTILINE)


def log_tail(context: Context, path: str) -> str:
    """The last lines of the last minutes, without what looks like a secret; or why there are none."""
    try:
        where, window, _now = log.recent(context, path, LOG_SECONDS)
    except (NoAnswer, Absent) as error:
        return f"{error}\n"
    lines = window.text.splitlines()[-LINES:]
    return "\n".join([f"# {where}, the last {len(lines)} lines of {LOG_SECONDS:g} s", *map(mask_text, lines), ""])


def processes(ports: t.Sequence[int]) -> str:
    """Memory of the host, and of what listens on these ports."""
    parts = [f"# {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}", _read("/proc/loadavg"), _read("/proc/meminfo")]
    for port in ports:
        try:
            found = procfs.listeners(port)
        except NoAnswer as error:
            parts.append(f"# port {port}: {error}\n")
            continue
        parts.append(f"# port {port}: {len(found)} processes\n")
        for pid in found:
            kept = "\n".join(_STATUS.findall(_read(f"/proc/{pid}/status")))
            parts.append(f"## PID {pid}\n{kept}\n{_read(f'/proc/{pid}/limits')}{_read(f'/proc/{pid}/cgroup')}")
    return "\n".join(parts)


def _read(path: str) -> str:
    try:
        return procfs.read(path)
    except OSError as error:
        return f"# {path}: {error.strerror}\n"
