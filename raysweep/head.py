"""Ray's head in a process of its own: it starts while the sweep's process still imports torch.

python -m raysweep.head OPTIONS    start Ray with parameters in JSON, print its address, stop with stdin

It is what `ray.init("local")` starts but for services that a sweep has no use for: what would
ask a cloud for more machines, what prints workers' output at the driver and, where there is
no dashboard, the dashboard's process, which Ray starts then too, for statistics of usage that
are off. They are two seconds of a processor and most of the time that Ray takes to stop.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from typing import Any

from raysweep.startup import leave


class Head:
    """Ray on this machine, started at once and stopped with this process.

    Args:
        parameters: `num_cpus` and `include_dashboard`, as of `ray.init`.
    """

    def __init__(self, **parameters: Any) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - open as long as the process
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", __spec__.name, json.dumps(parameters)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            start_new_session=True,  # Ctrl-C is for the process that started it
        )

    def address(self) -> str:
        """Wait until Ray is up; returns its address.

        Raises:
            RuntimeError: Ray did not start.
        """
        assert self._process.stdout is not None
        address = self._process.stdout.readline().strip()
        if not address:
            self._errors.seek(0)
            said = [line.strip() for line in self._errors if line.strip()]
            raise RuntimeError(f"Ray did not start: {said[-1] if said else 'it said nothing'}")
        return address

    def stop(self) -> None:
        """Stop Ray and wait until its processes have ended."""
        self._process.communicate()
        self._errors.close()


def main(parameters: dict[str, Any]) -> None:
    """Run Ray until standard input ends."""
    from ray._private.node import Node
    from ray._private.parameter import RayParams

    class WithoutDashboard(Node):
        def start_api_server(self, **options: Any) -> None:
            """Start nothing."""

    kind = Node if parameters["include_dashboard"] else WithoutDashboard
    wanted = RayParams(no_monitor=True, include_log_monitor=False, **parameters)  # type: ignore[arg-type]
    node = kind(wanted, head=True, shutdown_at_exit=False)
    print(node.gcs_address, flush=True)
    sys.stdin.read()
    node.kill_all_processes(check_alive=False, allow_graceful=True)
    shutil.rmtree(node.get_session_dir_path(), ignore_errors=True)
    leave(0)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
