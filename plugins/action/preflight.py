# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Refuse a run that would do nothing or something else than was meant. It connects to nothing."""

from __future__ import annotations

import os
import typing as t

from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.plugins.action import ActionBase

from ansible_collections.oncall.runbooks.plugins.plugin_utils.preflight import (
    cover,
    refuse_hosts,
    refuse_tags,
    refuse_without_steps,
    some,
)


class ActionModule(ActionBase):
    """Looks at tags, hosts and groups on the controller, once for all hosts."""

    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: t.Any = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        _validation, args = self.validate_argument_spec(
            {
                "runbook": {"type": "str", "required": True},
                "path": {"type": "path", "required": True},
                "tags": {"type": "list", "elements": "str", "required": True},
            }
        )
        refused = refuse_tags(
            args["runbook"], args["tags"], variables["ansible_run_tags"], variables["ansible_skip_tags"]
        )
        if refused:
            raise AnsibleActionFail(refused)
        try:
            services = sorted(
                name[:-4] for name in os.listdir(os.path.join(args["path"], "vars")) if name.endswith(".yml")
            )
        except OSError as error:
            raise AnsibleActionFail(
                f"The runbook {args['runbook']} has no checks: {error.filename} cannot be read ({error.strerror})."
            ) from None
        refused = refuse_without_steps(
            args["runbook"], variables["ansible_run_tags"], lambda: self._steps(args, services)
        )
        if refused:
            raise AnsibleActionFail(refused)
        hosts = list(variables["ansible_play_hosts_all"])
        hostvars = variables["hostvars"]
        covered = cover(hosts, services, variables["groups"], lambda host: hostvars[host].get("runbook_service"))
        refused = refuse_hosts(args["runbook"], hosts, services, variables.get("ansible_limit"), covered)
        if refused:
            raise AnsibleActionFail(refused)
        uncovered = covered[0]
        if uncovered:
            result["warnings"] = [
                f"{args['runbook']} leaves out {some(uncovered)}, in no group that it covers ({', '.join(services)})."
            ]
        result.update(changed=False, services=services, uncovered=uncovered)
        return result

    def _steps(self, args: dict[str, t.Any], services: t.Sequence[str]) -> bool:
        """Whether the runbook can do something for any of these services; a file that cannot be read is told later."""
        for service in services:
            path = os.path.join(args["path"], "vars", f"{service}.yml")
            try:
                data = self._loader.load_from_file(path)
            except AnsibleError:
                return True
            if not isinstance(data, dict) or data.get(f"{args['runbook']}_steps"):
                return True
        return False
