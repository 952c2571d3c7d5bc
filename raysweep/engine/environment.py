"""What Ray reads from the environment, set before it is imported."""

from __future__ import annotations

import os
import secrets
import socket
import tempfile
from pathlib import Path

COMMON = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the ledger takes their place
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is ours
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",  # so does it of what Tune would save of the experiment
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths of a recipe stay what they are
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # ray.train.report blocks so long; the default is 2 s an epoch
    "RAY_USAGE_STATS_ENABLED": "0",
}
NODE_S = 1800
"""How long a trial of several workers may wait for a node of a cluster, which is slow to come and to set up."""
LOOPBACK = "127.0.0.1"
LONGEST_BASE = 21
"""Characters of a folder in which Ray's can be made: a socket's path has 107 at most, most of them Ray's."""


def prepare(local: bool) -> Path | None:
    """Set the environment of this process and of those that Ray starts; what the user has set stays.

    Args:
        local: whether a Ray of the sweep's own will be started here. It then listens on the
            loopback alone, at a port known beforehand, wants a token made for this sweep, and
            keeps its files in a folder that only this user can enter.

    Returns:
        That folder, to be removed at the end; None for a cluster that is there already.
    """
    for name, value in COMMON.items():
        os.environ.setdefault(name, value)
    if not local:
        return None
    folder = _private_folder()
    os.environ.update(
        {
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray's switch for a machine that has no address but 127.0.0.1
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_TMPDIR": str(folder),
            "RAY_GCS_SERVER_PORT": str(_free_port()),
        }
    )
    return folder


def train_settings() -> dict[str, str]:
    """What Ray Train reads from the environment of a trial on a cluster, whose processes do not inherit this one's."""
    ours = {name: value for name, value in os.environ.items() if name.startswith("RAY_TRAIN_")}
    return {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(NODE_S)} | ours


def local_address() -> str:
    """Where the sweep's own Ray listens, once `prepare` has chosen it."""
    return f"{LOOPBACK}:{os.environ['RAY_GCS_SERVER_PORT']}"


def _private_folder() -> Path:
    """A new folder that only this user can enter, where temporary files go, or in /tmp if that is too long."""
    usual = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix="raysweep-", dir=usual if len(usual) <= LONGEST_BASE else "/tmp"))  # noqa: S108


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])
