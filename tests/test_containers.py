"""deploy/docker and the lock: what can be known of them without a container engine."""

import fnmatch
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version
from ruamel.yaml import YAML

from inspectd.observe.http import HttpServer
from inspectd.observe.ledger import Ledger
from inspectd.observe.metrics import Metrics

CHECKOUT = Path(__file__).parent.parent
DOCKER = CHECKOUT / "deploy" / "docker"
CONTAINERFILE = DOCKER / "Containerfile"
COMPOSE = DOCKER / "compose.yaml"
LOCK = CHECKOUT / "deploy" / "requirements.lock"
PYPROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())


def yaml(path):
    return YAML(typ="safe").load(path)


def tool(name, *arguments):
    """A program of the development environment."""
    command = [Path(sys.executable).with_name(name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


# -- the image ------------------------------------------------------------------------------------------


def test_hadolint_finds_no_fault_in_the_containerfile():
    """With the shell of its RUN lines checked too."""
    done = tool("hadolint", CONTAINERFILE)
    assert (done.returncode, done.stdout) == (0, "")


def test_all_that_is_copied_into_the_image_is_there_and_is_not_ignored():
    """And nothing else is sent: no .git, no pictures, no virtual environment."""
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", CONTAINERFILE.read_text(), re.MULTILINE)
    sources = {source for line in copied for source in line.split()}
    ignore = [
        line for line in (DOCKER / "Containerfile.dockerignore").read_text().splitlines() if line[:1] not in ("", "#")
    ]
    assert ignore[0] == "*"
    assert {line[1:] for line in ignore if line.startswith("!")} == sources
    for source in sources:
        assert (CHECKOUT / source).exists(), source


def test_the_image_can_build_the_package():
    """Every file that pyproject.toml builds a wheel from is copied: readme, licence and what goes beside the code."""
    copied = CONTAINERFILE.read_text()
    shared = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["shared-data"]
    for path in (*PYPROJECT["project"]["license-files"], PYPROJECT["project"]["readme"], *shared):
        assert path in copied or path.partition("/")[0] + " " in copied, path


@pytest.mark.parametrize(("healthy", "code"), [(True, 0), (False, 1)])
def test_the_health_check_tells_a_healthy_daemon_from_a_sick_one(healthy, code):
    """The very command of the Containerfile, against the daemon's own HTTP server."""
    found = re.search(r"^HEALTHCHECK .* CMD (\[.*\])$", CONTAINERFILE.read_text(), re.MULTILINE)
    program, *arguments = json.loads(found.group(1))
    assert program == "python"
    ledger = Ledger([("cam", "roi")])
    server = HttpServer("127.0.0.1:0", Metrics(ledger, ["cam"]), lambda: (healthy, {}), lambda: (True, {}))
    server.start()
    try:
        environment = {"HEALTH_URL": f"{server.url}/healthz"}
        done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, timeout=30)
    finally:
        assert server.stop(5)
    assert done.returncode == code


# -- compose --------------------------------------------------------------------------------------------


def test_compose_follows_its_specification():
    """The published schema of the Compose Specification."""
    done = tool("check-jsonschema", "--builtin-schema", "vendor.compose-spec", COMPOSE)
    assert done.returncode == 0, done.stdout


def test_every_container_is_hardened_and_bounded():
    """No root file system to write, no capability, no new privilege; logs where they are rotated."""
    for name, service in yaml(COMPOSE)["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["logging"]["driver"] == "journald", name
        assert "privileged" not in service, name


def test_daemon_and_bridges_are_of_one_image_whose_tag_can_be_chosen():
    """An upgrade is a new tag, and the way back the old one; Prometheus and Grafana are of one version each."""
    images = {name: service["image"] for name, service in yaml(COMPOSE)["services"].items()}
    assert {images.pop(name) for name in ("inspectd", "modbus", "opcua")} == {"${INSPECTD_IMAGE:-inspectd}"}
    assert all(re.search(r":v?\d+\.\d+", image) for image in images.values())


def mounts():
    """(service, what is mounted, where, how)."""
    for name, service in yaml(COMPOSE)["services"].items():
        for volume in service.get("volumes", ()):
            source, target, *how = re.sub(r"\$\{[^}]*\}", "$", volume).split(":")
            yield name, source, target, how


def test_every_file_that_compose_names_is_there_and_every_volume_is_declared():
    """Files of deploy/ are mounted as they are, read-only, and never copied."""
    compose = yaml(COMPOSE)
    build = compose["services"]["inspectd"]["build"]
    assert (COMPOSE.parent / build["context"]).resolve() == CHECKOUT
    assert CHECKOUT / build["dockerfile"] == CONTAINERFILE
    for name, source, _, how in mounts():
        if source.startswith("."):
            assert (COMPOSE.parent / source).exists(), (name, source)
            assert how == ["ro"], (name, source)
        elif source != "$":
            assert source in compose["volumes"], (name, source)


def test_prometheus_and_grafana_find_each_other_and_inspectd():
    """By the very files that stand alone too: rules beside the configuration, dashboard, data source, target."""
    services = yaml(COMPOSE)["services"]
    at = {(name, target): COMPOSE.parent / source for name, source, target, _ in mounts()}
    prometheus = yaml(at["prometheus", "/etc/prometheus/prometheus.yml"])
    for rules in prometheus["rule_files"]:
        assert at["prometheus", f"/etc/prometheus/{rules}"].exists()
    assert "--config.file=/etc/prometheus/prometheus.yml" in services["prometheus"]["command"]
    provisioning = at["grafana", "/etc/grafana/provisioning"]
    (source,) = yaml(provisioning / "datasources" / "inspectd.yaml")["datasources"]
    assert f"--web.listen-address={source['url'].removeprefix('http://')}" in services["prometheus"]["command"]
    (provider,) = yaml(provisioning / "dashboards" / "inspectd.yaml")["providers"]
    dashboard = f"{provider['options']['path']}/inspectd.json"
    assert at["grafana", dashboard].exists()
    assert services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] == dashboard
    (job,) = prometheus["scrape_configs"]
    (target,) = job["static_configs"][0]["targets"]
    assert target in CONTAINERFILE.read_text()


def test_nothing_listens_to_other_machines():
    """On the host's network every address is the host's: all of them are loopback."""
    text = COMPOSE.read_text()
    assert "0.0.0.0" not in text
    assert "ports:" not in text
    assert yaml(COMPOSE)["services"]["grafana"]["environment"]["GF_SERVER_HTTP_ADDR"] == "127.0.0.1"


# -- the lock -------------------------------------------------------------------------------------------


def pins():
    """{package: [(version, number of hashes)]}: two versions where Pythons differ."""
    found = {}
    for entry in re.split(r"\n(?=[a-z0-9])", re.sub(r"^ *#.*\n", "", LOCK.read_text(), flags=re.MULTILINE)):
        if pin := re.match(r"([a-z0-9.-]+)(?:\[.*?\])?==([^ ;\\]+)", entry):
            found.setdefault(pin[1], []).append(
                (Version(pin[2]), len(re.findall(r"--hash=sha256:[0-9a-f]{64}", entry)))
            )
    return found


def wanted():
    project = PYPROJECT["project"]
    bridges = project["optional-dependencies"]
    return [Requirement(text) for text in (*project["dependencies"], *bridges["modbus"], *bridges["opcua"])]


def test_the_lock_has_what_the_project_asks_for():
    """The runtime and both bridges, in versions that pyproject.toml allows: `make lock` after changing either."""
    locked = pins()
    for requirement in wanted():
        versions = [version for version, _ in locked.get(requirement.name, ())]
        assert versions, f"{requirement.name} is not locked: make lock"
        assert all(version in requirement.specifier for version in versions), f"{requirement}, locked: {versions}"


def test_the_lock_names_every_package_by_hash_and_no_place_to_get_it_from():
    """So that pip takes nothing else for it, wherever packages come from; and torch is not among them."""
    locked = pins()
    assert len(locked) >= 25
    assert all(hashes > 0 for versions in locked.values() for _, hashes in versions)
    assert "://" not in LOCK.read_text()
    assert not fnmatch.filter(locked, "torch*")
    assert not fnmatch.filter(locked, "nvidia*")
