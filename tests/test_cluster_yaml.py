"""The cluster file: what Ray's launcher and this project make of it. Nothing is launched."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
import ray.autoscaler
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import cli

from raysweep import grid, recipe

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "cluster.yaml"
COMMANDS = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands",
            "head_start_ray_commands", "worker_start_ray_commands")  # fmt: skip
STARTS = ("head_start_ray_commands", "worker_start_ray_commands")
NODE_FIELDS = {"InstanceType", "ImageId", "BlockDeviceMappings", "MetadataOptions", "InstanceMarketOptions"}


@pytest.fixture(scope="module")
def cluster() -> dict:
    return yaml.safe_load(CLUSTER.read_text())


@pytest.fixture(scope="module")
def prepared(cluster) -> dict:
    return prepare_config(cluster)


def start(config: dict, which: str) -> tuple[str, dict]:
    """The command that starts Ray, and its options as Ray's command line reads them."""
    (line,) = (line for line in config[which] if "ray start" in line)
    words = shlex.split(line.split("ray start", 1)[1])
    return line, cli.commands["start"].make_context("ray start", words).params


# ------------------------------------------------------------------ Ray's view


def test_ray_accepts_it(prepared):
    validate_config(prepared)


def test_provider_fields_are_known_to_ray(cluster):
    """Ray's schema lets a misspelt one pass."""
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    assert set(cluster["provider"]) <= set(schema["properties"]["provider"]["properties"])
    assert cluster["provider"]["type"] == "aws"
    for node in cluster["available_node_types"].values():
        assert set(node["node_config"]) <= NODE_FIELDS


def test_nothing_of_the_defaults_comes_between(prepared, cluster):
    """Ray's defaults bring their own set-up and an open dashboard: every command has to be ours."""
    assert all(cluster[which] for which in COMMANDS)
    assert [line for which in COMMANDS for line in prepared[which] if "=0.0.0.0" in line or "anaconda" in line] == []


@pytest.mark.parametrize("which", COMMANDS)
def test_commands_are_shell(cluster, which):
    for line in cluster[which]:
        wrapped = f"({line})"  # as Ray does
        checked = subprocess.run(["bash", "-n", "-c", wrapped], check=False, capture_output=True, text=True)
        assert checked.returncode == 0 and not checked.stderr, f"{line}\n{checked.stderr}"


# ------------------------------------------------------------------ nodes


def test_head_trains_nothing_and_workers_start_from_none(prepared):
    head, gpu = prepared["available_node_types"]["head"], prepared["available_node_types"]["gpu"]
    assert head["resources"] == {"CPU": 0} and head["max_workers"] == 0
    assert gpu["min_workers"] == 0 and gpu["max_workers"] == prepared["max_workers"] > 0
    assert gpu["resources"]["GPU"] == 1
    assert 0 < prepared["idle_timeout_minutes"] <= 30


def test_disks_hold_torch_and_features(cluster):
    for node in cluster["available_node_types"].values():
        (disk,) = node["node_config"]["BlockDeviceMappings"]
        assert disk["Ebs"]["VolumeSize"] >= 100 and disk["Ebs"]["DeleteOnTermination"]


def test_nodes_share_an_image_that_has_to_be_filled_in(cluster):
    assert {node["node_config"]["ImageId"] for node in cluster["available_node_types"].values()} == {"ami-REPLACE_ME"}


@pytest.mark.parametrize("name", recipe.preset_names())
def test_a_trial_of_every_preset_fits(cluster, name):
    node, asked = cluster["available_node_types"]["gpu"], recipe.load(name).resources
    gpus = 1 if asked.gpus_per_worker == "auto" else asked.gpus_per_worker
    on_a_node = node["resources"]["CPU"] // asked.cpus_per_worker
    if gpus:
        on_a_node = min(on_a_node, int(node["resources"]["GPU"] / gpus))
    assert asked.workers_per_trial <= on_a_node * node["max_workers"]


# ------------------------------------------------------------------ who may talk to it


@pytest.mark.parametrize("which", STARTS)
def test_token_authentication_is_on(cluster, which):
    line, _ = start(cluster, which)
    assert line.index("export RAY_AUTH_MODE=token;") < line.index("ray start")


def test_the_token_is_made_on_the_head_and_copied(cluster):
    assert "~/.ray/auth_token" in cluster["cluster_synced_files"]
    (line,) = (line for line in cluster["head_setup_commands"] if "auth-token" in line)
    assert "--generate > /dev/null" in line and "chmod 600" in line  # not into the launcher's output
    assert "RAY_AUTH_TOKEN" not in CLUSTER.read_text()


def test_dashboard_is_on_loopback(cluster):
    _, head = start(cluster, "head_start_ray_commands")
    assert head["dashboard_host"] == "127.0.0.1"
    assert head["head"] and head["autoscaling_config"] == "~/ray_bootstrap_config.yaml"


def test_workers_join_the_head(cluster):
    _, head = start(cluster, "head_start_ray_commands")
    _, worker = start(cluster, "worker_start_ray_commands")
    assert worker["address"] == f"$RAY_HEAD_IP:{head['port']}"
    assert worker["object_manager_port"] == head["object_manager_port"]


def test_no_rule_opens_more_than_ssh(cluster):
    assert "security_group" not in cluster["provider"]


# ------------------------------------------------------------------ this repository on every node


def test_the_project_is_mounted_and_installed(cluster):
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {name.partition(".")[0] for name in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    needed = {*packages, "pyproject.toml", project["project"]["readme"]}
    mounts = cluster["file_mounts"]
    assert {f"~/raysweep-code/{part}" for part in needed} == set(mounts)
    assert all(remote == f"~/raysweep-code/{local}" for remote, local in mounts.items())
    assert any(re.search(r"pip install .*--editable ~/raysweep-code$", line) for line in cluster["setup_commands"])
    if missing := [local for local in mounts.values() if not (ROOT / local).exists()]:
        pytest.skip(f"{missing} not in this checkout")


def test_what_is_local_stays_here(cluster):
    assert {".git", ".venv", "__pycache__"} <= set(cluster["rsync_exclude"])
    assert not {".", "./", "runs"} & set(cluster["file_mounts"].values())
    assert "runs" not in cluster["rsync_exclude"]  # it would hold for `ray rsync-down` as well


def test_workers_install_the_heads_versions(cluster):
    constraints = "~/.raysweep/constraints.txt"
    assert constraints in cluster["cluster_synced_files"]
    assert any(f"--constraint {constraints}" in line for line in cluster["setup_commands"])
    assert any(line.endswith(f"freeze --exclude-editable > {constraints}") for line in cluster["head_setup_commands"])


@pytest.mark.parametrize(("up", "status"), [(2, 0), (99, 1)])
def test_with_gpus_waits_then_runs_the_command(cluster, tmp_path, up, status):
    """The head's helper against a Ray that gets one more GPU each time it is asked."""
    (line,) = (line for line in cluster["head_setup_commands"] if "with-gpus" in line)
    (tmp_path / "venv/bin").mkdir(parents=True)
    subprocess.run(["bash", "-c", f"({line})"], env=os.environ | {"HOME": str(tmp_path)}, check=True)
    fake = tmp_path / "fake"
    (fake / "ray/autoscaler").mkdir(parents=True)
    (fake / "ray/__init__.py").write_text(
        "import itertools, time\n"
        "steps = itertools.count()\n"
        "time.sleep = lambda seconds: None\n"
        "time.monotonic = lambda clock=itertools.count(step=60): next(clock)\n"
        "init = shutdown = lambda *words, **options: None\n"
        "cluster_resources = lambda: {'GPU': min(next(steps), 2)}\n"
    )
    (fake / "ray/autoscaler/__init__.py").touch()
    (fake / "ray/autoscaler/sdk.py").write_text("request_resources = lambda bundles: print(len(bundles), flush=True)\n")
    ran = subprocess.run(
        [sys.executable, tmp_path / "venv/bin/with-gpus", str(up), "echo", "swept"],
        check=False, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(fake)}, timeout=30,
    )  # fmt: skip
    assert ran.returncode == status, ran.stderr
    assert ran.stdout.split() == [str(up), "0", *(["swept"] if status == 0 else [])]
    assert os.access(tmp_path / "venv/bin/with-gpus", os.X_OK)


# ------------------------------------------------------------------ the README


def readme_commands() -> list[list[str]]:
    """The `ray …` command lines of the README's code blocks that name the cluster file."""
    page = ROOT / "README.md"
    blocks = re.findall(r"```(?:bash|sh|console)\n(.*?)```", page.read_text(), re.DOTALL) if page.exists() else []
    lines = [shlex.split(line, comments=True) for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [words for words in lines if words[:1] == ["ray"] and "cluster.yaml" in words]


def test_readme_commands_parse():
    commands = readme_commands()
    if not commands:
        pytest.skip("the README has no commands for a cluster")
    assert {"up", "exec", "rsync-down", "down"} <= {words[1] for words in commands}
    for words in commands:
        options = cli.commands[words[1]].make_context(f"ray {words[1]}", words[2:]).params
        assert options["cluster_config_file"] == "cluster.yaml"
        if words[1] == "exec":
            check_on_head(shlex.split(options["cmd"]))
    sources = [words[3] for words in commands if words[1] == "rsync-down"]
    assert all(source.startswith("/srv/runs/") for source in sources)


def check_on_head(words: list[str]) -> None:
    """A command that `ray exec` is given: ours and Ray's own are parsed by their own command lines."""
    if words[:1] == ["with-gpus"]:
        most = yaml.safe_load(CLUSTER.read_text())["max_workers"]
        assert 1 <= int(words[1]) <= most
        words = words[2:]
    if words[:1] == ["ray"]:
        cli.commands[words[1]].make_context(words[1], words[2:])
    elif words[:3] == ["python", "-m", "raysweep.grid"]:
        given = grid.main.make_context("raysweep.grid", words[3:]).params
        assert given["address"] == "auto"
        assert str(given["run_dir"]).startswith("/srv/runs/"), "the folder that every node sees"
        names = [word for word in given["words"] if "=" not in word]
        if not names or names[0] in recipe.preset_names():
            recipe.load(names[0] if names else None, [word for word in given["words"] if "=" in word])
        else:
            assert names[0].endswith(".yaml"), f"no preset {names[0]}"
    else:
        raise click.UsageError(f"not a command of the head: {shlex.join(words)}")


# ------------------------------------------------------------------ other clusters


def test_ray_accepts_the_one_for_machines_that_one_has():
    config = yaml.safe_load((ROOT / "cluster-local.yaml").read_text())
    config["provider"].update(head_ip="10.0.0.1", worker_ips=["10.0.0.2"])
    config["auth"].update(ssh_user="someone")
    validate_config(prepare_config(config))
    assert set(config["provider"]) == {"type", "head_ip", "worker_ips"}
    for which in STARTS:
        line, options = start(config, which)
        assert "RAY_AUTH_MODE=token" in line
        assert ("RAY_enable_autoscaler_v2=0" in line) == options["head"]  # Ray 2.60's v2 starts no worker of one's own
        assert options["head"] == (which == "head_start_ray_commands")
    assert start(config, "head_start_ray_commands")[1]["dashboard_host"] == "127.0.0.1"


def test_the_job_for_kubernetes_asks_for_what_the_command_knows():
    job = yaml.safe_load((ROOT / "deploy" / "rayjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    words = shlex.split(job["spec"]["entrypoint"])
    assert words[:3] == ["python", "-m", "raysweep.grid"]
    found = grid.main.make_context("grid", words[3:]).params
    assert (found["address"], found["run_dir"]) == ("auto", "s3://REPLACE_ME/layers")
    recipe.load(found["words"][0])
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
