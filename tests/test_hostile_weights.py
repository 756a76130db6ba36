"""Damaged safetensors: the CUDA engine's weights, weights to start from, and checkpoints, refused in one line."""

import json
from collections import Counter

import pytest
from hostile.cage import caged
from hostile.weights import READERS, WAYS, prepare, read, small, whole

from inspectd.errors import InspectdError
from inspectd.model.network import load_weights, save_weights

MAX_GROWN = 200 << 20
"""Resident memory that any number of broken headers may cost: torch takes some at its first tensors."""


def survived(results):
    assert [result for result in results if result["end"] != "done"] == []
    assert max(result["grown"] for result in results) < MAX_GROWN
    return results


@pytest.fixture
def weights(tmp_path):
    """A whole file as (header, body), and how it is read again once its header is another."""
    save_weights(small(), tmp_path / "model.safetensors")
    data = (tmp_path / "model.safetensors").read_bytes()
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def test_broken_headers_are_refused_by_every_reader_without_a_crash_a_hang_or_a_flood(tmp_path):
    """In a child process with little memory and time. `make test-soak` takes more of them."""
    results = survived(caged("weights", range(40), tmp_path))
    assert {result["way"] for result in results} == set(WAYS)
    assert Counter(result["outcome"] for result in results)["refused"] > 15


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_ten_thousand_broken_headers(tmp_path, capsys):
    results = survived(caged("weights", range(10_000), tmp_path))
    with capsys.disabled():
        print("\n10000 headers:", dict(Counter(f"{result['reader']}: {result['outcome']}" for result in results)))


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "data",
    [
        (2**63).to_bytes(8, "little") + b"{}",
        (100_000_000).to_bytes(8, "little") + b"{}",
        whole(b'{"0.weight": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", b""),
        whole(b'{"0.weight": {"dtype": "F32", "shape": [4294967296, 4294967296], "data_offsets": [0, 8]}}', bytes(8)),
        whole(b'{"0.weight": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}', bytes(8)),
        b"",
    ],
    ids=["endless header", "header beyond the file", "deep", "huge shape", "backwards", "nothing"],
)
def test_a_header_that_lies_is_refused_in_one_line(tmp_path, reader, data):
    prepare(tmp_path)
    with pytest.raises(InspectdError) as caught:
        read(reader, tmp_path, data)
    assert str(caught.value).isprintable()
    assert ".safetensors" in str(caught.value)


def test_tensors_that_share_their_bytes_are_refused(tmp_path, weights):
    """Else one change would be two."""
    header, body = weights
    header["1.bias"]["data_offsets"] = header["1.weight"]["data_offsets"]
    (tmp_path / "model.safetensors").write_bytes(whole(json.dumps(header).encode(), body))
    with pytest.raises(InspectdError, match="no readable safetensors file"):
        load_weights(small(), tmp_path / "model.safetensors")


def test_whole_numbers_in_the_place_of_weights_are_refused(tmp_path, weights):
    """The same bytes under another type are finite numbers, and others."""
    header, body = weights
    header["0.weight"]["dtype"] = "I32"
    (tmp_path / "model.safetensors").write_bytes(whole(json.dumps(header).encode(), body))
    network = small()
    with pytest.raises(InspectdError, match=r"0\.weight is int32, expected float32"):
        load_weights(network, tmp_path / "model.safetensors")


@pytest.mark.parametrize("position", ["[" * 100_000, '{"best_key": 7}', "{}x", "7", '{"epochs_done": "many"}'])
def test_a_checkpoint_that_cannot_tell_where_it_stood_is_refused(tmp_path, weights, position):
    header, body = weights
    header["__metadata__"] = {"format": "inspectd.checkpoint/1", "identity": "{}", "position": position}
    with pytest.raises(InspectdError, match=r"last\.safetensors: is damaged"):
        read("checkpoint", tmp_path, whole(json.dumps(header).encode(), body))
