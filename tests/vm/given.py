"""What the guest is given, in a folder that it mounts read-only: all that a technician brings along."""

import os
import re
import shutil
import subprocess
from pathlib import Path

from colour_bundle import colour_bundle
from pocket_machine import PYTHON

CHECKOUT = Path(__file__).parent.parent.parent
FOLDER = Path(os.environ.get("INSPECTD_VM_FOLDER", CHECKOUT / ".vm"))
"""Outside of git; the guest and the packages in it are used again by the next run."""
QUICK = bool(os.environ.get("INSPECTD_VM_QUICK"))
"""The first release is laid ready as the second one is, instead of being installed package by package in the guest."""
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "config.example.toml", "inspectd", "systemd", "deploy")
OLD, NEW = "0.1.0", "0.1.1"


def wheel_name(version):
    return f"inspectd-{version}-py3-none-any.whl"


def make_given(folder):
    """Wheelhouse, two releases, a bundle, the installer and a small tool: everything that a technician brings along."""
    tools = folder.parent / "tools"
    if not (tools / "bin/python").exists():
        subprocess.run([PYTHON, "-m", "venv", tools], check=True, capture_output=True)

    def pip(*arguments):
        command = [tools / "bin/python", "-m", "pip", *arguments]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=900)

    lock = CHECKOUT / "deploy/requirements.lock"
    wheels, kept = folder / "wheels", folder / "wheels/requirements.lock"
    if not kept.exists() or kept.read_bytes() != lock.read_bytes():
        shutil.rmtree(wheels, ignore_errors=True)
        wheels.mkdir(parents=True)
        pip("download", "--only-binary", ":all:", "--require-hashes", "-r", lock, "-d", wheels)
        shutil.copy(lock, kept)
    for version in (OLD, NEW):
        build_wheel(pip, folder.parent / "source", wheels, version)
    for name in ("bundle", "deploy"):
        shutil.rmtree(folder / name, ignore_errors=True)
    colour_bundle(folder / "bundle")
    shutil.copytree(CHECKOUT / "deploy", folder / "deploy")
    shutil.copy(Path(__file__).parent / "hold_thread.py", folder)
    (folder / "root").mkdir(exist_ok=True)
    for version in (OLD, NEW) if QUICK else (NEW,):
        install = [folder / "deploy/install.sh", "--python", PYTHON, "--wheel", wheels / wheel_name(version)]
        subprocess.run(["sh", *install, "--wheels", wheels, "--root", folder / "root"], check=True, timeout=1800)
        current = (folder / "root/opt/inspectd/current").readlink()
        (folder / f"release-{version}").unlink(missing_ok=True)
        (folder / f"release-{version}").symlink_to(f"root/opt/inspectd/{current}")
    subprocess.run(["chmod", "-R", "a+rX", folder], check=True)


def build_wheel(pip, work, wheels, version):
    """A wheel of this source tree with another version on it."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    for name in SOURCES:
        copy = shutil.copytree if (CHECKOUT / name).is_dir() else shutil.copy
        copy(CHECKOUT / name, work / name)
    about = work / "inspectd" / "__init__.py"
    about.write_text(re.sub(r'"\d[^"]*"', f'"{version}"', about.read_text()))
    pip("wheel", "--no-deps", "--wheel-dir", wheels, work)
