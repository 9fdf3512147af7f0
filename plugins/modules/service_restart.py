#!/usr/bin/python
# Copyright (c) oncall.runbooks maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: service_restart
short_description: Restart a service and wait until it is ready
version_added: "0.2.0"
description:
  - Restarts a systemd unit, or stops the process that a PID file or a listening port names and starts it again.
  - Everything that can be refused is refused before anything is stopped. Whatever fails later is told together with the
    state that is left.
  - A process is known by its PID and its start time. No pattern is matched against command lines, and no signal is
    sent to another process that has got the PID meanwhile, to the first process of the host, or to what the task runs
    under.
  - Between stop and start the module ignores the signals of a lost connection, so that the service is not left down.
author:
  - oncall.runbooks maintainers (@oncall)
extends_documentation_fragment:
  - oncall.runbooks.attributes
attributes:
  check_mode:
    support: full
    description: Finds the service, refuses what it would refuse, and changes nothing.
  diff_mode:
    support: full
    description: The process before and after.
options:
  name:
    description: What the service is called in messages.
    type: str
    required: true
  manager:
    description:
      - What runs the service. V(auto) is systemd where it knows O(unit), or where the process found is the main process
        of another unit, and else the process.
      - V(none) refuses, for a service that is run from elsewhere.
    type: str
    choices: [auto, systemd, process, none]
    default: auto
  unit:
    description: The systemd unit.
    type: str
  port:
    description: The TCP port that the service listens on, on this host. A process is found by it.
    type: int
  pid_file:
    description:
      - The file with the PID of the service's main process. It is refused where the process is younger than the file.
      - Where the module itself has started the process and nobody else has written the file, the module does.
    type: path
  command:
    description:
      - What starts the service, run without a shell. It may be the service itself, or something that starts it and
        returns 0.
      - Without it, something that watches over the process has 10 s to bring it back; then the command line that the
        old process had is started again.
    type: str
  directory:
    description: The folder that O(command) runs in. Without it, the one that the old process ran in.
    type: path
  environment_file:
    description:
      - A file in the format of systemd's C(EnvironmentFile), which is put over the environment of the old process.
        It need not exist. For a unit, systemd reads its own.
    type: path
  settings:
    description:
      - The names of variables that O(environment_file) alone decides. They are taken out of the environment of the old
        process first, so that what was removed from the file is not set any more.
    type: list
    elements: str
    default: []
  log:
    description: The file that the output is appended to. Without it, the file that the old process wrote to, if any.
    type: path
  state:
    description: V(started) leaves a service alone that runs, and waits until it is ready.
    type: str
    choices: [restarted, started]
    default: restarted
  unless_newer_than:
    description:
      - A file that the service reads when it starts. A service that was started after the last change of this file is
        left alone, as with O(state=started).
    type: path
  guard:
    description:
      - A file to lock while the service is stopped and started, as the engine does to know that a killed run's module
        is still at work. Whoever finds it locked is refused.
    type: path
  stop_timeout:
    description:
      - The seconds that the process and all below it may take to end after SIGTERM. What is left is killed.
      - A unit has a limit of its own, C(TimeoutStopSec); RV(note) tells when that is shorter.
    type: float
    default: 45
  start_timeout:
    description: The seconds from the start until it is ready.
    type: float
    default: 60
  ready_url:
    description: It is ready when a GET of this URL answers 2xx. Give one that can be polled without harm.
    type: str
  kyrodb:
    description: It is ready when this KyroDB instance answers C(Health), whatever it calls itself.
    type: dict
    suboptions:
      address:
        description: Host and gRPC port.
        type: str
        required: true
      api_key:
        description: The API key, where KyroDB's authentication is on.
        type: str
      service:
        description: The gRPC service.
        type: str
        default: kyrodb.v1.KyroDBService
      tls:
        description: Whether the instance speaks TLS.
        type: bool
        default: false
      ca_path:
        description: The certificate authority of the instance's certificate, as a PEM file on the target.
        type: path
      cert_path:
        description: The client's certificate, as a PEM file on the target.
        type: path
      key_path:
        description: The key of the client's certificate, as a PEM file on the target.
        type: path
      server_name:
        description: The name to verify in the certificate, where it is not the host of the address.
        type: str
      http_url:
        description: The HTTP observability port, asked where C(grpcio) is missing.
        type: str
notes:
  - Of a process, O(port) must be listened on by what was started, also where O(ready_url) or O(kyrodb) is given.
  - A process that is started again gets the user, groups, folder, environment, umask and limits of the old one. Where
    no process was left, root starts it as the owner of O(directory).
seealso:
  - module: oncall.runbooks.kyrodb_health
"""

EXAMPLES = r"""
- name: Restart Vritti, which systemd runs
  oncall.runbooks.service_restart:
    name: Vritti
    unit: vritti.service
    ready_url: http://localhost:8000/health/liveness

- name: Restart a Vritti that was started by hand, without the settings that the file does not have any more
  oncall.runbooks.service_restart:
    name: Vritti
    manager: process
    port: 8000
    directory: /srv/vritti
    command: /srv/vritti/.venv/bin/uvicorn src.main:app --port 8000
    environment_file: /etc/vritti/vritti.env
    settings: [WEB_CONCURRENCY]
    log: /var/log/vritti/app.log
    ready_url: http://localhost:8000/health/liveness

- name: See to it that KyroDB's text instance runs
  oncall.runbooks.service_restart:
    name: KyroDB text
    unit: kyrodb-text.service
    state: started
    kyrodb:
      address: localhost:50051
      api_key: "{{ kyrodb_api_key | default(omit, true) }}"
"""

RETURN = r"""
manager:
  description: What was found to run the service, V(systemd) or V(process).
  type: str
  returned: when the service was found
  sample: systemd
before:
  description: The service before.
  type: dict
  returned: when the service was found
  contains: &service
    pid:
      description: The main process, or null.
      type: int
      sample: 4711
    started_at:
      description: When that process started, or null.
      type: str
      sample: "2026-11-24T03:00:00Z"
    text:
      description: The same for a person.
      type: str
      sample: vritti.service (PID 4711, running since 2026-11-24T03:00:00Z)
after:
  description: The service now. Null in check mode, and where no process can be seen.
  type: dict
  returned: when the service was found
  contains: *service
killed:
  description: The PIDs that did not end in time and got SIGKILL.
  type: list
  elements: int
  returned: when the service was found
  sample: []
stop_seconds:
  description: The seconds until the old process had ended. Null where there was none, and for a unit.
  type: float
  returned: when the service was found
  sample: 8.2
ready_seconds:
  description: The seconds from the start until it was ready. Null where it is not.
  type: float
  returned: when the service was found
  sample: 6.3
by_hand:
  description: The commands that restart it by hand.
  type: list
  elements: str
  returned: when the service was found
  sample: [sudo systemctl restart vritti.service]
note:
  description: What else is to be known, in one sentence, or null.
  type: str
  returned: when the service was found
"""

import functools
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.oncall.runbooks.plugins.module_utils import kyrodb, remediation, restarting, services
from ansible_collections.oncall.runbooks.plugins.module_utils.errors import NoAnswer, Refused
from ansible_collections.oncall.runbooks.plugins.module_utils.http_client import check_url


def _check(options: t.Mapping[str, t.Any]) -> None:
    """Raise ValueError with a sentence for what the types cannot say."""
    if options["port"] is not None and not 0 < options["port"] < 65536:
        raise ValueError(f"port is {options['port']}; it goes from 1 to 65535")
    for name in ("stop_timeout", "start_timeout"):
        if options[name] <= 0:
            raise ValueError(f"{name} is {options[name]:g}; it is a number of seconds above 0")
    if options["ready_url"]:
        check_url(options["ready_url"])
    if options["kyrodb"]:
        kyrodb.parse_address(options["kyrodb"]["address"])
        if options["kyrodb"]["http_url"]:
            check_url(options["kyrodb"]["http_url"])


def _diff(result: restarting.Result) -> dict[str, str]:
    before = result["before"]["text"]
    if not result["changed"]:
        return {"before": f"{before}\n", "after": f"{before}\n"}
    after = result["after"]["text"] if result["after"] else "a new process"
    return {"before": f"{before}\n", "after": f"{after}\n"}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **services.SUBJECT,
            "settings": {"type": "list", "elements": "str", "default": []},
            "state": {"type": "str", "choices": ["restarted", "started"], "default": "restarted"},
            "unless_newer_than": {"type": "path"},
            "guard": {"type": "path"},
            "stop_timeout": {"type": "float", "default": 45.0},
            "start_timeout": {"type": "float", "default": 60.0},
            "ready_url": {"type": "str"},
            "kyrodb": {
                "type": "dict",
                "options": {**kyrodb.CONNECTION_SPEC, "api_key": {"type": "str", "no_log": True}},
            },
        },
        required_one_of=[("unit", "port", "pid_file")],
        supports_check_mode=True,
    )
    run_command = functools.partial(
        module.run_command, handle_exceptions=False, errors="surrogate_then_replace", environ_update={"LC_ALL": "C"}
    )
    try:
        _check(module.params)
        with remediation.at_work(None if module.check_mode else module.params["guard"]):
            result = restarting.restart(module.params, run_command, module.check_mode)
    except ValueError as error:
        module.fail_json(msg=f"{error}.")
    except Refused as error:
        module.fail_json(msg=str(error))
    except NoAnswer as error:
        module.fail_json(msg=f"{error} Nothing was changed.")
    except restarting.Failed as error:
        module.fail_json(msg=str(error), **error.result)
    module.exit_json(diff=_diff(result), **result)


if __name__ == "__main__":
    main()
