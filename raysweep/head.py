"""Ray's head in a process of its own: it starts while the sweep's process still imports torch.

python -m raysweep.head OPTIONS    start Ray with options of `ray.init` in JSON, print its address, stop with stdin
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from typing import Any

from raysweep.startup import leave


class Head:
    """Ray on this machine, started at once and stopped with this process.

    Args:
        options: of `ray.init`.
    """

    def __init__(self, **options: Any) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - open as long as the process
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", __spec__.name, json.dumps(options)],
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


def main(options: dict[str, Any]) -> None:
    """Run Ray until standard input ends."""
    import logging

    import ray

    context = ray.init("local", log_to_driver=False, logging_level=logging.ERROR, **options)
    print(context.address_info["gcs_address"], flush=True)  # type: ignore[attr-defined]
    sys.stdin.read()
    ray.shutdown()
    leave(0)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
