"""Ray for one sweep: started and stopped, at first without starting it."""

from __future__ import annotations

import ipaddress
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from raysweep.engine import environment
from raysweep.engine.interrupts import Interrupts
from raysweep.engine.resources import Machine, usable_cpus
from raysweep.engine.session import Session, check_address
from raysweep.recipe import Recipe, RecipeError

ALONE = Recipe()
TOGETHER = Recipe.model_validate({"resources": {"workers_per_trial": 2}})


@pytest.fixture
def fake_ray(monkeypatch):
    """Ray as far as `Session` touches it: its calls, how it was started, and what it then has."""
    import ray

    fake = SimpleNamespace(calls=[], options={}, address=None, gpus=2)

    def init(address, **options):
        fake.calls.append("up")
        fake.address, fake.options = address, options

    def resources():
        return {"CPU": 6.0, "GPU": float(min(fake.gpus, fake.options.get("num_gpus", fake.gpus)))}

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: fake.calls.append("down"))
    monkeypatch.setattr(ray, "cluster_resources", resources)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address="127.0.0.1:1"))
    return fake


@pytest.fixture
def files(prepare):
    """The folder that was made for a local Ray, with a line in its logs."""
    folder = prepare()
    logs = folder / "ray" / "session_1" / "logs"
    (logs / "old").mkdir(parents=True)
    (logs / "raylet.out").write_text("a line")
    (logs / "old" / "gcs.out").write_text("another")
    (logs / "elsewhere").symlink_to("/etc/hostname")
    (folder / "ray" / "session_latest").symlink_to(folder / "ray" / "session_1")
    return folder


# ---- starting and stopping ----


def test_ray_is_up_within_the_block_alone(fake_ray, files, tmp_path):
    with Session(ALONE, None, files, tmp_path / "logs"):
        fake_ray.calls.append("swept")
    assert fake_ray.calls == ["up", "swept", "down"]
    assert fake_ray.address == "local"
    assert fake_ray.options["num_cpus"] == usable_cpus()


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (KeyboardInterrupt("now"), (KeyboardInterrupt, "now")),
        (
            ConnectionError("no head"),
            (RecipeError, r"^Ray did not start on this machine, which may .* try again$"),
        ),
        (Exception("The node timed out\nduring startup."), (RecipeError, r"try again \(during startup.\)")),
    ],
)
def test_a_ray_that_does_not_start_is_a_sentence(fake_ray, files, tmp_path, monkeypatch, error, told):
    """Half started, Ray would leave processes; what it says is not taken for a mistake in an address."""

    def init(*_, **__):
        raise error

    monkeypatch.setattr("ray.init", init)
    with pytest.raises(told[0], match=told[1]), Session(ALONE, None, files, tmp_path / "logs"):
        pass
    assert fake_ray.calls == ["down"]


@pytest.mark.parametrize("ends", [None, RuntimeError, KeyboardInterrupt])
def test_logs_are_kept(fake_ray, files, tmp_path, ends):
    try:
        with Session(ALONE, None, files, tmp_path / "run" / "logs"):
            if ends:
                raise ends
    except BaseException as error:
        assert type(error) is ends
    kept = {str(path.relative_to(tmp_path / "run" / "logs")) for path in (tmp_path / "run").rglob("*.*")}
    assert kept == {"raylet.out", "old/gcs.out"}
    assert (tmp_path / "run" / "logs" / "raylet.out").read_text() == "a line"
    assert not (tmp_path / "run" / "logs" / "elsewhere").exists()  # links are not followed


def test_a_cluster_is_left_as_it_was(fake_ray, tmp_path):
    with Session(ALONE, "10.0.0.1:6379", None, tmp_path / "logs"):
        pass
    assert fake_ray.calls == ["up", "down"]
    assert fake_ray.address == "10.0.0.1:6379"
    assert not {"num_cpus", "include_dashboard"} & fake_ray.options.keys()
    assert not (tmp_path / "logs").exists()


def test_an_interrupt_while_ray_stops_waits(fake_ray, files, tmp_path, monkeypatch):
    """Half stopped, Ray would leave processes."""

    def shutdown():
        signal.raise_signal(signal.SIGINT)
        fake_ray.calls.append("down")

    monkeypatch.setattr("ray.shutdown", shutdown)
    with Interrupts() as interrupts, Session(ALONE, None, files, tmp_path / "logs", interrupts):
        pass
    assert fake_ray.calls == ["up", "down"]
    assert interrupts.interrupted


# ---- the head ----


def test_a_head_that_is_gone_interrupts_the_sweep(fake_ray, files, tmp_path, monkeypatch):
    """Nothing of Ray is called then: it would wait for the head."""
    monkeypatch.setattr("raysweep.engine.session.LOOK_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(gcs_address=address))
        with (
            pytest.raises(KeyboardInterrupt),
            Interrupts() as interrupts,
            Session(ALONE, None, files, tmp_path / "logs", interrupts) as session,
        ):
            time.sleep(0.3)
            assert not session.head_is_lost
            head.close()
            time.sleep(10)
    assert session.head_is_lost
    assert fake_ray.calls == ["up"]


# ---- trials of several workers ----


@pytest.mark.parametrize(
    ("recipe", "address", "told"),
    [
        (ALONE, None, None),
        (ALONE, "10.0.0.1:6379", None),
        (TOGETHER, None, "local"),
        (TOGETHER, "10.0.0.1:6379", "10.0.0.1:6379"),
        (TOGETHER, "auto", None),
    ],
)
def test_helpers_of_a_trials_own_run_are_told_their_cluster(fake_ray, files, tmp_path, recipe, address, told):
    """Else they would look for any on the machine; where one is looked for, they find it as this process did."""
    with Session(recipe, address, files if address is None else None, tmp_path / "logs"):
        found = fake_ray.options.get("runtime_env", {})
    expected = environment.local_address() if told == "local" else told
    assert found.get("env_vars", {}).get("RAY_ADDRESS") == expected


@pytest.mark.parametrize(("address", "sent"), [(None, None), ("auto", "1800"), ("10.0.0.1:6379", "1800")])
def test_trials_on_a_cluster_wait_for_a_node_that_is_to_come(fake_ray, files, tmp_path, address, sent):
    with Session(TOGETHER, address, files if address is None else None, tmp_path / "logs"):
        found = fake_ray.options.get("runtime_env", {})
    assert found.get("env_vars", {}).get("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S") == sent


def test_a_cluster_is_sent_what_ray_train_reads_here(fake_ray, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "60")
    with Session(ALONE, "auto", None, tmp_path / "logs"):
        assert fake_ray.options["runtime_env"]["env_vars"] == {
            "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
            "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "60",
        }


@pytest.mark.parametrize(("address", "sent"), [(None, False), ("auto", True), ("10.0.0.1:6379", True)])
def test_a_cluster_is_sent_the_code(fake_ray, files, tmp_path, address, sent):
    """Its nodes need raysweep's dependencies, and no checkout."""
    with Session(ALONE, address, files if address is None else None, tmp_path / "logs"):
        found = fake_ray.options.get("runtime_env", {})
    assert found.get("py_modules") == ([str(Path(environment.__file__).parents[1])] if sent else None)


@pytest.mark.parametrize(("recipe", "dashboard"), [(ALONE, False), (TOGETHER, True)])
def test_dashboard_only_where_trials_have_workers_of_their_own(fake_ray, files, tmp_path, recipe, dashboard):
    """Without it a stopped trial would keep the resources of its workers."""
    with Session(recipe, None, files, tmp_path / "logs"):
        assert fake_ray.options["include_dashboard"] is dashboard


# ---- what there is ----


@pytest.mark.parametrize(("of_torch", "expected"), [(4, 2), (2, 2), (0, 0)])
def test_gpus_are_those_that_both_ray_and_torch_see(fake_ray, files, tmp_path, monkeypatch, of_torch, expected):
    """A torch without CUDA trains on the CPU, whatever cards Ray finds in the machine."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: of_torch)
    with Session(ALONE, None, files, tmp_path / "logs") as session:
        assert session.machine() == Machine(6, expected)


@pytest.fixture
def nodes(monkeypatch):
    """What becomes of a task on each node of a cluster, by the node's hexadecimal id; all have 4 CPUs and a GPU."""
    import ray
    import ray.exceptions

    from raysweep.engine import session

    fates = {}
    resources = {"CPU": 4.0, "GPU": 1.0, "memory": 1e9}

    def get(node):
        if fates[node] == "fails":
            raise ray.exceptions.TaskUnschedulableError("its node is gone")

    def wait(tasks, num_returns, timeout):
        return [task for task in tasks if fates[task] != "hangs"], [task for task in tasks if fates[task] == "hangs"]

    def options(scheduling_strategy):
        return SimpleNamespace(remote=lambda: scheduling_strategy.node_id)

    listed = lambda: [{"NodeID": node, "Alive": fates[node] != "dead", "Resources": resources} for node in fates]  # noqa: E731
    monkeypatch.setattr(ray, "nodes", listed)
    monkeypatch.setattr(ray, "wait", wait)
    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(session, "_answer", SimpleNamespace(options=options))
    return fates


def test_a_clusters_gpus_are_those_that_ray_counts(fake_ray, nodes, tmp_path, monkeypatch):
    """The machine that the command runs on may have none."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    nodes |= {"a" * 56: "runs", "b" * 56: "runs"}
    with Session(ALONE, "auto", None, tmp_path / "logs") as session:
        assert session.machine() == Machine(8, 2)


def test_a_node_that_does_not_answer_does_not_count(fake_ray, nodes, tmp_path):
    """Ray takes a while to notice that one is gone; what then asks for its CPUs waits in vain."""
    nodes |= {"a" * 56: "runs", "b" * 56: "fails", "c" * 56: "hangs", "d" * 56: "dead"}
    with Session(ALONE, "auto", None, tmp_path / "logs") as session:
        assert session.machine() == Machine(4, 1)


# ---- addresses ----


@pytest.mark.parametrize("address", ["foo", "ray://here:10001", "10.0.0.1", ":6379", "10.0.0.1:port"])
def test_address_is_auto_or_host_and_port(address):
    with pytest.raises(RecipeError, match=r"is not auto or HOST:PORT"):
        check_address(address)


def test_address_where_nothing_answers():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # taken, but not listened at
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(RecipeError, match=rf"--address={address}: nothing answers there"):
            check_address(address)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_address_where_something_answers(host):
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        check_address(f"{host}:{listening.getsockname()[1]}")
    check_address("auto")


def test_auto_without_a_cluster(fake_ray, tmp_path, monkeypatch):
    def init(*_, **__):
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr("ray.init", init)
    with (
        pytest.raises(RecipeError, match="--address=auto: no Ray cluster lets this process in"),
        Session(ALONE, "auto", None, tmp_path / "logs"),
    ):
        pass


# ---- a Ray of the sweep's own ----

OWN = """
import json, os, signal, sys
from pathlib import Path
from raysweep.engine import environment
files = environment.prepare(local=True)
import psutil, ray
from raysweep.engine.reaper import Reaper
from raysweep.engine.session import Session
from raysweep.recipe import Recipe
with Reaper(files), Session(Recipe(), None, files, Path(sys.argv[1])) as session:
    worker = ray.get(ray.remote(lambda: os.getpid()).remote())
    processes = psutil.Process().children(recursive=True)
    sockets = [one for process in processes for one in process.net_connections("inet")]
    heard = [one.laddr.ip for one in sockets if one.status in (psutil.CONN_LISTEN, psutil.CONN_NONE)]
    print(json.dumps({
        "worker": worker, "processes": [process.pid for process in processes], "heard": heard, "files": str(files),
        "address": environment.local_address(),
        "environment": {name: os.environ[name] for name in os.environ if name.startswith("RAY_")},
    }), flush=True)
    if sys.stdin.readline().strip() == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
"""
JOINS = "import ray, sys; ray.init(sys.argv[1], logging_level='CRITICAL', log_to_driver=False); print('in')"
REFUSED = "InvalidAuthToken"
PATIENCE_S = 10
"""How long processes may outlive the one that was killed."""


class Own:
    """A process with a Ray of its own, and what it says of it."""

    def __init__(self, logs: Path) -> None:
        pipe = subprocess.PIPE
        self.logs = logs
        self.process = subprocess.Popen([sys.executable, "-c", OWN, str(logs)], stdin=pipe, stdout=pipe, text=True)
        self.said = json.loads(self.process.stdout.readline())
        self.before = Path(self.said["files"]).is_dir()

    def end(self, how: str) -> list[int]:
        """End it normally, or have it killed; returns which of its processes are there a good while after."""
        self.process.communicate(f"{how}\n", timeout=60)
        deadline = time.monotonic() + PATIENCE_S
        while (left := [pid for pid in self.said["processes"] if _lives(pid)]) and time.monotonic() < deadline:
            time.sleep(0.1)
        return left


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def joins(said: dict, errors: Path, **changed: str) -> bool:
    """Whether another process is let in; as soon as Ray says no, its further attempts are not waited for."""
    command = [sys.executable, "-c", JOINS, said["address"]]
    with errors.open("w") as file:
        env = os.environ | said["environment"] | changed
        one = subprocess.Popen(command, env=env, stderr=file, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while one.poll() is None and REFUSED not in errors.read_text() and time.monotonic() < deadline:
        time.sleep(0.1)
    ended = one.poll()
    one.kill()
    one.wait()
    return ended == 0


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """A Ray that two others tried to join, and that was ended normally."""
    folder = tmp_path_factory.mktemp("ended")
    own = Own(folder / "logs")
    own.let_in = joins(own.said, folder / "in.txt")
    own.let_in_without = joins(own.said, folder / "out.txt", RAY_AUTH_TOKEN="0" * 64)
    own.left = own.end("leave")
    return own


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A Ray whose process got SIGKILL."""
    own = Own(tmp_path_factory.mktemp("killed") / "logs")
    own.left = own.end("kill")
    own.after = Path(own.said["files"]).exists()
    yield own
    shutil.rmtree(own.said["files"], ignore_errors=True)
    for pid in own.left:
        psutil.Process(pid).kill()


@pytest.mark.ray
def test_it_is_heard_on_the_loopback_alone(ended):
    heard = ended.said["heard"]
    assert heard
    assert all(ipaddress.ip_address(ip.removeprefix("::ffff:")).is_loopback for ip in heard)


@pytest.mark.ray
def test_it_lets_in_who_has_the_token(ended):
    assert (ended.let_in, ended.let_in_without) == (True, False)


@pytest.mark.ray
def test_nothing_is_left_of_it(ended):
    assert ended.process.returncode == 0
    assert ended.said["worker"] in ended.said["processes"]
    assert ended.left == []
    assert ended.before and not Path(ended.said["files"]).exists()
    assert (ended.logs / "raylet.out").is_file()


@pytest.mark.ray
@pytest.mark.slow
def test_no_process_is_left_of_one_that_was_killed(killed):
    assert killed.process.returncode == -signal.SIGKILL
    assert killed.left == []


@pytest.mark.ray
@pytest.mark.slow
def test_no_folder_is_left_of_one_that_was_killed(killed):
    assert killed.before
    assert not killed.after
