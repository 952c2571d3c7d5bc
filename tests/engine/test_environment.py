"""What Ray reads from the environment."""

import os
import socket
import stat
import subprocess
import sys

import pytest

from raysweep.engine import environment

LOCAL = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_TMPDIR", "RAY_GCS_SERVER_PORT", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")
SOCKET = "/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
"""Where Ray puts the socket of its store, below the folder of its files."""
LONGEST_SOCKET = 103
"""Bytes of a socket's path: 107 on Linux, 103 on macOS."""


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    for name in (*environment.COMMON, *LOCAL):
        monkeypatch.delenv(name, raising=False)


def test_a_local_ray_wants_a_token_of_its_own(prepare):
    prepare()
    assert os.environ["RAY_AUTH_MODE"] == "token"
    first = os.environ["RAY_AUTH_TOKEN"]
    prepare()
    assert len(first) == 64
    assert os.environ["RAY_AUTH_TOKEN"] != first


def test_its_files_are_in_a_folder_that_only_this_user_can_enter(prepare):
    folder = prepare()
    assert os.environ["RAY_TMPDIR"] == str(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert prepare() != folder


def test_the_folders_path_leaves_room_for_sockets(prepare, monkeypatch, tmp_path):
    """Whatever TMPDIR is: that of a batch system or of macOS is long."""
    long = tmp_path / "var/folders/zz/zyxvpxvq6csfxvn_n0000000000000/T"
    long.mkdir(parents=True)
    monkeypatch.setenv("TMPDIR", str(long))
    monkeypatch.setattr("tempfile.tempdir", str(long))
    assert len(str(prepare()) + SOCKET) <= LONGEST_SOCKET


def test_its_address_is_known_beforehand_and_free(prepare):
    prepare()
    host, _, port = environment.local_address().partition(":")
    assert host == "127.0.0.1"
    with socket.socket() as probe:
        probe.bind((host, int(port)))


def test_at_a_cluster_the_users_own_settings_count(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_AIR_NEW_OUTPUT", "1")
    assert environment.prepare(local=False) is None
    assert os.environ["RAY_AUTH_MODE"] == "disabled"
    assert os.environ["RAY_AIR_NEW_OUTPUT"] == "1"
    assert [name for name in LOCAL[1:] if name in os.environ] == []
    assert [name for name in environment.COMMON if name not in os.environ] == []


def test_preparing_imports_no_ray():
    code = "import sys; from raysweep.engine import environment; print('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout == b"False\n"
