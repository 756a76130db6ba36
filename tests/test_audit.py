"""The audit of what a release ships: the lock, what is installed, and known vulnerabilities, all without a network."""

import importlib.util
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

AUDIT = Path(__file__).parents[1] / "deploy" / "audit.py"
HASH = "--hash=sha256:" + "0" * 64
LOCK = f"""# made by hand
good-thing==1.2.0 {HASH}
    # via nobody
other==2.0 \\
    {HASH} \\
    {HASH}
elsewhere==1 ; sys_platform == 'win32' {HASH}
"""

needs_pip_audit = pytest.mark.skipif(importlib.util.find_spec("pip_audit") is None, reason="pip-audit is not installed")


def advisory(name="Good.Thing", **affected):
    package = {"ecosystem": "PyPI", "name": name}
    return {"id": "PYSEC-2026-1", "modified": "2026-01-02T03:04:05Z", "affected": [{"package": package, **affected}]}


def fixed_in(version, introduced="0"):
    return {"ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": introduced}, {"fixed": version}]}]}


@pytest.fixture
def lock(tmp_path):
    (tmp_path / "requirements.lock").write_text(LOCK)
    return tmp_path / "requirements.lock"


@pytest.fixture
def advisories(tmp_path):
    (tmp_path / "advisories").mkdir()
    return tmp_path / "advisories"


@pytest.fixture
def module(monkeypatch):
    """The program as a module."""
    monkeypatch.syspath_prepend(AUDIT.parent)
    spec = importlib.util.spec_from_file_location("audit", AUDIT)
    loaded = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "audit", loaded)
    spec.loader.exec_module(loaded)
    return loaded


def audit(*arguments):
    command = [sys.executable, str(AUDIT), *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100)
    found = [line.removeprefix("FOUND ") for line in ended.stdout.splitlines() if line.startswith("FOUND ")]
    assert ended.returncode in (0, 1, 2), ended.stderr
    assert "Traceback" not in ended.stderr, ended.stderr
    return ended.returncode, found, ended.stdout + ended.stderr


def test_the_lock_of_the_release_is_pinned_by_hash():
    """The real one; that no vulnerability was looked for is said."""
    code, found, told = audit()
    assert (code, found) == (0, [])
    assert "vulnerabilities not looked for" in told


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (f"loose>=1.0 {HASH}", ["loose>=1.0: is not pinned to one version"]),
        (f"any {HASH}", ["any: is not pinned to one version"]),
        (f"star==1.* {HASH}", ["star==1.*: is not pinned to one version"]),
        ("bare==1.0", ["bare==1.0: has no SHA-256"]),
        ("weak==1.0 --hash=md5:00", ["weak==1.0: has no SHA-256"]),
    ],
)
def test_what_is_not_pinned_by_hash_is_found(lock, line, expected):
    lock.write_text(f"{LOCK}{line}\n")
    assert audit("--lock", lock)[:2] == (1, expected)


@needs_pip_audit
def test_a_planted_vulnerable_pin_is_found_by_pip_audit(lock, advisories):
    """Its name is written in another way; the other package and the fixed version are left alone."""
    (advisories / "one.json").write_text(json.dumps(advisory(**fixed_in("1.2.1"))))
    (advisories / "two.json").write_text(json.dumps(advisory("other", **fixed_in("2.0"))))
    code, found, told = audit("--lock", lock, "--advisories", advisories)
    assert (code, found) == (1, ["good-thing 1.2.0: PYSEC-2026-1, fixed by 1.2.1"])
    assert "the newest of 2026-01-02" in told


def test_advisories_come_as_an_export_or_as_yaml_too(module, advisories):
    """OSV's all.zip, and the files of the PyPA advisory database; dates there are no text."""
    with zipfile.ZipFile(advisories / "all.zip", "w") as archive:
        archive.writestr("PYSEC-2026-1.json", json.dumps(advisory("other", versions=["1.9", "2.0"])))
        archive.writestr("GHSA-of-another-world.json", json.dumps({"id": "x", "affected": []}))
    (exported,) = module.read_advisories(advisories / "all.zip")["other"]
    (advisories / "PYSEC-2026-2.yaml").write_text(
        "id: PYSEC-2026-2\nmodified: 2026-01-02T03:04:05Z\naffected:\n- package: {ecosystem: PyPI, name: Other}\n"
        "  ranges:\n  - type: ECOSYSTEM\n    events:\n    - introduced: '0'\n    - fixed: '2.1'\n"
    )
    (written,) = module.read_advisories(advisories)["other"]
    assert module.is_affected(exported, "other", "2.0")
    assert module.is_affected(written, "other", "2.0")
    assert not module.is_affected(written, "other", "2.1")


@pytest.mark.parametrize(
    ("affected", "expected"),
    [
        (fixed_in("1.2.0"), False),
        (fixed_in("1.2.1"), True),
        (fixed_in("2", introduced="1.3"), False),
        ({"ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "1"}, {"last_affected": "1.2.0"}]}]}, True),
        ({"ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "1"}, {"last_affected": "1.1"}]}]}, False),
        ({"versions": ["1.2.0"]}, True),
        ({"versions": ["1.2"], **fixed_in("1.0")}, False),
        ({}, True),
        ({"ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "not a version"}]}]}, True),
    ],
)
def test_the_rules_of_the_advisory_format(module, affected, expected):
    """A version is affected when it is listed or within a range; in doubt it is."""
    assert module.is_affected(advisory(**affected), "good-thing", "1.2.0") is expected


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "holds no advisory"),
        ("{}", "holds no advisory"),
        ("[1]", "no advisory in the OSV format"),
        ("x", "OSV format"),
    ],
)
def test_advisories_that_say_nothing_are_no_clean_bill(lock, advisories, content, expected):
    """An empty folder, or files of another kind: it could not be checked."""
    if content is not None:
        (advisories / "a.json").write_text(content)
    code, _, told = audit("--lock", lock, "--advisories", advisories)
    assert code == 2
    assert expected in told


def release(folder, packages, version="3.11.4"):
    """The interpreter of an installed release: packages as (name, version, licence), a Python that is `version`."""
    site = folder / "site"
    for name, package_version, licence in packages:
        info = site / f"{name}-{package_version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.4\nName: {name}\nVersion: {package_version}\nLicense-Expression: {licence}\n"
        )
    program = (
        "import platform, sys\n"
        f"platform.python_version = lambda: '{version}'\n"
        f"platform.python_version_tuple = lambda: {tuple(version.split('.'))}\n"
        f"sys.path.append('{site}')\n"
        "exec(sys.argv[1])"
    )
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S -c "{program}" "$3"\n')
    python.chmod(0o755)
    return python


def test_what_is_installed_is_held_against_the_lock(lock, tmp_path):
    """Missing, of another version, not in the lock, and of an incompatible licence."""
    python = release(
        tmp_path, [("good_thing", "1.1.9", "MIT"), ("other", "2.0", "AGPL-3.0-only"), ("more", "1", "MIT")]
    )
    lock.write_text(f"{LOCK}absent==1 {HASH}\n")
    code, found, _ = audit("--lock", lock, "--python", python)
    assert code == 1
    assert sorted(found) == [
        "absent: is in the lock and not installed",
        "good-thing: 1.1.9 is installed, 1.2.0 is in the lock",
        "more: 1 is installed and not in the lock",
        "other: its licence (AGPL-3.0-only) is not known to be compatible",
    ]


@pytest.mark.parametrize(("version", "installed"), [("3.10.2", "1.0"), ("3.99.0", "2.0")])
def test_the_lock_means_what_the_interpreter_of_the_release_makes_of_it(lock, tmp_path, version, installed):
    """Not the one that audits: whatever that is, it is another than one of the two."""
    lock.write_text(
        f"split==1.0 ; python_full_version < '3.12' {HASH}\nsplit==2.0 ; python_version >= '3.12' {HASH}\n"
        f"old==1 ; python_version < '3.12' {HASH}\n"
    )
    old = [("old", "1", "MIT")] if installed == "1.0" else []
    python = release(tmp_path, [("split", installed, "MIT"), *old], version)
    assert audit("--lock", lock, "--python", python)[:2] == (0, [])


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ("MIT", True),
        ("apache-2.0", True),
        ("BSD-3-Clause AND 0BSD AND (MIT OR GPL-2.0-only) AND Zlib", True),
        ("MIT OR GPL-3.0-only AND AGPL-3.0-only", True),
        ("Apache-2.0 WITH LLVM-exception AND LGPL-2.1+", True),
        ("GPL-3.0-only OR (MIT AND (Apache-2.0))", True),
        ("GPL-3.0-only AND MIT", False),
        ("AGPL-3.0-or-later AND Apache-2.0", False),
        ("(MIT OR Apache-2.0) AND GPL-2.0-only", False),
        ("GPL-2.0-only WITH Classpath-exception-2.0", False),
        ("LicenseRef-MIT-like", False),
        ("Proprietary (not Apache)", False),
        ("MIT AND", False),
        ("", False),
    ],
)
def test_a_licence_does_where_all_of_and_and_one_of_or_do(module, stated, expected):
    """Stated as an expression, or as an expression in the text of older packages."""
    assert module.Licence(stated, None, []).is_compatible is expected
    assert module.Licence(None, stated, []).is_compatible is expected


@pytest.mark.parametrize(
    ("classifiers", "expected"),
    [
        (["OSI Approved :: MIT License"], True),
        (["DFSG approved", "OSI Approved :: BSD License"], True),
        (["OSI Approved :: GNU Lesser General Public License v3 or later (LGPLv3+)"], True),
        (["OSI Approved :: MIT License", "OSI Approved :: GNU General Public License v3 (GPLv3)"], False),
        (["Other/Proprietary License"], False),
        (["OSI Approved"], True),
    ],
)
def test_classifiers_must_all_be_known(module, classifiers, expected):
    """They come before the text, for that is often a whole licence; one that names no licence says nothing."""
    named = [f"License :: {each}" for each in classifiers]
    assert module.Licence(None, "MIT", ["Typing :: Typed", *named]).is_compatible is expected
    assert module.Licence("MIT", None, named).is_compatible
