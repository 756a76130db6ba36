"""Where cameras and regions stand, the numbers of words, and the page that documents them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from bridge_loop import LAYOUT
from typer.testing import CliRunner

from inspectd.bridge import codes, document, modbus_map, opcua_tree
from inspectd.bridge.layout import Layout, layout_of, load_layout
from inspectd.bridge.process import is_loopback, parse_bind
from inspectd.cli import app
from inspectd.config import load_settings
from inspectd.errors import BundleError, ConfigError, UsageError
from inspectd.verdict.control_schema import ErrorCode
from inspectd.verdict.schema import NoResultReason, State, VerdictKind

PAGE = Path(__file__).parent.parent / "docs" / "plc.md"

CONFIG = """
model.bundle = "bundle"
[[cameras]]
name = "top"
source = "conveyor:"
trigger = "command"
rois = [{ name = "part", box = [0, 0, 64, 64] }, { name = "lid", box = [0, 0, 64, 64], model = "lids" }]
[[cameras]]
name = "side"
source = "conveyor:"
rois = [{ name = "edge", box = [0, 0, 64, 64], part = {} }]
[recipes.bolts]
bundle = "bolts"
rois = [{ camera = "top", name = "thread", box = [0, 0, 64, 64] }]
"""


@pytest.fixture
def config(tmp_path):
    for name, classes in {"bundle": "good scratch", "lids": "closed open", "bolts": "good bent"}.items():
        (tmp_path / name).mkdir()
        manifest = {"classes": [{"name": each, "role": "ok"} for each in classes.split()]}
        (tmp_path / name / "bundle.json").write_text(json.dumps(manifest))
    path = tmp_path / "line1.toml"
    path.write_text(CONFIG)
    return path


def test_a_configuration_has_a_layout(config):
    """Its own regions first, those of recipes behind them, labels of all bundles that a region may have."""
    layout = layout_of(load_settings(config))
    assert [(camera.name, roi.name, roi.source, roi.labels) for camera in layout.cameras for roi in camera.rois] == [
        ("top", "part", "verdict", ("good", "scratch")),
        ("top", "lid", "verdict", ("closed", "open")),
        ("top", "thread", "verdict", ("good", "bent")),
        ("side", "edge", "part", ("good", "scratch", "bent")),
    ]


def test_a_layout_that_was_printed_reads_back_the_same(config, tmp_path):
    """What is kept beside the PLC program."""
    printed = CliRunner().invoke(app, ["bridge", "layout", "-c", str(config)])
    assert printed.exit_code == 0
    (tmp_path / "kept.toml").write_text(printed.stdout)
    kept = load_layout(tmp_path / "kept.toml")
    assert kept == layout_of(load_settings(config))
    assert kept.fingerprint == layout_of(load_settings(config)).fingerprint


def test_the_fingerprint_is_another_one_when_anything_moves():
    """Order, labels, what drives; 1 to 65535."""
    plain = LAYOUT.model_dump()
    turned = {"cameras": plain["cameras"][::-1]}
    variants = [LAYOUT, Layout.model_validate(turned), LAYOUT.driven_by("part"), LAYOUT.driven_by("verdict")]
    assert len({each.fingerprint for each in variants}) == 4
    assert all(0 < each.fingerprint <= 0xFFFF for each in variants)
    assert LAYOUT.driven_by(None) is LAYOUT


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cameras = 3", r"cameras: Input should be a valid"),
        ("", r"cameras: missing, but required"),
        ("[[cameras]]\nname = 'a b'\nrois = [{name = 'r'}]", r"cameras\[0\]\.name: String should match"),
        ("[[cameras]]\nname = 'a'\nrois = []", r"cameras\[0\]\.rois: Tuple should have at least 1 item"),
        ("[[cameras]]\nname = 'a'\nrois = [{name = 'r'}, {name = 'r'}]", r"rois: ROI 'r' is there twice"),
        ("[[cameras]]\nname = 'a'\nrois = [{name = 'r', lables = []}]", r"rois\[0\]\.lables: unknown key"),
        (
            "[[cameras]]\nname = 'a'\nrois = [{name = 'r', from = 'x'}]",
            r"rois\[0\]\.from: Input should be 'verdict' or",
        ),
        ("[[cameras]]\nname = 'a'\nrois = [{name = 'r', labels = ['x', 'x']}]", r"labels: label 'x' is there twice"),
        ("[[cameras", r"is not valid TOML"),
        ("\0", r"is not valid TOML"),
    ],
)
def test_a_broken_layout_is_one_line_that_names_the_key(tmp_path, text, message):
    """With the file."""
    path = tmp_path / "layout.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"layout\.toml: .*" + message) as caught:
        load_layout(path)
    assert "\n" not in str(caught.value)


def test_a_layout_that_cannot_be_read_is_one_line(tmp_path):
    """Absent, a folder, not UTF-8."""
    (tmp_path / "latin.toml").write_bytes(b"\xff\xfe")
    for path, why in [("absent", "no such file"), (".", "is a folder"), ("latin.toml", "not UTF-8")]:
        with pytest.raises(ConfigError, match=why):
            load_layout(tmp_path / path)


def test_a_bundle_without_classes_is_one_line(config):
    """Absent, or not a bundle's."""
    manifest = config.parent / "bolts" / "bundle.json"
    manifest.write_text("[]")
    with pytest.raises(BundleError, match=r"bolts/bundle\.json: holds no classes"):
        layout_of(load_settings(config))
    manifest.unlink()
    with pytest.raises(BundleError, match=r"bolts/bundle\.json: cannot be read: No such file.*--layout"):
        layout_of(load_settings(config))


# -- numbers --------------------------------------------------------------------------------------------


def test_every_word_of_the_stream_and_of_the_control_socket_has_its_own_number():
    """A word that is added to a schema needs a number here; and no number is used twice."""
    assert set(codes.VERDICT_CODES) == set(get_args(VerdictKind))
    assert set(get_args(State)) < set(codes.STATE_CODES)
    reasons = {each: codes.reason_of(each) for each in get_args(NoResultReason)}
    assert all(code.name == reason for reason, code in reasons.items())
    assert {code.name for code in map(codes.error_of, get_args(ErrorCode))} == set(get_args(ErrorCode))
    assert codes.error_of("of a newer inspectd").name == "refused"
    for table in (codes.VERDICTS, codes.REASONS, codes.STATES, codes.ERRORS):
        assert len({code.number for code in table}) == len({code.name for code in table}) == len(table)
    assert set(opcua_tree.BAD) == {code for code in codes.REASONS if code.number >= 100}


def test_verdict_codes_are_far_from_each_other_and_from_cleared_and_stuck_memory():
    """8 bits of 16; and no code is another one with its bytes swapped."""
    numbers = [code.number for code in codes.VERDICTS]
    for number in numbers[1:]:
        for other in {*numbers, 0, 0xFFFF, *((each & 0xFF) << 8 | each >> 8 for each in numbers)} - {number}:
            assert (number ^ other).bit_count() >= 8


def test_registers_do_not_overlap_and_stay_in_their_blocks():
    """Whoever adds one finds a free place."""
    for table, size in [(modbus_map.LINE, 20), (modbus_map.CAMERA, 20), (modbus_map.ROI, 20)]:
        used = [register.offset + word for register in table for word in range(register.words)]
        assert len(used) == len(set(used))
        assert max(used) < size
    addresses = list(modbus_map.addresses(LAYOUT))
    assert len({(kind, address) for kind, address, _, _ in addresses}) == len(addresses)
    nodes = [path for _, _, path in opcua_tree.paths(LAYOUT)]
    assert len(nodes) == len(set(nodes))


def test_the_page_is_current():
    """`python -m inspectd.bridge.document docs/plc.md` renews it."""
    page = PAGE.read_text(encoding="utf-8")
    assert document.document(page) == page


def test_a_page_that_forgets_a_table_is_refused():
    """And a mark of a table that there is not."""
    with pytest.raises(ValueError, match="no place for"):
        document.document("nothing")
    with pytest.raises(ValueError, match="no table 'x'"):
        document.document("<!-- x: generated -->\n<!-- end -->")


# -- the command line -----------------------------------------------------------------------------------


def test_the_map_and_the_nodes_of_a_line_are_printed(config):
    """As CSV, for the PLC's import."""
    registers = CliRunner().invoke(app, ["bridge", "map", "-c", str(config)]).stdout.splitlines()
    assert registers[0] == "kind,address,type,name"
    assert "register,1041,uint16,top.lid.verdict" in registers
    assert "bit,32,bit,side.trigger" in registers
    nodes = CliRunner().invoke(app, ["bridge", "nodes", "-c", str(config)]).stdout.splitlines()
    assert "variable,UInt16,VisionSystem.Cameras.side.Regions.edge.VerdictCode" in nodes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["modbus"], r"Give -c FILE .* or --layout FILE"),
        (["modbus", "--layout", "absent.toml"], r"absent\.toml: no such file"),
        (["modbus", "--layout", "pipe"], r"pipe: is no plain file"),
        (["modbus", "-c", "pipe"], r"pipe: is no plain file"),
        (["modbus", "--layout", "L", "--bind", "0.0.0.0:1502"], r"no authentication.*--insecure"),
        (["opcua", "--layout", "L", "--bind", "10.0.0.1:4840"], r"--certificate.*--insecure"),
        (
            ["opcua", "--layout", "L", "--clients", "here"],
            r"--clients: --certificate, --private-key, --clients go together",
        ),
        (["modbus", "--layout", "L", "--bind", "1502"], r"--bind 1502: expected ADDRESS:PORT"),
        (["modbus", "--layout", "L", "--key", "k"], r"--key and --server-key go together"),
        (["modbus", "--layout", "L", "--key", "k", "--server-key", "s"], r"s: .*"),
        (["modbus", "--layout", "L", "--verdicts", "nonsense"], r"'nonsense': expected an endpoint"),
        (["modbus", "--layout", "L", "--bind", "no.such.host.invalid:1502", "--insecure"], r"has no address"),
        (["modbus", "--layout", "L", "--bind", ".:1502", "--insecure"], r"--bind \.:1502: host \. has no address"),
        (
            ["opcua", "--layout", "L", "--certificate", "a", "--private-key", "b", "--clients", "."],
            r"certificate a: no such file",
        ),
    ],
)
def test_wrong_usage_is_one_line(tmp_path, monkeypatch, arguments, message):
    """Exit code 2, told by the error's class."""
    (tmp_path / "L").write_text(LAYOUT.to_toml())
    os.mkfifo(tmp_path / "pipe")  # nobody writes: whoever opens it waits
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["bridge", *arguments])
    with pytest.raises(UsageError, match=message):
        raise result.exception


def test_a_daemon_with_keys_is_not_waited_for_without_one(config):
    """It would stay silent, and nobody would know why."""
    config.write_text('security = { server_key = "s.key_secret", client_keys = "clients" }\n' + CONFIG)
    result = CliRunner().invoke(app, ["bridge", "modbus", "-c", str(config)])
    with pytest.raises(UsageError, match=r"security\.server_key is set.*--key and --server-key"):
        raise result.exception


@pytest.mark.parametrize(("command", "package"), [("modbus", "pymodbus"), ("opcua", "asyncua")])
def test_a_package_that_is_not_installed_is_named_with_its_extra(tmp_path, monkeypatch, command, package):
    """The bridges are extras."""
    (tmp_path / "layout.toml").write_text(LAYOUT.to_toml())
    for name in [name for name in sys.modules if name.startswith((package, f"inspectd.bridge.{command}"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    result = CliRunner().invoke(app, ["bridge", command, "--layout", str(tmp_path / "layout.toml")])
    with pytest.raises(UsageError, match=rf"^{package} is not installed: pip install 'inspectd\[{command}\]'$"):
        raise result.exception


def test_the_bridges_import_nothing_that_handles_pictures_or_models():
    """A bridge has no use for OpenCV, OpenVINO, torch or PyAV."""
    program = (
        "import sys, inspectd.bridge.modbus, inspectd.bridge.opcua, inspectd.bridge.layout; "
        "print(*{'cv2', 'openvino', 'torch', 'av'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "\n"


def test_addresses_to_bind_are_understood():
    """IPv4, IPv6 in brackets, names; and which of them only this machine reaches."""
    assert parse_bind("127.0.0.1:1502") == ("127.0.0.1", 1502)
    assert parse_bind("[::1]:502") == ("::1", 502)
    assert [is_loopback(host) for host in ("127.8.0.1", "::1", "localhost", "0.0.0.0", "::", "example")] == [
        True, True, True, False, False, False,
    ]  # fmt: skip
    for wrong in ("", "1502", ":1502", "a:b", "a:70000", "::1:502", "[::1]"):
        with pytest.raises(UsageError):
            parse_bind(wrong)
