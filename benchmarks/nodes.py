"""A Ray cluster of several nodes on this machine, for trials with accidents: `python -m benchmarks.nodes`.

It writes a line of JSON: its address, and the environment of a process that may join it. Each
line that it reads is the number of a node, which then vanishes without a word. At the end of its
input it ends.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from types import TracebackType

from raysweep.engine import environment

NODES = 2
"""Of one CPU each, beside a head on which nothing trains."""


class Nodes:
    """Such a cluster in a process of its own; a context manager."""

    def __enter__(self) -> Nodes:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.nodes"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        told = json.loads(self._process.stdout.readline())
        self.address: str = told["address"]
        self.environment: dict[str, str] = told["environment"]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()

    def remove(self, number: int) -> None:
        """Let a node vanish."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{number}\n")
        self._process.stdin.flush()


def main() -> None:
    """Serve one."""
    folder = environment.prepare(local=True)
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(NODES)]
        ours = {name: value for name, value in os.environ.items() if name.startswith("RAY_")}
        print(json.dumps({"address": cluster.address, "environment": ours}), flush=True)
        for line in sys.stdin:
            cluster.remove_node(nodes[int(line)], allow_graceful=False)
    finally:
        cluster.shutdown()
        shutil.rmtree(str(folder), ignore_errors=True)


if __name__ == "__main__":
    main()
