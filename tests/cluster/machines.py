"""Machines that a test makes out of this one, on a network of their own.

Each has its own processes, address, name and changes to the file system, and an SSH server. All
of them are in one set of Linux namespaces, which ends with the test whatever ends that: no
process, mount or interface is left.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import psutil

TOOLS = ("ip", "mount", "nsenter", "rsync", "setpriv", "ssh", "ssh-keygen", "sshd", "unshare")
SEARCHED = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
USER = "sweeper"
"""Who logs in: root by another name, with a home of its own. The namespaces keep accidents in, not attackers."""
HOME = f"/home/{USER}"
TOP = Path("/mnt")
"""Where the network has its disk in memory, which nothing else sees."""
BOOT_S = 60.0
"""How long a machine may take to answer at its SSH port."""
NETWORK = """
mount -t tmpfs -o mode=700 tmpfs "$0"
ip link set lo up
ip link add switch type bridge
ip address add 10.0.0.254/24 dev switch
ip link set switch up
echo up
exec sleep infinity
"""
"""The first process: a disk in memory for all machines, and a switch that they are plugged into."""
OWN = ["--mount", "--net", "--pid"]
"""Namespaces that the network and each machine have for themselves."""


def lacking() -> str:
    """Why no machines can be made here; nothing where they can."""
    if os.name != "posix" or os.geteuid() != 0:
        return "needs root, to make namespaces"
    if missing := [name for name in TOOLS if shutil.which(name, path=SEARCHED) is None]:
        return f"needs {', '.join(missing)} (Debian: apt-get install openssh-server rsync iproute2 util-linux)"
    try:
        with Network() as network:
            network.run("mkdir", "-p", *(f"{TOP}/{name}" for name in ("changes", "work", "root")))
            how = f"lowerdir=/,upperdir={TOP}/changes,workdir={TOP}/work"
            network.run("mount", "-t", "overlay", "-o", how, "overlay", f"{TOP}/root")
            for needed in (__file__, sys.prefix):
                network.run("test", "-e", f"{TOP}/root{Path(needed).resolve()}")
    except (OSError, subprocess.CalledProcessError) as error:
        return (
            f"needs namespaces, a bridge, and an overlay of / with the checkout in it, which is not to be had ({error})"
        )
    return ""


class Network:
    """A private network; a context manager.

    Args:
        names: address of each machine, in 10.0.0.0/24, by its name.

    Raises:
        OSError: it is not permitted here.
    """

    def __init__(self, names: Mapping[str, str] | None = None) -> None:
        self.names = dict(names or {})
        self.machines: list[Machine] = []

    def __enter__(self) -> Network:
        unshare = ["unshare", *OWN, "--fork", "--kill-child", "--mount-proc", "sh", "-ec", NETWORK, str(TOP)]
        self._process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *unshare], stdout=subprocess.PIPE, env=os.environ | {"PATH": SEARCHED}
        )
        try:
            assert self._process.stdout is not None
            if self._process.stdout.readline() != b"up\n":
                raise OSError("unshare, ip or mount failed")
            self.pid = _child(self._process.pid)
            self._furnish()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all machines; their disks vanish with the last process that sees them."""
        self._process.kill()
        self._process.wait()
        for machine in self.machines:
            machine.process.wait()

    def run(self, *words: str) -> None:
        """Run a command on the network, outside any machine.

        Raises:
            subprocess.CalledProcessError: it failed.
        """
        self._run(*OWN, *words)

    def outside(self, *words: str) -> None:
        """The same with process numbers as they are outside the network."""
        self._run("--net", *words)

    def _run(self, *words: str) -> None:
        subprocess.run(self.enter(*words), check=True, capture_output=True, env=os.environ | {"PATH": SEARCHED})

    def enter(self, *words: str) -> list[str]:
        """A command line that begins on the network: namespaces to enter, and the command."""
        return ["nsenter", "--target", str(self.pid), *words]

    def _furnish(self) -> None:
        """Keys, and a folder that the machines share."""
        for key in ("key", "host_key"):
            self.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f"{TOP}/{key}")
        self.run("mkdir", f"{TOP}/shared")


class Machine:
    """A machine of a network; switched on when it is made.

    Args:
        network: what it is plugged into.
        name: one of the network's names. A machine called `laptop` has the key to the others, and not their folder.
    """

    def __init__(self, network: Network, name: str) -> None:
        self.network, self.name = network, name
        network.machines.append(self)
        self.switch_on()

    def switch_on(self) -> None:
        """Boot, with the disk as it was left, and wait until it can be logged into."""
        boot = ["sh", str(Path(__file__).with_name("machine.sh")), str(TOP), self.name, USER]
        unshare = ["unshare", *OWN, "--uts", "--ipc", "--fork", "--kill-child", *boot]
        self.process = subprocess.Popen(
            self.network.enter(*OWN, *unshare), env=os.environ | {"PATH": SEARCHED}, stdin=subprocess.DEVNULL
        )
        self.pid = _child(_child(self.process.pid))
        self._plug_in()
        deadline = time.monotonic() + BOOT_S
        while not self._answers():
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise OSError(f"{self.name} does not boot")
            time.sleep(0.1)

    def switch_off(self) -> None:
        """Pull the plugs: the network's, so that nobody is told, and the power's."""
        self.network.run("ip", "link", "delete", self.name)
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self.process.wait()

    def path(self, inside: str) -> Path:
        """Where one of its files is seen from outside."""
        return Path(f"/proc/{self.pid}/root{inside}")

    def command(self, *words: str) -> list[str]:
        """A command line that runs on it, as its user with a clean environment."""
        enter = ["nsenter", "--target", str(self.pid), *OWN, "--uts", "--ipc", "--root", "--wd"]
        environment = {"HOME": HOME, "USER": USER, "PATH": SEARCHED, "TERM": "dumb", "LANG": "C.UTF-8"}
        return [*enter, "env", "-i", *(f"{name}={value}" for name, value in environment.items()), *words]

    def run(self, *words: str) -> str:
        """What a command on it prints.

        Raises:
            subprocess.CalledProcessError: it failed.
        """
        done = subprocess.run(
            self.command(*words), check=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
        )
        return done.stdout

    def tree(self) -> list[psutil.Process]:
        """All that runs on it."""
        first = psutil.Process(self.pid)
        return [first, *first.children(recursive=True)]

    def processes(self) -> list[str]:
        """Command lines of what runs on it."""
        return [line for one in self.tree() if (line := _command_line(one))]

    def _plug_in(self) -> None:
        address = self.network.names[self.name]
        plug = ["type", "veth", "peer", "name", "eth0", "netns", str(self.pid)]
        self.network.outside("ip", "link", "add", self.name, *plug)
        self.network.run("ip", "link", "set", self.name, "master", "switch", "up")
        inside = ["nsenter", "--target", str(self.pid), "--net", "ip"]
        for words in (
            ["address", "add", f"{address}/24", "dev", "eth0"],
            ["link", "set", "eth0", "up"],
            ["route", "add", "default", "via", "10.0.0.254"],
        ):
            subprocess.run([*inside, *words], check=True, env=os.environ | {"PATH": SEARCHED})

    def _answers(self) -> bool:
        probe = f"exec 3<>/dev/tcp/{self.network.names[self.name]}/22"
        try:
            self.network.run("bash", "-c", probe)
        except subprocess.CalledProcessError:
            return False
        return True


def _child(pid: int) -> int:
    """The only child of a process, once there is one."""
    deadline = time.monotonic() + BOOT_S
    while time.monotonic() < deadline:
        if children := psutil.Process(pid).children():
            return children[0].pid
        time.sleep(0.01)
    raise OSError("a namespace does not start")


def _command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
