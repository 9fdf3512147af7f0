# SPDX-License-Identifier: GPL-3.0-or-later
"""Disposable test hosts: Debian 12 with systemd, reached over ssh as a user with passwordless sudo.

    python tests/hosts/hosts.py up vritti-1 vritti-2      start them (the first time builds the image: a minute or two)
    python tests/hosts/hosts.py up --lab vritti-1         and run the lab's services there, as systemd units
    python tests/hosts/hosts.py up --lab --service wp_chat vritti-1      or wp_chat's, in the place of Vritti's
    python tests/hosts/hosts.py inventory                 the inventory's path, for ansible -i
    python tests/hosts/hosts.py ssh vritti-1 [COMMAND]    log in
    python tests/hosts/hosts.py down                      remove them all

They are containers of podman or docker. The image comes from debian:12 where a registry can be reached, else from
mmdebstrap and a Debian mirror. What is missing is installed with apt, as root or through sudo. The containers are
labelled with the directory of their key and inventory (.test/hosts, or --dir), and `down` removes those with its
label, also after a run that was killed.

ONCALL_TEST_IMAGE names an image that was built elsewhere from the Dockerfile beside this file; ONCALL_TEST_ENGINE is
podman or docker where both are there.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import io
import json
import os
import platform
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from packaging.markers import Marker

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

USER = "oncall"
LAB = "/opt/lab"  # where the checkout's lab/ goes; its environment is in the image
LAB_PYTHON = "/opt/lab-venv/bin/python"


@dataclasses.dataclass(frozen=True)
class LabService:
    """One of the lab's services on a host, which is in the group of its name; `python -m lab install` puts it there."""

    user: str
    data: str
    settings: str
    units: tuple[str, ...]


VRITTI, WP_CHAT = "vritti", "wp_chat"
SERVICES = {
    VRITTI: LabService(
        "vritti", "/var/lib/vritti-lab", "/etc/vritti/vritti.env", ("vritti", "kyrodb-text", "kyrodb-image")
    ),
    WP_CHAT: LabService("wp-chat", "/var/lib/wp-chat-lab", "/etc/wp-chat/wp-chat.env", ("wp-chat",)),
}

RELEASE, RELEASE_IMAGE, RELEASE_PYTHON = "bookworm", "docker.io/library/debian:12", "3.11"
PACKAGES = (
    "systemd",
    "systemd-sysv",
    "dbus",
    "python3",
    "python3-venv",
    "openssh-server",
    "sudo",
    "iptables",
    "ipset",
    "nftables",
    "conntrack",
    "iproute2",
    "procps",
    "sqlite3",
    "git",
    "ca-certificates",
)
# The newest C library that a wheel may ask for is that of Debian 12: 2.36.
WHEEL_PLATFORMS = ("manylinux2014", "manylinux_2_17", "manylinux_2_28", "manylinux_2_34", "manylinux_2_35")

LABEL = "oncall.runbooks.test-hosts"
# A host's root may do there what root needs for services, firewalls and looking into processes; devices and kernel
# settings of this machine stay out of its reach.
CAPABILITIES = ("AUDIT_WRITE", "NET_ADMIN", "NET_RAW", "SYS_ADMIN", "SYS_PTRACE")
# Engines ask for more than an unprivileged parent can hand on, and then fail.
LIMITS = {"nofile": (resource.RLIMIT_NOFILE, 10_000), "nproc": (resource.RLIMIT_NPROC, 20_000)}

# Seconds.
QUICK, SLOW, BUILD, BOOT = 60, 300, 900, 90


class HostsError(Exception):
    """One sentence for the user."""


def run(command: Sequence[str | Path], *, seconds: float = QUICK, content: bytes = b"") -> str:
    """What a command prints; a HostsError with its last line when it fails or takes too long."""
    words = [str(word) for word in command]
    shown = shlex.join(words[:4]) + (" ..." if len(words) > 4 else "")
    try:
        done = subprocess.run(words, input=content, capture_output=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired as error:
        raise HostsError(f"`{shown}` did not end within {seconds:.0f} seconds.") from error
    except OSError as error:
        raise HostsError(f"`{shown}` cannot be run: {error}.") from error
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).decode(errors="replace").splitlines()
        raise HostsError(f"`{shown}` failed with status {done.returncode}: {said[-1] if said else 'it said nothing'}")
    return done.stdout.decode(errors="replace").strip()


def works(command: Sequence[str | Path]) -> bool:
    try:
        run(command)
    except HostsError:
        return False
    return True


def say(text: str) -> None:
    print(text, flush=True)


# The machine.


def root_prefix() -> list[str] | None:
    """What to put before a command that needs root; None where nothing helps."""
    if os.geteuid() == 0:
        return []
    return ["sudo", "-n"] if works(["sudo", "-n", "true"]) else None


def install(*packages: str, otherwise: str = "") -> None:
    root = root_prefix()
    by_hand = f"sudo apt-get install {' '.join(packages)}"
    if root is None or shutil.which("apt-get") is None:
        raise HostsError(
            f"The test hosts need {' and '.join(packages)}, which takes apt with root or passwordless sudo to install:"
            f" run `{by_hand}`{otherwise}."
        )
    say(f"apt-get install {' '.join(packages)}")
    run([*root, "apt-get", "update"], seconds=SLOW)
    apt = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "--yes", "--no-install-recommends"]
    run([*root, *apt, *packages], seconds=SLOW)


def unified_cgroups() -> bool:
    return Path("/sys/fs/cgroup/cgroup.controllers").exists()


@dataclasses.dataclass(frozen=True)
class Engine:
    """Podman or docker; they share nearly all of their command line."""

    name: str
    command: tuple[str, ...]

    def run(self, *words: str | Path, seconds: float = QUICK, content: bytes = b"") -> str:
        return run([*self.command, *words], seconds=seconds, content=content)

    def has_image(self, image: str) -> bool:
        return works([*self.command, "image", "inspect", image])

    def systemd_options(self) -> list[str]:
        """What an init system needs in a container; podman provides it by itself."""
        if self.name == "podman":
            return ["--systemd=always"]
        cgroups = ["--cgroupns=host", "--volume=/sys/fs/cgroup:/sys/fs/cgroup:rw"]
        return ["--tmpfs=/run", "--tmpfs=/run/lock", "--tmpfs=/tmp:exec", *cgroups]


def engines() -> list[Engine]:
    """Those that answer. Podman only as root: without it, a container has no address that one could reach."""
    root, found = root_prefix(), []
    if root is not None and shutil.which("podman"):
        # crun, the other runtime, refuses to start where cgroups of version 1 are mounted as well.
        podman = (
            (*root, "podman") if unified_cgroups() or not shutil.which("runc") else (*root, "podman", "--runtime=runc")
        )
        if works([*podman, "info"]):
            found.append(Engine("podman", podman))
    if shutil.which("docker"):
        # A client alone is no engine: only the server's version tells.
        commands = [("docker",)] if not root else [("docker",), (*root, "docker")]
        found += [
            Engine("docker", command)
            for command in commands
            if works([*command, "version", "-f", "{{.Server.Version}}"])
        ][:1]
    wanted = os.environ.get("ONCALL_TEST_ENGINE")
    return [engine for engine in found if wanted in {None, "", engine.name}]


def choose_engine() -> Engine:
    if not unified_cgroups() and shutil.which("podman") and not shutil.which("runc"):
        install("runc")
    found = engines()
    if not found and not shutil.which("podman"):
        install("podman", "runc")
        found = engines()
    if not found:
        wanted = os.environ.get("ONCALL_TEST_ENGINE") or "podman (as root or with passwordless sudo) or docker"
        raise HostsError(
            f"No container engine answers here: start {wanted}, and check it with `podman info` or `docker info`."
        )
    return found[0]


# The image.


def digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def requirements() -> str:
    """What the lab imports, which is all that the demo needs but Ansible, and what modules pack archives with."""
    demo, target = ((ROOT / f"requirements/{name}.txt").read_text(encoding="utf-8") for name in ("demo", "target"))
    lines = [line for line in demo.splitlines() if re.match(r"\w", line) and not line.startswith("ansible-core")]
    lines += [line for line in target.splitlines() if line.startswith("zstandard")]
    # Pip asks a condition of the Python that it runs with, and these are for another one.
    python = {"python_version": RELEASE_PYTHON, "python_full_version": f"{RELEASE_PYTHON}.0"}
    wanted = [(name, condition) for name, _separator, condition in (line.partition(" ; ") for line in lines)]
    return "".join(f"{name}\n" for name, condition in wanted if not condition or Marker(condition).evaluate(python))


def provide_image(engine: Engine) -> str:
    """The image's name; built when there is none of this recipe yet."""
    given = os.environ.get("ONCALL_TEST_IMAGE")
    if given:
        if not engine.has_image(given):
            raise HostsError(
                f"ONCALL_TEST_IMAGE={given} is no image that {engine.name} has: `{engine.name} images` lists them."
            )
        return given
    recipe = (HERE / "Dockerfile").read_text(encoding="utf-8")
    image = f"localhost/oncall-test-host:{digest(recipe, requirements(), RELEASE, *PACKAGES)}"
    if engine.has_image(image):
        return image
    say(f"building {image} with {engine.name} (once)")
    with tempfile.TemporaryDirectory(prefix="oncall-test-image-") as work:
        context = Path(work) / "context"
        (context / "wheels").mkdir(parents=True)
        shutil.copy(HERE / "Dockerfile", context)
        download_wheels(context / "wheels")
        base, network = provide_base(engine, Path(work))
        arguments = [f"--build-arg=BASE={base}", f"--build-arg=PACKAGES={' '.join(PACKAGES)}", f"--tag={image}"]
        engine.run("build", *network, *arguments, context, seconds=BUILD)
    return image


def download_wheels(folder: Path) -> None:
    """For the Python of the hosts, whatever the one here is, so that they need no network."""
    (folder / "requirements.txt").write_text(requirements(), encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "download"]
    platforms = [f"--platform={name}_{platform.machine()}" for name in WHEEL_PLATFORMS]
    which = [
        "--no-deps",
        "--only-binary=:all:",
        "--implementation=cp",
        f"--python-version={RELEASE_PYTHON}",
        *platforms,
    ]
    run([*pip, *which, "--dest", folder, "--requirement", folder / "requirements.txt"], seconds=SLOW)


def provide_base(engine: Engine, work: Path) -> tuple[str, list[str]]:
    """A Debian to build on, and the options that say whether building needs a network."""
    if engine.has_image(RELEASE_IMAGE):
        return RELEASE_IMAGE, []
    try:
        engine.run("pull", RELEASE_IMAGE, seconds=SLOW)
    except HostsError:
        say("no registry has debian:12 for us; mmdebstrap makes one")
    else:
        return RELEASE_IMAGE, []
    base = f"localhost/oncall-test-base:{digest(RELEASE, *PACKAGES)}"
    if not engine.has_image(base):
        if not shutil.which("mmdebstrap"):
            install(
                "mmdebstrap",
                "debian-archive-keyring",
                otherwise=", or set ONCALL_TEST_IMAGE to an image built elsewhere",
            )
        archive = work / "base.tar"
        include = f"--include={','.join(PACKAGES)}"
        run([*(root_prefix() or []), "mmdebstrap", "--variant=minbase", include, RELEASE, archive], seconds=BUILD)
        engine.run("import", archive, base, seconds=SLOW)
        archive.unlink()
    return base, ["--network=none"]


# The hosts.


class Hosts:
    """The containers of one directory, which holds their key, their known_hosts and their inventory."""

    def __init__(self, engine: Engine, directory: Path) -> None:
        self.engine = engine
        self.directory = directory
        self.run_id = digest(str(directory))[:8]
        self.key = directory / "id_ed25519"
        self.known_hosts = directory / "known_hosts"
        self.inventory = directory / "inventory.yml"

    def container(self, name: str) -> str:
        return f"oncall-test-{name}-{self.run_id}"

    def names(self, *, running: bool = False) -> list[str]:
        label = f"label={LABEL}={self.directory}"
        which = ["--filter", label] if running else ["--all", "--filter", label]
        containers = self.engine.run("ps", *which, "--format", "{{.Names}}").split()
        return sorted(name.removeprefix("oncall-test-").removesuffix(f"-{self.run_id}") for name in containers)

    def shell(self, name: str, script: str, *, seconds: float = QUICK, content: bytes = b"") -> str:
        """Run a script as the host's root, by way of the engine."""
        return self.engine.run(
            "exec", "-i", self.container(name), "sh", "-euc", script, seconds=seconds, content=content
        )

    def up(self, names: Sequence[str], *, lab: str) -> None:
        image = provide_image(self.engine)
        self.provide_key()
        there = set(self.names(running=True))
        fresh = [name for name in names if name not in there]
        self.remove(sorted({*fresh} & {*self.names()}))  # stopped, or never started
        try:
            for name in fresh:
                self.start(name, image)
            for name in names:
                self.await_systemd(name)
                # What works only where a host reaches the internet should fail here too.
                self.shell(name, "ip -4 route flush default; ip -6 route flush default")
                self.authorize(name)
            self.write_inventory()
            for name in names:
                run([*self.ssh(name), "sudo -n true"])
                if lab:
                    self.install_lab(name, lab)
                say(f"{name}: up" if name in fresh else f"{name}: was up already")
            if lab:
                self.write_inventory()
        except BaseException:
            self.remove(sorted({*fresh} & {*self.names()}))
            raise

    def provide_key(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        if not self.key.exists():
            if not shutil.which("ssh-keygen"):
                install("openssh-client")
            run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test hosts", "-f", self.key])

    def start(self, name: str, image: str) -> None:
        options = [f"--name={self.container(name)}", f"--hostname={name}", f"--label={LABEL}={self.directory}"]
        options += [f"--cap-add={capability}" for capability in CAPABILITIES]
        options.append("--stop-timeout=0")  # disposable: nothing in it needs a proper end
        # AppArmor's and seccomp's profiles for containers forbid mounts, which systemd makes for its services.
        options += ["--security-opt=seccomp=unconfined", "--security-opt=apparmor=unconfined"]
        for limit, (number, wanted) in LIMITS.items():
            hard = resource.getrlimit(number)[1]
            value = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
            options.append(f"--ulimit={limit}={value}:{value}")
        self.engine.run("run", "--detach", *self.engine.systemd_options(), *options, image, "/sbin/init")

    def await_systemd(self, name: str) -> None:
        state, end = "", time.monotonic() + BOOT
        while time.monotonic() < end:
            if self.engine.run("inspect", "--format={{.State.Running}}", self.container(name)) != "true":
                logs = self.engine.run("logs", self.container(name)).splitlines() or ["it said nothing"]
                raise HostsError(f"The host {name} stopped while it started: {logs[-1]}")
            state = self.shell(name, "systemctl is-system-running 2>&1 || true")
            if state == "degraded":
                failed = self.shell(name, "systemctl list-units --state=failed --plain --no-legend | cut -d' ' -f1")
                say(f"{name}: degraded, for these failed: {' '.join(failed.split())}")
            if state in {"running", "degraded"}:
                return
            time.sleep(0.1)
        raise HostsError(f"systemd on the host {name} did not finish starting within {BOOT} seconds; it says: {state}")

    def authorize(self, name: str) -> None:
        script = f"install -d -m 700 -o {USER} -g {USER} ~{USER}/.ssh; cat >~{USER}/.ssh/authorized_keys"
        self.shell(name, script, content=self.key.with_suffix(".pub").read_bytes())

    def address(self, name: str) -> str:
        template = "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}"
        addresses = self.engine.run("inspect", f"--format={template}", self.container(name)).split()
        if not addresses:
            raise HostsError(
                f"The host {name} has no address: look at `{self.engine.name} inspect {self.container(name)}`."
            )
        return addresses[0]

    def write_inventory(self) -> None:
        """The inventory of all hosts that run, and their host keys as the hosts themselves tell them."""
        variables = {
            "ansible_user": USER,
            "ansible_ssh_private_key_file": str(self.key),
            "ansible_ssh_common_args": shlex.join(self.ssh_options()),
            "ansible_python_interpreter": "/usr/bin/python3",
        }
        groups: dict[str, dict[str, Any]] = {}
        keys = []
        for name in self.names(running=True):
            address = self.address(name)
            keys.append(f"{address} {self.shell(name, 'cat /etc/ssh/ssh_host_ed25519_key.pub')}\n")
            started = self.engine.run("inspect", "--format={{.Id}}", self.container(name))[:12]
            service = self.lab_service(name)
            hosts = groups.setdefault(service or VRITTI, {"hosts": {}, "vars": variables})["hosts"]
            hosts[name] = {
                "ansible_host": address,
                # A new host may get the address of an old one, but not the connection that ssh keeps open to it; nor
                # another user's.
                "ansible_control_path": f"%(directory)s/{started}-%%r",
                **(self.lab_variables(name, service) if service else {}),
            }
        self.known_hosts.write_text("".join(keys), encoding="utf-8")
        # JSON is YAML.
        text = json.dumps(groups, indent=2)
        self.inventory.touch(mode=0o600)  # it may hold an admin key
        self.inventory.write_text(f"---\n{text}\n", encoding="utf-8")

    def lab_service(self, name: str) -> str:
        """Which of the lab's services a host has; it has one at a time."""
        script = "".join(f"if test -e {service.settings}; then echo {key}; fi\n" for key, service in SERVICES.items())
        return self.shell(name, script)

    def lab_variables(self, name: str, service: str) -> dict[str, str]:
        """Where the lab's service is, on a host that has it; its ports and units are the runbooks' own."""
        data = SERVICES[service].data
        if service == WP_CHAT:
            return {
                "wp_chat_home": f"{data}/wp_chat",
                "wp_chat_log_path": "journal:wp-chat.service",
                "wp_chat_rebuild_command": f"{LAB_PYTHON} {LAB}/lab/wp_chat",
                "wp_chat_models_backup": f"{data}/models_backup",
            }
        settings = self.shell(name, f"cat {SERVICES[service].settings}")
        key = re.search(r"^ADMIN_API_KEY=(.*)$", settings, re.MULTILINE)
        return {
            "vritti_admin_api_key": key[1] if key else "",
            "vritti_home": f"{data}/vritti",
            "vritti_log_path": "journal:vritti.service",
            "vritti_customers_db": f"{data}/vritti/data/customers.db",
            "vritti_dlq_path": f"{data}/vritti/data/failed_reflections.log",
        }

    def ssh_options(self) -> list[str]:
        """Nothing of the user's own configuration; the host's key is checked."""
        files = [
            "-F",
            "/dev/null",
            "-o",
            f"UserKnownHostsFile={self.known_hosts}",
            "-o",
            "GlobalKnownHostsFile=/dev/null",
        ]
        return [*files, "-o", "StrictHostKeyChecking=yes", "-o", "IdentitiesOnly=yes", "-o", "ConnectTimeout=10"]

    def ssh(self, name: str) -> list[str]:
        return ["ssh", *self.ssh_options(), "-o", "BatchMode=yes", "-i", str(self.key), f"{USER}@{self.address(name)}"]

    def install_lab(self, name: str, service: str) -> None:
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            archive.add(ROOT / "lab", "lab", filter=lambda file: None if "__pycache__" in file.name else file)
        self.shell(name, f"mkdir -p {LAB}; tar -x --no-same-owner -C {LAB}", content=packed.getvalue())
        for other in (SERVICES[key] for key in SERVICES if key != service):
            files = " ".join(f"/etc/systemd/system/{unit}.service" for unit in other.units)
            script = (
                f"systemctl disable --quiet --now {' '.join(other.units)}; rm -rf {files} {other.settings} {other.data}"
            )
            self.shell(name, f"if test -e {other.settings}; then {script}; systemctl daemon-reload; fi", seconds=SLOW)
        options = f"--service {service} --prefix {LAB} --user {SERVICES[service].user}"
        self.shell(name, f"cd {LAB}; {LAB_PYTHON} -m lab install {options}", seconds=SLOW)

    def remove(self, names: Sequence[str]) -> None:
        for name in names:
            self.engine.run("rm", "--force", "--volumes", self.container(name))

    def down(self) -> list[str]:
        names = self.names()
        self.remove(names)
        for file in (self.key, self.key.with_suffix(".pub"), self.known_hosts, self.inventory):
            file.unlink(missing_ok=True)
        return names


def parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--dir",
        type=Path,
        default=ROOT / ".test/hosts",
        help="where the hosts' key and inventory are; every directory has hosts of its own (default: .test/hosts)",
    )
    top = argparse.ArgumentParser(description="Disposable test hosts with systemd and ssh.")
    commands = top.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", parents=[common], help="start hosts; those that run already are kept")
    up.add_argument("--lab", action="store_true", help="run the lab's services on them, as systemd units")
    up.add_argument("--service", choices=tuple(SERVICES), default=VRITTI, help="whose (default: %(default)s)")
    up.add_argument("names", nargs="+", metavar="NAME")
    commands.add_parser("down", parents=[common], help="remove all hosts of the directory")
    commands.add_parser("inventory", parents=[common], help="write the inventory anew and print its path")
    ssh = commands.add_parser("ssh", parents=[common], help="log in to a host, or run a command there")
    ssh.add_argument("name", metavar="NAME")
    ssh.add_argument("remote", nargs=argparse.REMAINDER, metavar="COMMAND")
    return top


def main() -> int:
    arguments = parser().parse_args()
    directory = arguments.dir.resolve()
    # Ended by a test runner, `up` still removes what it had started.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    try:
        if arguments.command == "down":
            # Whichever engine started them.
            removed = [name for engine in engines() for name in Hosts(engine, directory).down()]
            say(f"removed: {' '.join(removed)}" if removed else f"no test hosts of {directory}")
            return 0
        names = arguments.names if arguments.command == "up" else []
        for name in names:
            if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?", name):
                raise HostsError(
                    f"{name!r} is no host name: letters, digits and hyphens in lower case, up to 40 of them."
                )
        hosts = Hosts(choose_engine(), directory)
        if arguments.command == "up":
            hosts.up(names, lab=arguments.service if arguments.lab else "")
            say(f"inventory: {hosts.inventory}")
            return 0
        if arguments.command == "inventory":
            if not hosts.names(running=True):
                raise HostsError(f"There are no test hosts of {directory}; start them with `hosts.py up NAME`.")
            hosts.write_inventory()
            say(str(hosts.inventory))
            return 0
        if arguments.name not in hosts.names(running=True):
            raise HostsError(
                f"There is no test host {arguments.name} of {directory}; start it with `hosts.py up {arguments.name}`."
            )
        command = hosts.ssh(arguments.name)
        return subprocess.run([*command, *arguments.remote], check=False).returncode
    except HostsError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
