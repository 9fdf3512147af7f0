# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller's half of ip_block: who must not be locked out, and coming in again before a block may last."""

from __future__ import annotations

import typing as t

from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.plugins.action import ActionBase

from ansible_collections.oncall.runbooks.plugins.plugin_utils import recording
from ansible_collections.oncall.runbooks.plugins.plugin_utils.controller import own_addresses

MODULE = "oncall.runbooks.ip_block"
# These start a process beside the target's own. With any other, somebody is connected over the network.
_LOCAL = (
    *("local", "chroot", "jail", "nsenter", "podman", "buildah", "docker", "docker_api"),
    *("incus", "lxc", "lxd", "kubectl", "oc"),
)
_OWN = ("by", "controller_addresses", "connection", "phase", "earlier_connection")


class ActionModule(ActionBase):
    """One module call; with confirm_within a second one, over a new connection."""

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: t.Any = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        options = dict(self._task.args)
        given = [name for name in _OWN if name in options and name != "by"]
        if given:
            raise AnsibleActionFail(f"{given[0]} is for the action to say; leave it out. Nothing was changed.")
        owner = recording.owner()
        transport = str(self._connection.transport).rpartition(".")[2]
        options.setdefault("by", f"{owner['user']}@{owner['controller']}")
        options.update(
            connection="local" if transport in _LOCAL else "network",
            controller_addresses=own_addresses(str(self._play_context.remote_addr or "")),
        )
        result.update(self._execute_module(module_name=MODULE, module_args=options, task_vars=variables))
        confirmation = result.pop("confirmation", None)
        if confirmation is None or result.get("failed") or result.get("unreachable"):
            return result
        within = int(options["confirm_within"])
        answer = self._again(
            {
                **{name: value for name, value in options.items() if name not in ("confirm_within", "strict")},
                "addresses": confirmation["pending"],
                "backend": result["backend"],
                "phase": "confirm",
                "earlier_connection": confirmation["sockets"],
            },
            variables,
        )
        if answer.get("failed") or answer.get("unreachable"):
            why = " ".join(str(answer.get("msg") or "the module gave no result").split()).rstrip(".")
            result.update(
                failed=True,
                confirmed=False,
                msg=f"The block was not confirmed over a new connection, so what was added ends by itself within "
                f"{within} s: {why}.",
            )
            return result
        result["confirmed"] = True
        return result

    def _again(self, options: dict[str, t.Any], variables: dict[str, t.Any]) -> dict[str, t.Any]:
        try:
            # ssh keeps one connection open for many tasks, and a block does not end what is open.
            self._connection.reset()
            answer: dict[str, t.Any] = self._execute_module(
                module_name=MODULE, module_args=options, task_vars=variables
            )
        except AnsibleError as error:
            return {"failed": True, "msg": str(error)}
        return answer
