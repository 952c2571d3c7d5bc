"""A cluster brought up by `ray up`, a sweep on it that loses a machine, `ray down`: `make test-cluster`.

The machines are made out of this one (see machines.py). The cluster file is the one of the
checkout with its placeholders filled in. Its set-up commands run as they are, but for what pip
is told by its configuration file: the virtual environment is there, so that nothing is fetched
and only this package is installed into it, from what the launcher has copied.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from benchmarks.compared import ends_differ, rows_differ

from .machines import HOME, USER, Machine, Network, lacking

ROOT = Path(__file__).resolve().parents[2]
VENV = Path(sys.prefix).resolve()
NAMES = {"laptop": "10.0.0.1", "head": "10.0.0.2", "worker": "10.0.0.3"}
FILE = "cluster-local.yaml"
RUN = "/srv/runs/sweep"
"""Below a folder that head and worker share."""
ROWS_BEFORE = 2
PATIENCE_S = 600
"""Of each wait: other work may use the CPUs."""
TOLERANCE = 1e-3
"""Of numbers in rows, relative: two ranks add in another order than one process."""
RECIPE = {
    "name": "cluster",
    "data": {"dataset": "fake:4", "limit": 256, "image_size": 32},
    "grid": {"backbone": "small_cnn", "depth": ["all"], "lr": [0.001], "seed": [0, 1]},
    "model": {"weights": "none", "batch_norm": "recalibrated"},
    "train": {"epochs": 6, "batch_size": 32},
    "asha": None,
    "resources": {"workers_per_trial": 2, "cpus_per_worker": 2, "gpus_per_worker": 0},
}
"""Each machine has this one's CPUs, of which a trial's worker takes most: two do not fit on one."""
PREPARED = f"""
mkdir -p ~/raysweep-code ~/.config/pip
ln -s {VENV} ~/raysweep-code/venv
rm -r {ROOT}/raysweep
printf '[install]\nno-index = true\nno-build-isolation = false\n' > ~/.config/pip/pip.conf
"""
"""What is done to a node beforehand: the checkout's package is not there, the environment that it goes into is.
pip reads `no-build-isolation = false` as its option of that name."""


class Stages:
    """Says how long each took."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self.capture = capture
        self.began = self.last = time.monotonic()

    def done(self, what: str) -> None:
        now = time.monotonic()
        with self.capture.disabled():
            print(f"{now - self.began:6.0f} s  {what}: {now - self.last:.1f} s", flush=True)
        self.last = now


def wait(what: str, reached: Callable[[], bool]) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + PATIENCE_S
    while not reached():
        assert time.monotonic() < deadline, f"{what}: not within {PATIENCE_S} s"
        time.sleep(0.2)


class Cluster:
    """The machines, and the launcher's commands on the laptop."""

    def __init__(self, network: Network) -> None:
        self.laptop, self.head, self.worker = (Machine(network, name) for name in NAMES)
        for node in (self.head, self.worker):
            node.run("sh", "-ec", PREPARED)
        config = yaml.safe_load((ROOT / FILE).read_text())
        config["provider"].update(head_ip=NAMES["head"], worker_ips=[NAMES["worker"]])
        config["auth"].update(ssh_user=USER, ssh_private_key="~/.ssh/id_ed25519")
        self.laptop.path(f"{ROOT}/{FILE}").write_text(yaml.safe_dump(config))

    def on_laptop(self, *words: str) -> list[str]:
        """A command line at the root of the checkout."""
        return self.laptop.command("sh", "-c", f'cd {ROOT}; exec "$0" "$@"', str(VENV / "bin" / words[0]), *words[1:])

    def launcher(self, command: str, *words: str) -> None:
        """`ray COMMAND cluster-local.yaml …`."""
        line = self.on_laptop("ray", command, FILE, *words)
        subprocess.run(line, check=True, stdin=subprocess.DEVNULL)

    def nodes(self) -> int:
        """How many nodes the head sees."""
        code = "import ray; ray.init('auto', log_to_driver=False); print(sum(n['Alive'] for n in ray.nodes()))"
        line = f'source ~/.bashrc; exec ~/raysweep-code/venv/bin/python -c "{code}"'
        return int(self.head.run("bash", "-ic", line).split()[-1])

    def sweep(self, words: str) -> subprocess.Popen[bytes]:
        """`ray exec` of a sweep on the head."""
        line = self.on_laptop("ray", "exec", FILE, f"python -m raysweep.grid {words}")
        return subprocess.Popen(line, stdin=subprocess.DEVNULL)

    def rows(self) -> int:
        """How many rows the sweep has."""
        path = self.head.path(f"{RUN}/epochs.jsonl")
        return path.read_bytes().count(b"\n") if path.is_file() else 0

    def trains(self, node: Machine) -> bool:
        """Whether a worker of a trial runs on a node."""
        return any(line.startswith("ray::RayTrainWorker") for line in node.processes())

    def rays(self) -> list[str]:
        """Command lines of what Ray runs on the nodes; a monitor of logs that it leaves on a worker does not count."""
        lines = [line for node in (self.head, self.worker) for line in node.processes()]
        return [line for line in lines if line.startswith("ray::") or "/ray/core/src/ray/" in line]


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    if why := lacking():
        pytest.skip(why)
    with Network(NAMES) as network:
        yield Cluster(network)
        processes = [one for machine in network.machines for one in machine.tree()]
    assert psutil.wait_procs(processes, timeout=10)[1] == []


@pytest.mark.timeout(1800)
def test_a_sweep_on_a_cluster_that_loses_a_machine(cluster, capfd):
    stages = Stages(capfd)
    recipe = f"{HOME}/recipe.yaml"
    cluster.laptop.path(recipe).write_text(json.dumps(RECIPE))
    cluster.launcher("up", "--yes")
    stages.done("ray up brings the head up")
    wait("the head brings the worker up", lambda: cluster.nodes() == 2)
    stages.done("the head brings the worker up")
    cluster.launcher("rsync-up", recipe, recipe)
    with cluster.sweep(f"{recipe} --address auto --run-dir {RUN}") as sweep:
        wait("a trial has a few rows", lambda: cluster.rows() >= ROWS_BEFORE or sweep.poll() is not None)
        stages.done(f"the sweep starts, and has {cluster.rows()} rows")
        assert all(cluster.trains(node) for node in (cluster.head, cluster.worker))
        cluster.worker.switch_off()
        cluster.worker.switch_on()
        before = cluster.rows()
        stages.done(f"the worker loses its power after {before} rows, and boots")
        wait("the trial goes on", lambda: cluster.rows() > before or sweep.poll() is not None)
        stages.done("the head brings Ray up on it again, and the trial goes on")
        assert sweep.wait() == 0
    stages.done("the sweep ends")
    cluster.launcher("rsync-down", f"{RUN}/", f"{HOME}/fetched/")
    stages.done("ray rsync-down")
    cluster.launcher("down", "--yes")
    wait("Ray ends everywhere", lambda: not cluster.rays())
    stages.done("ray down, until the last process of Ray has ended")
    check(cluster)
    stages.done("the same trials undisturbed, one process each, and compared")


def check(cluster: Cluster) -> None:
    """The fetched run is that of an undisturbed sweep, whose trials were one process each on the laptop."""
    fetched, undisturbed = (cluster.laptop.path(f"{HOME}/{name}") for name in ("fetched", "undisturbed"))
    one_process = ["resources.workers_per_trial=1", "final.enabled=false"]
    words = [f"{HOME}/recipe.yaml", *one_process, "--run-dir", f"{HOME}/undisturbed"]
    subprocess.run(cluster.on_laptop("python", "-m", "raysweep.grid", *words), check=True)
    assert (fetched / "report" / "index.html").is_file()
    assert (fetched / "final" / "recommended" / "result.json").is_file()
    assert ends_differ(undisturbed, fetched) == []
    assert rows_differ(undisturbed, fetched, TOLERANCE) == []
