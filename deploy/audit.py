"""What a release ships, audited without a network: `make audit`, or

    python deploy/audit.py [--lock FILE] [--advisories PATH] [--python PYTHON]

Always: every requirement of the lock is pinned to one version by hash. With `--python` (the interpreter of an installed
release): what is installed there is the lock, no more, no less, and its licences are compatible with Apache-2.0. With
`--advisories`: nothing in the lock has a known vulnerability. PATH is a folder of advisories in the OSV format (JSON,
or YAML as in the PyPA advisory database) or OSV's own export (`all.zip`), fetched wherever there is a network. The real
pip-audit judges by them: it asks a server on loopback that speaks OSV's interface.

Whether a version was yanked only its index can tell; pip says so when the lock is made and installed.
Exit codes: 0 nothing was found, 1 something was, 2 it could not be checked.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from licences import Licence
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

LOCK = Path(__file__).with_name("requirements.lock")
MAX_QUERY_BYTES = 100_000

OWN = ("inspectd", "pip", "setuptools", "wheel")
"""Installed, and in no lock."""

Advisory = dict[str, Any]


class AuditError(Exception):
    """It cannot be checked."""


@dataclass(frozen=True)
class Pin:
    requirement: Requirement
    hashes: int

    @property
    def name(self) -> str:
        return canonicalize_name(self.requirement.name)

    @property
    def version(self) -> str | None:
        """The one version that it allows, or None."""
        specifiers = list(self.requirement.specifier)
        exact = len(specifiers) == 1 and specifiers[0].operator in ("==", "===") and "*" not in specifiers[0].version
        return specifiers[0].version if exact else None


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Audit what a release ships, without a network.")
    parser.add_argument("--lock", type=Path, default=LOCK)
    parser.add_argument("--advisories", type=Path, help="folder or all.zip, in the OSV format")
    parser.add_argument("--python", help="the interpreter of an installed release")
    given = parser.parse_args(arguments)
    try:
        pins = read_lock(given.lock)
        found = [*unpinned(pins)]
        print(f"lock: {len(pins)} requirements")
        if given.python:
            found += installed_problems(pins, given.python)
        if given.advisories:
            found += vulnerabilities(given.lock, read_advisories(given.advisories))
        else:
            print(
                "advisories: none given (--advisories, or make audit ADVISORIES=PATH), vulnerabilities not looked for"
            )
    except AuditError as err:
        print(f"audit: {err}", file=sys.stderr)
        return 2
    for line in found:
        print(f"FOUND {line}")
    return 1 if found else 0


# -- the lock -------------------------------------------------------------------------------------------


def read_lock(path: Path) -> list[Pin]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as err:
        raise AuditError(f"{path}: cannot be read: {err.strerror}") from None
    pins = []
    for line in text.replace("\\\n", " ").splitlines():
        stated = line.partition("#")[0].strip()
        if not stated:
            continue
        requirement, *hashes = re.split(r"\s--hash=", stated)
        try:
            pins.append(
                Pin(Requirement(requirement), sum(re.match(r"sha256:[0-9a-f]{64}\s*$", h) is not None for h in hashes))
            )
        except InvalidRequirement:
            raise AuditError(f"{path}: {requirement[:80]!r} is no requirement by name and version") from None
    if not pins:
        raise AuditError(f"{path}: holds no requirement")
    return pins


def unpinned(pins: Iterable[Pin]) -> Iterator[str]:
    for pin in pins:
        if pin.version is None or pin.requirement.url:
            yield f"{pin.requirement}: is not pinned to one version"
        if not pin.hashes:
            yield f"{pin.requirement}: has no SHA-256"


# -- an installed release -------------------------------------------------------------------------------

_LIST = """
import importlib.metadata, json, os, platform, sys
environment = {
    "implementation_name": sys.implementation.name,
    "implementation_version": "{0.major}.{0.minor}.{0.micro}".format(sys.implementation.version),
    "os_name": os.name,
    "platform_machine": platform.machine(),
    "platform_python_implementation": platform.python_implementation(),
    "platform_release": platform.release(),
    "platform_system": platform.system(),
    "platform_version": platform.version(),
    "python_full_version": platform.python_version(),
    "python_version": ".".join(platform.python_version_tuple()[:2]),
    "sys_platform": sys.platform,
}
print(json.dumps([environment, [
    [d.metadata["Name"], d.version, d.metadata.get("License-Expression"), d.metadata.get("License"),
     d.metadata.get_all("Classifier") or []] for d in importlib.metadata.distributions()]]))
"""
"""Run by the release's interpreter: what the markers of the lock mean there, and what is installed."""


def installed_problems(pins: Iterable[Pin], python: str) -> Iterator[str]:
    try:
        told = subprocess.run(
            [python, "-I", "-c", _LIST], capture_output=True, text=True, check=True, timeout=60
        ).stdout
    except (OSError, subprocess.SubprocessError) as err:
        raise AuditError(f"{python}: cannot be asked what is installed: {err}") from None
    environment, packages = json.loads(told)
    there = {canonicalize_name(name): (version, Licence(*rest)) for name, version, *rest in packages}
    wanted = {
        pin.name: pin.version
        for pin in pins
        if not pin.requirement.marker or pin.requirement.marker.evaluate(environment)
    }
    for name, version in wanted.items():
        if name not in there:
            yield f"{name}: is in the lock and not installed"
        elif there[name][0] != version:
            yield f"{name}: {there[name][0]} is installed, {version} is in the lock"
    for name, (version, licence) in there.items():
        if name not in wanted and name not in OWN:
            yield f"{name}: {version} is installed and not in the lock"
        elif name in wanted and not licence.is_compatible:
            yield f"{name}: its licence ({licence}) is not known to be compatible"
    print(f"installed: {len(there)} packages, as the lock says where nothing else is said")


# -- advisories -----------------------------------------------------------------------------------------


def read_advisories(path: Path) -> dict[str, list[Advisory]]:
    """Those of PyPI, by package."""
    found: dict[str, list[Advisory]] = {}
    newest = ""
    for name, raw in _files(path):
        try:
            advisory = _parse(name, raw)
            packages = {each["package"]["name"] for each in _of_pypi(advisory)}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise AuditError(f"{path}: {name}: is no advisory in the OSV format") from None
        newest = max(newest, str(advisory.get("modified", ""))[:10])
        for package in packages:
            found.setdefault(canonicalize_name(package), []).append(advisory)
    if not found:
        raise AuditError(f"{path}: holds no advisory on any package of PyPI; nothing could be found by it")
    print(f"advisories: on {len(found)} packages, the newest of {newest or 'unknown date'}")
    return found


def _files(path: Path) -> Iterator[tuple[str, bytes]]:
    try:
        if path.is_dir():
            for file in sorted(path.rglob("*")):
                if file.suffix in (".json", ".yaml") and file.is_file():
                    yield str(file.relative_to(path)), file.read_bytes()
        else:
            with zipfile.ZipFile(path) as archive:
                for name in archive.namelist():
                    if name.endswith(".json"):
                        yield name, archive.read(name)
    except (OSError, zipfile.BadZipFile) as err:
        raise AuditError(f"{path}: is neither a folder nor a zip file that can be read: {err}") from None


def _parse(name: str, raw: bytes) -> Advisory:
    if name.endswith(".json"):
        return dict(json.loads(raw))
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        # Dates stay text, as they are in JSON.
        return dict(json.loads(json.dumps(YAML(typ="safe", pure=True).load(raw), default=str)))
    except YAMLError:
        raise ValueError(name) from None


def _of_pypi(advisory: Advisory) -> list[Any]:
    return [each for each in advisory.get("affected", []) if each["package"]["ecosystem"] == "PyPI"]


def is_affected(advisory: Advisory, name: str, version: str) -> bool:
    """By OSV's rules: one of `versions`, or within a range of them; in doubt, yes."""
    for each in _of_pypi(advisory):
        if canonicalize_name(each["package"]["name"]) != name:
            continue
        ranges = [one for one in each.get("ranges", []) if one.get("type") == "ECOSYSTEM"]
        if version in each.get("versions", []) or any(_within(one["events"], version) for one in ranges):
            return True
        if not ranges and not each.get("versions"):
            return True
    return False


def _within(events: list[dict[str, str]], version: str) -> bool:
    try:
        mine = Version(version)
        within = False
        for kind, at in sorted(((k, v) for event in events for k, v in event.items()), key=_place):
            if kind == "introduced" and (at == "0" or mine >= Version(at)):
                within = True
            elif (kind == "fixed" and mine >= Version(at)) or (kind == "last_affected" and mine > Version(at)):
                within = False
    except InvalidVersion:
        return True
    return within


def _place(event: tuple[str, str]) -> tuple[Version, bool]:
    return Version(event[1]), event[0] != "introduced"


# -- pip-audit ------------------------------------------------------------------------------------------


def vulnerabilities(lock: Path, advisories: dict[str, list[Advisory]]) -> Iterator[str]:
    """What pip-audit finds in the lock, with these advisories behind it."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(advisories))
    threading.Thread(target=server.serve_forever, name="advisories", daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_address[1]}/v1/query"
        options = ["--disable-pip", "--require-hashes", "--progress-spinner", "off", "--desc", "off", "-f", "json"]
        command = [sys.executable, "-m", "pip_audit", "-r", str(lock), "-s", "osv", "--osv-url", url, *options]
        ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=600)
    finally:
        server.shutdown()
        server.server_close()
    try:
        checked = json.loads(ended.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        raise AuditError(f"pip-audit failed: {' '.join(ended.stderr.split())[-300:]}") from None
    skipped = [f"{each['name']}: was not audited: {each['skip_reason']}" for each in checked if "skip_reason" in each]
    print(f"pip-audit: {len(checked) - len(skipped)} packages audited")
    yield from skipped
    for each in checked:
        for vulnerability in each.get("vulns", []):
            fixed = ", ".join(vulnerability["fix_versions"]) or "nothing yet"
            yield f"{each['name']} {each['version']}: {vulnerability['id']}, fixed by {fixed}"


def _handler(advisories: dict[str, list[Advisory]]) -> type[BaseHTTPRequestHandler]:
    class Osv(BaseHTTPRequestHandler):
        """OSV's /v1/query, of what was read."""

        def do_POST(self) -> None:
            length = min(int(self.headers.get("Content-Length", 0)), MAX_QUERY_BYTES)
            query = json.loads(self.rfile.read(length))
            name, version = canonicalize_name(query["package"]["name"]), query["version"]
            found = [each for each in advisories.get(name, []) if is_affected(each, name, version)]
            # pip-audit looks for the name as it asked for it, and refuses to go on without a list.
            body = json.dumps({"vulns": [_named(each, name) for each in found]} if found else {}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    return Osv


def _named(advisory: Advisory, name: str) -> Advisory:
    affected = []
    for each in advisory["affected"]:
        package = each["package"]
        same = package["ecosystem"] == "PyPI" and canonicalize_name(package["name"]) == name
        affected.append({**each, "package": {**package, "name": name}} if same else each)
    return {**advisory, "affected": affected}


if __name__ == "__main__":
    sys.exit(main())
