# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The local connection, cut off once a module call has done its work and before anybody is told of it."""

from __future__ import annotations

import os
import signal
import typing as t

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.connection.local import Connection as Local


class Connection(Local):
    """ONCALL_CUT is `how:number:file`: killed or lost, after which call, and the file that counts them."""

    transport = "cut"

    def exec_command(self, cmd: t.Any, in_data: bytes | None = None, sudoable: bool = True) -> tuple[int, bytes, bytes]:
        how, number, path = os.environ["ONCALL_CUT"].split(":", 2)
        calls = os.path.getsize(path)
        if calls >= int(number):
            raise AnsibleConnectionFailure("The host does not answer any more")
        answer: tuple[int, bytes, bytes] = super().exec_command(cmd, in_data=in_data, sudoable=sudoable)
        # With pipelining a module is what comes by the standard input; looking for a Python comes without.
        if in_data:
            with open(path, "ab") as counter:
                counter.write(b".")
            if calls + 1 == int(number):
                if how == "killed":
                    # This is a worker; the run is its parent.
                    os.kill(os.getppid(), signal.SIGKILL)
                    os.kill(os.getpid(), signal.SIGKILL)
                raise AnsibleConnectionFailure("The host does not answer any more")
        return answer
