"""Where a sweep runs: Ray started and stopped beside other work, without starting it."""

import socket
import threading
from types import SimpleNamespace

import pytest

from raysweep.engine import session as cluster
from raysweep.engine.session import Cluster, Machine
from raysweep.recipe import Recipe, RecipeError


@pytest.fixture
def fake_ray(monkeypatch, tmp_path):
    """Ray as far as `Cluster` touches it; `go` lets it come up."""
    import ray

    logs = tmp_path / "session"
    logs.mkdir()
    (logs / "raylet.out").write_text("a line")
    fake = SimpleNamespace(calls=[], go=threading.Event(), threads=[])

    def init(*args, **options):
        fake.go.wait(10)
        fake.calls.append("up")
        fake.threads.append(threading.current_thread())

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: fake.calls.append("down"))
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 6.0, "GPU": 2.0})
    monkeypatch.setattr(ray._private.worker, "_global_node", SimpleNamespace(get_logs_dir_path=lambda: str(logs)))
    return fake


def test_ray_starts_beside_the_block(fake_ray):
    with Cluster(Recipe()) as where:
        fake_ray.calls.append("planned")
        fake_ray.go.set()
        where.wait()
        fake_ray.calls.append("trained")
    assert fake_ray.calls == ["planned", "up", "trained", "down"]
    assert fake_ray.threads[0] is not threading.main_thread()


def test_interrupt_while_ray_starts(fake_ray):
    """Half started, Ray would leave processes: it is waited for and stopped."""
    with pytest.raises(KeyboardInterrupt), Cluster(Recipe()):
        threading.Timer(0.1, fake_ray.go.set).start()
        raise KeyboardInterrupt
    assert fake_ray.calls == ["up", "down"]


def test_ray_stops_beside_the_report_and_its_logs_are_kept(fake_ray, tmp_path):
    fake_ray.go.set()
    with Cluster(Recipe()) as where:
        where.stop(tmp_path / "run")
    assert fake_ray.calls == ["up", "down"]
    assert (tmp_path / "run" / "ray" / "logs" / "raylet.out").read_text() == "a line"


def test_a_mistake_leaves_no_logs(fake_ray, tmp_path):
    fake_ray.go.set()
    with pytest.raises(RecipeError), Cluster(Recipe()):
        raise RecipeError("no such depth")
    assert not (tmp_path / "run").exists()


def test_gpus_are_those_that_both_ray_and_torch_see(fake_ray, monkeypatch):
    fake_ray.go.set()
    monkeypatch.setattr(cluster, "this_machine", lambda: Machine(6, 4))
    with Cluster(Recipe()) as where:
        assert where.machine() == Machine(6, 2)
        assert where.makes_features()


def test_without_gpus_the_machine_is_known_before_ray_is_up(fake_ray, monkeypatch):
    monkeypatch.setattr(cluster, "this_machine", lambda: Machine(6, 0))
    with Cluster(Recipe()) as where:
        assert where.machine() == Machine(6, 0)
        assert not where.makes_features()
        assert fake_ray.calls == []
        fake_ray.go.set()


@pytest.mark.parametrize("address", ["foo", "ray://here:10001", "10.0.0.1", ":6379", "10.0.0.1:port"])
def test_address_is_auto_or_host_and_port(address):
    with pytest.raises(RecipeError, match=r"is not auto or HOST:PORT"), Cluster(Recipe(), address):
        pass


def test_address_where_nothing_answers():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # taken, but not listened at
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with (
            pytest.raises(RecipeError, match=rf"--address={address}: nothing answers there"),
            Cluster(Recipe(), address),
        ):
            pass


def test_auto_without_a_cluster(fake_ray, monkeypatch):
    import ray

    def init(*args, **options):
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr(ray, "init", init)
    with (
        pytest.raises(RecipeError, match="--address=auto: no Ray cluster lets this process in"),
        Cluster(Recipe(), "auto") as where,
    ):
        where.machine()
