"""Processes that are forks of one that has imported already, and Ray's head, each driven from a process of its own."""

import ipaddress
import json
import os
import shlex
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from raysweep import forkserver
from raysweep.head import Head

SCRIPT = """
import json, os, signal, sys
print(json.dumps({
    "arguments": sys.argv[1:], "folder": os.getcwd(), "mark": os.environ.get("MARK"), "pid": os.getpid(),
    "parent": os.getppid(), "group": os.getpgid(0), "name": __name__, "imported": "colorsys" in sys.modules,
    "blocked": signal.SIGUSR1 in signal.pthread_sigmask(signal.SIG_BLOCK, []), "said": sys.stdin.read(),
    "file": __file__, "path": sys.path,
}))
sys.exit(int(os.environ.get("STATUS", "0")))
"""

SERVING = """
import colorsys, sys
from raysweep.forkserver import ForkServer
server = ForkServer()
print(server._process, server.command(), flush=True)
sys.stdin.readline()
server.stop()
print("stopped", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def serving(tmp_path):
    """A process with a fork server: itself, the server's process, and the command that asks for a fork."""
    with subprocess.Popen(
        [sys.executable, "-c", SERVING], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as starter:
        server, _, command = starter.stdout.readline().strip().partition(" ")
        yield starter, psutil.Process(int(server)), shlex.split(command)
        starter.kill()


def run(command, script, tmp_path, *, expect=None, **environment):
    """What the script says of itself when the command runs it."""
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(script))
    done = subprocess.run(
        [*command, str(path), "--one", "two words"],
        cwd=tmp_path, env=os.environ | environment, input="hello", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert not done.stderr or expect, done.stderr
    return json.loads(done.stdout) if not expect else done


def is_alive(process):
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def test_a_fork_is_the_script_with_its_surroundings(serving, tmp_path):
    _, server, command = serving
    said = run(command, SCRIPT, tmp_path, MARK="here")
    assert said["imported"]
    assert said["parent"] == server.pid
    assert said["arguments"] == ["--one", "two words"]
    assert (said["folder"], said["mark"], said["said"], said["name"]) == (str(tmp_path), "here", "hello", "__main__")
    assert said["group"] == said["pid"]
    assert not said["blocked"]


def test_a_fork_blocks_the_signals_of_the_process_that_asked(serving, tmp_path):
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    try:
        assert run(serving[2], SCRIPT, tmp_path)["blocked"]
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_forks_have_random_numbers_of_their_own(serving, tmp_path):
    draw = "import json, random, uuid; print(json.dumps([random.random(), str(uuid.uuid4())]))"
    first, second = run(serving[2], draw, tmp_path), run(serving[2], draw, tmp_path)
    assert not set(first) & set(second)


def test_an_error_in_a_fork_is_told(serving, tmp_path):
    assert "ZeroDivisionError" in run(serving[2], "1 / 0", tmp_path, expect="an error").stderr


def test_without_a_server_the_script_runs_all_the_same(serving, tmp_path):
    starter, server, command = serving
    starter.stdin.write("\n")
    starter.stdin.flush()
    assert starter.stdout.readline() == "stopped\n"
    assert not server.is_running()
    said = run(command, SCRIPT, tmp_path)
    assert not said["imported"]
    assert said["arguments"] == ["--one", "two words"]


def test_the_server_ends_with_the_process_that_started_it(serving):
    starter, server, _ = serving
    starter.kill()
    starter.wait()
    deadline = time.monotonic() + 5
    while (alive := is_alive(server)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not alive


def test_a_fork_holds_no_pipes_of_the_process_that_started_the_server():
    """Else who reads from one of them would wait for the fork."""
    code = """
    import subprocess, sys
    from raysweep.forkserver import ForkServer
    reader = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    server = ForkServer()
    reader.stdin.close()
    sys.exit(reader.wait(5))
    """
    assert subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False, timeout=20).returncode == 0


def test_only_a_process_in_which_nothing_has_begun_is_forked():
    import torch  # noqa: F401

    assert not forkserver.is_sound()
    code = "from raysweep import cluster, forkserver; print(forkserver.is_sound())"
    fresh = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert fresh.strip() == str(sys.platform == "linux")


@pytest.mark.slow
def test_what_is_imported_before_the_forks_starts_no_ray_and_no_threads():
    code = """
    import sys, threading
    from raysweep import forkserver
    from raysweep.engine import session as cluster
    from raysweep.recipe import load
    cluster._import_for_workers(load(None, ["grid.backbone=[resnet18]"]))
    assert "timm" not in sys.modules
    cluster._import_for_workers(load(None, ["grid.backbone=[timm/resnet18,no_such_network]"]))
    assert "timm" in sys.modules and "ray" not in sys.modules and threading.active_count() == 1
    missing = set(cluster.PRELOADED) - set(sys.modules)
    assert not missing, missing
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


@pytest.mark.ray
def test_ray_that_does_not_start_says_why():
    head = Head(num_cpus="many", include_dashboard=False)
    with pytest.raises(RuntimeError, match=r"Ray did not start: .+"):
        head.address()
    head.stop()


USES = """
import os, signal, sys, time
import psutil
from raysweep.engine.session import Cluster
from raysweep.recipe import Recipe
with Cluster(Recipe()) as cluster:
    cluster.wait()
    import ray
    worker = ray.remote(lambda: (os.getpid(), os.getppid(), "torch" in sys.modules))
    session = cluster._logs.parent
    sockets = [one for own in psutil.Process().children(recursive=True) for one in own.net_connections("tcp")]
    heard = {one.laddr.ip for one in sockets if one.status == psutil.CONN_LISTEN}
    print(*ray.get(worker.remote()), cluster._forks._process, session, *heard, flush=True)
    if sys.argv[1:]:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def ray_processes() -> list[int]:
    return [one.pid for one in psutil.process_iter(["cmdline"]) if "raysweep.head" in (one.info["cmdline"] or [])]


@pytest.mark.ray
@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux alone")
@pytest.mark.parametrize("killed", [False, True])
def test_workers_of_ray_are_forks_nobody_else_is_let_in_and_nothing_is_left(killed, tmp_path: Path):
    script = tmp_path / "uses.py"
    script.write_text(USES)
    before = set(ray_processes())
    done = subprocess.run(
        [sys.executable, str(script), *(["kill"] if killed else [])], capture_output=True, text=True, check=False
    )
    worker, parent, has_torch, server, session, *heard = done.stdout.split()
    assert (parent, has_torch) == (server, "True")
    assert heard and all(ipaddress.ip_address(ip.removeprefix("::ffff:")).is_loopback for ip in heard)
    assert done.returncode == (-signal.SIGKILL if killed else 0)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and (set(ray_processes()) - before or psutil.pid_exists(int(worker))):
        time.sleep(0.2)
    assert not set(ray_processes()) - before
    assert not psutil.pid_exists(int(worker))
    assert not Path(session).exists()
    assert not psutil.pid_exists(int(server))
