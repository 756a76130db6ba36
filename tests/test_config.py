"""The configuration: merged, validated whole, and every refusal names the key as the user wrote it."""

import os
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inspectd.config import Settings, load_settings, read_credentials
from inspectd.errors import ConfigError
from inspectd.source_spec import parse_source, redact, with_credentials

EXAMPLE = Path(__file__).parents[1] / "config.example.toml"
MINIMAL = """
[model]
bundle = "bundle"
[[cameras]]
name = "a"
source = "usb:0"
[[cameras.rois]]
name = "part"
box = [0, 0, 100, 100]
"""


@pytest.fixture
def write(tmp_path):
    def _write(text=MINIMAL, **replacements):
        for old, new in replacements.items():
            text = text.replace(old, new)
        path = tmp_path / "config.toml"
        path.write_text(text)
        return path

    return _write


def refusal(path, environ=None):
    with pytest.raises(ConfigError) as caught:
        load_settings(path, environ or {})
    message = str(caught.value)
    assert caught.value.exit_code == 2
    assert "\n" not in message
    return message


def test_the_example_is_valid_and_shows_the_defaults():
    """Every value in the example is the default, or commented out; nothing in it is stale."""
    shown = tomllib.loads(EXAMPLE.read_text())
    settings = load_settings(EXAMPLE, {})
    for section in ("engine", "publish", "http", "log"):
        assert type(getattr(settings, section)).model_validate({}).model_dump(mode="json") == shown[section]
    camera = shown["cameras"][0]
    defaults = type(settings.cameras[0]).model_fields
    for key, value in camera.items():
        if key not in ("name", "source", "rois"):
            assert value == defaults[key].default, key


def test_the_example_explains_every_key():
    """A key that exists but is not in the example is a key nobody finds."""
    text = EXAMPLE.read_text()

    def keys(model):
        for name, field in model.model_fields.items():
            yield name
            inner = field.annotation
            for candidate in (inner, *getattr(inner, "__args__", ())):
                if hasattr(candidate, "model_fields"):
                    yield from keys(candidate)

    for key in keys(Settings):
        assert f"{key} =" in text or f"[{key}]" in text or f"[{key}." in text or f".{key}]]" in text, key


def test_the_schema_describes_every_section():
    assert set(Settings.model_json_schema()["properties"]) == set(Settings.model_fields)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('name = "a"', 'name = "a"\nfsp = 3', "cameras[0].fsp: unknown key"),
        ('bundle = "bundle"', 'bundel = "bundle"', "model.bundle: missing"),
        ("[0, 0, 100, 100]", "[-1, 0, 100, 100]", "cameras[0].rois[0].box: [-1, 0, 100, 100] lies outside"),
        ("[0, 0, 100, 100]", "[0, 0, 100]", "cameras[0].rois[0].box"),
        ("usb:0", "http://x/y", "cameras[0].source: http://x/y: expected rtsp://"),
        ("usb:0", "usb:camera", "cameras[0].source: usb:camera: expected usb:0"),
        ("usb:0", "file:", "cameras[0].source: file:: expected file:PATH"),
        ("usb:0", "file:x.mp4?lop=1", "unknown option 'lop'; known: loop, realtime"),
        ("usb:0", "conveyor:?fps=fast", "option fps='fast' is no number"),
        ("usb:0", "rtsp://:554/x", "names no host"),
        ("usb:0", "rtsp://u:secret@h:port/x", "not a URL"),
        ('name = "a"', 'name = "a/b"', "cameras[0].name"),
        (
            "[model]",
            '[publish]\nbind = "tcp://0.0.0.0:5556"\n[model]',
            "publish.bind: tcp://0.0.0.0:5556 is no",
        ),
        ("[model]", '[publish]\nbind = "tcp://*:5556"\n[model]', "publish.bind: tcp://*:5556 is no loopback"),
        ("[model]", '[publish]\nbind = "5556"\n[model]', "publish.bind: expected tcp://ADDRESS:PORT"),
        ("[model]", '[http]\nbind = "9108"\n[model]', "http.bind: expected ADDRESS:PORT"),
        ("[model]", '[http]\nbind = "127.0.0.1:70000"\n[model]', "http.bind: expected ADDRESS:PORT"),
        ("[model]", '[engine]\ndevice = "tpu"\n[model]', "engine.device"),
        ("[model]", "[engine]\nmax_batch_size = 0\n[model]", "engine.max_batch_size"),
        ("[model]", "[model", "is not valid TOML"),
    ],
)
def test_a_wrong_key_is_named_as_the_user_wrote_it(write, old, new, expected):
    """One line with the file and the dotted key."""
    path = write(**{old: new})
    message = refusal(path)
    assert message.startswith(f"{path}: ")
    assert expected in message
    assert "secret" not in message


def test_two_cameras_of_one_name_are_refused(write):
    """Their verdicts would share a topic."""
    camera = MINIMAL[MINIMAL.index("[[cameras]]") :]
    assert "camera name 'a' is used twice" in refusal(write(MINIMAL + camera))


def test_two_rois_of_one_name_are_refused(write):
    roi = MINIMAL[MINIMAL.index("[[cameras.rois]]") :]
    assert "ROI name 'part' is used twice" in refusal(write(MINIMAL + roi))


def test_a_missing_file_a_folder_and_binary_rubbish_are_one_line_each(tmp_path):
    assert "no such file" in refusal(tmp_path / "none.toml")
    assert "is a folder" in refusal(tmp_path)
    rubbish = tmp_path / "rubbish.toml"
    rubbish.write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in refusal(rubbish)


def test_the_environment_overrides_the_file(write, monkeypatch):
    monkeypatch.setenv("INSPECTD__HTTP__BIND", "127.0.0.1:9999")
    monkeypatch.setenv("INSPECTD__ENGINE__MAX_BATCH_SIZE", "3")
    settings = load_settings(write())
    assert settings.http.bind == "127.0.0.1:9999"
    assert settings.engine.max_batch_size == 3


def test_a_list_is_overridden_as_a_whole(write, monkeypatch):
    """In JSON, as config.example.toml says; nothing in it alone."""
    monkeypatch.setenv(
        "INSPECTD__CAMERAS", '[{"name": "a", "source": "usb:1", "rois": [{"name": "r", "box": [0,0,8,8]}]}]'
    )
    assert [camera.name for camera in load_settings(write()).cameras] == ["a"]
    monkeypatch.delenv("INSPECTD__CAMERAS")
    monkeypatch.setenv("INSPECTD__CAMERAS__0__MAX_FPS", "5")
    with pytest.raises(ConfigError, match="cameras: "):
        load_settings(write())


def test_a_wrong_environment_value_names_the_variable(write, monkeypatch):
    monkeypatch.setenv("INSPECTD__ENGINE__MAX_BATCH_SIZE", "many")
    with pytest.raises(ConfigError, match="INSPECTD__ENGINE__MAX_BATCH_SIZE"):
        load_settings(write())


def test_an_unknown_environment_section_is_refused(write):
    """A misspelt override is never silently without effect."""
    assert "INSPECTD__ENGIN__DEVICE: unknown section" in refusal(write(), {"INSPECTD__ENGIN__DEVICE": "cpu"})


def test_an_unknown_environment_key_is_refused(write, monkeypatch):
    monkeypatch.setenv("INSPECTD__ENGINE__DEVISE", "cpu")
    with pytest.raises(ConfigError, match=r"engine\.devise"):
        load_settings(write())


def test_paths_are_relative_to_the_file(write, tmp_path):
    settings = load_settings(write(**{"usb:0": "file:clips/a.mp4?loop=1"}), {})
    assert settings.model.bundle == tmp_path / "bundle"
    assert settings.cameras[0].source == f"file:{tmp_path}/clips/a.mp4?loop=1"


def test_credentials_come_from_a_file_and_the_credentials_directory_first(write, tmp_path):
    (tmp_path / "secret").write_text("user:p@ss:word\n")
    settings = load_settings(write(**{'"usb:0"': '"rtsp://h/x"\ncredentials_file = "secret"'}), {})
    assert read_credentials(settings.cameras[0], {}) == ("user", "p@ss:word")
    directory = tmp_path / "credentials"
    directory.mkdir()
    (directory / "secret").write_text("other:one")
    found = read_credentials(settings.cameras[0], {"CREDENTIALS_DIRECTORY": str(directory)})
    assert found == ("other", "one")
    assert with_credentials("rtsp://old:x@h:554/x", ("u", "p@/:")) == "rtsp://u:p%40%2F%3A@h:554/x"


@pytest.mark.parametrize("content", [b"no-colon", b":nobody", b"a:b\nc:d", b"\xff\xfe"])
def test_a_malformed_credentials_file_is_refused_without_showing_it(write, tmp_path, content):
    (tmp_path / "secret").write_bytes(content)
    settings = load_settings(write(**{'"usb:0"': '"rtsp://h/x"\ncredentials_file = "secret"'}), {})
    with pytest.raises(ConfigError) as caught:
        read_credentials(settings.cameras[0], {})
    assert content.decode(errors="replace") not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda path: path.write_text("user:" + "x" * 5000), "is longer than 4,096 bytes"),
        (lambda path: path.mkdir(), "is a folder"),
        (os.mkfifo, "is no plain file"),
        (lambda path: path.symlink_to("/dev/zero"), "is no plain file"),
        (lambda path: path.symlink_to("/dev/tty"), "is no plain file|cannot be read"),
        (lambda path: path.symlink_to("secret"), "symbolic links"),
        (lambda path: None, "no such file"),
    ],
    ids=["long", "folder", "pipe", "endless", "terminal", "loop", "missing"],
)
@pytest.mark.parametrize("place", [".", "credentials"])
@pytest.mark.timeout(20)  # reading a pipe would wait for ever
def test_a_credentials_file_that_is_none_is_refused_at_once(write, tmp_path, make, why, place):
    """Whoever reconnects a camera reads it: it costs neither time nor memory, beside the file or from systemd."""
    (tmp_path / "credentials").mkdir()
    make(tmp_path / place / "secret")
    settings = load_settings(write(**{'"usb:0"': '"rtsp://h/x"\ncredentials_file = "secret"'}), {})
    with pytest.raises(ConfigError, match=f"credentials_file .*secret: .*({why})") as caught:
        read_credentials(settings.cameras[0], {"CREDENTIALS_DIRECTORY": str(tmp_path / "credentials")})
    assert str(caught.value).isprintable()


ONE, TWO = "1" * 64, "2" * 64
RECIPE = (
    MINIMAL + '[recipes.lid]\nbundle = "lid"\nrois = [{ camera = "a", name = "part", box = [0, 0, 9, 9], MODEL }]\n'
)


def test_a_bundle_that_is_bound_in_one_place_is_bound_wherever_it_is_named(write, tmp_path):
    """In [model], here; the recipe names the same folder for one of its regions and says nothing of a hash."""
    text = RECIPE.replace("MODEL", 'model = "./bundle"')
    settings = load_settings(write(text, **{'"bundle"\n': f'"bundle"\nsha256 = "{ONE}"\n'}), {})
    assert settings.bindings == {tmp_path / "bundle": ONE}
    assert settings.with_recipe("lid").bindings == {tmp_path / "bundle": ONE}


@pytest.mark.parametrize("spelling", ["./bundle", "bundle/", "../{folder}/bundle", "other/../bundle"])
def test_a_binding_counts_however_the_folder_is_spelt(write, tmp_path, spelling):
    text = RECIPE.replace("MODEL", f'model = "{spelling.format(folder=tmp_path.name)}"')
    settings = load_settings(write(text, **{'"bundle"\n': f'"bundle"\nsha256 = "{ONE}"\n'}), {})
    assert set(settings.with_recipe("lid").bindings.values()) == {ONE}
    named = next(roi for roi in settings.recipes["lid"].rois if roi.model is not None)
    assert named.model_sha256 == ONE


def test_each_mention_of_a_bundle_can_bind_it(write, tmp_path):
    """A recipe's bundle and a region's; under another recipe other bundles are bound."""
    text = RECIPE.replace('"lid"\n', f'"lid"\nsha256 = "{ONE}"\n').replace(
        "MODEL", f'model = "other", model_sha256 = "{TWO}"'
    )
    settings = load_settings(write(text), {})
    assert settings.bindings == {}
    assert settings.with_recipe("lid").bindings == {tmp_path / "lid": ONE, tmp_path / "other": TWO}


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('"bundle"\n', f'"bundle"\nsha256 = "{ONE[:12]}"\n', "model.sha256"),
        ('"bundle"\n', f'"bundle"\nsha256 = "{"G" * 64}"\n', "model.sha256"),
        ("MODEL", f'model_sha256 = "{ONE}"', "model_sha256 binds `model`"),
        ('bundle = "lid"', f'sha256 = "{ONE}"', "sha256 binds `bundle`"),
        ("MODEL", f'model = "bundle", model_sha256 = "{TWO}"', f"bound to two hashes, {ONE} and {TWO}"),
    ],
)
def test_a_binding_that_binds_nothing_or_two_is_refused(write, old, new, expected):
    text = RECIPE.replace(old, new).replace(", MODEL", "")
    if "two hashes" in expected:
        text = text.replace('"bundle"\n', f'"bundle"\nsha256 = "{ONE}"\n', 1)
    assert expected in refusal(write(text))


def test_the_hash_changes_with_the_configuration_but_not_with_a_password(write):
    """Verdicts carry it: same behaviour, same hash."""
    first = load_settings(write(**{"usb:0": "rtsp://u:one@h/x"}), {}).sha256
    assert load_settings(write(**{"usb:0": "rtsp://u:two@h/x"}), {}).sha256 == first
    assert load_settings(write(**{"usb:0": "rtsp://u:one@h/y"}), {}).sha256 != first


@given(
    user=st.text("abcXYZ019._-", min_size=1, max_size=8),
    password=st.text("abcXYZ019._-!$&:%~/?", min_size=1, max_size=12),
)
def test_redaction_leaves_no_password(user, password):
    """Whatever the password, wherever the URL stands in the text."""
    text = f"open of rtsp://{user}:PW{password}WP@10.0.0.1:554/live failed"
    assert f"PW{password}WP" not in redact(text)
    assert "10.0.0.1:554/live" in redact(text)


@given(st.text(max_size=60))
def test_any_source_is_parsed_or_refused_with_a_value_error(text):
    """Hostile input never raises anything else."""
    try:
        spec = parse_source(text)
    except ValueError:
        return
    assert spec.kind in ("rtsp", "usb", "file", "conveyor")
