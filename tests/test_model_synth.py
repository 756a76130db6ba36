"""Generated parts: what they show, and the folder they are written to."""

import cv2
import numpy as np
import pytest

from inspectd.errors import DataError
from inspectd.model.flange import DEFECTS, RADIUS, Light, generator, make_patch
from inspectd.model.synth import KINDS, MARKER, is_complete, lay, render_part, write_dataset

SIDE = 320
PART_KINDS = [kind for kind in KINDS if kind != "empty"]


def patches(kind, seed):
    """The patch of that kind and of a good part, from the same generator state, float32 RGB."""
    light = Light.draw(generator(seed, 1))
    return [
        make_patch(k, generator(seed, 2), light, SIDE, 0.4 * SIDE).colour.astype(np.float32) for k in (kind, "good")
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_draws_the_same_picture_and_another_seed_another(kind):
    first, again, other = (render_part(kind, generator(seed)) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first.astype(int) - other).mean() > 2


def test_a_picture_has_the_size_that_was_asked_for():
    for kind in KINDS:
        picture = render_part(kind, generator(1), (200, 140))
        assert picture.shape == (140, 200, 3)
        assert picture.dtype == np.uint8


@pytest.mark.parametrize("kind", DEFECTS)
def test_a_defect_can_be_seen_and_leaves_most_of_the_part_as_it_was(kind):
    """At the size that a network sees (224), every defect stands out of an otherwise equal good part."""
    for seed in range(40):
        bad, good = patches(kind, seed)
        change = cv2.resize(np.abs(bad - good).max(axis=2), None, fx=0.7, fy=0.7, interpolation=cv2.INTER_AREA)
        assert (change > 18).sum() >= 12, f"seed {seed}: cannot be seen"
        assert (change > 4).mean() < 0.2, f"seed {seed}: another part"


def test_defects_differ_in_strength_and_place():
    for kind in DEFECTS:
        strength, place = [], []
        for seed in range(30):
            bad, good = patches(kind, seed)
            change = np.abs(bad - good).max(axis=2)
            strength.append(np.percentile(change[change > 4], 90))
            place.append(np.argwhere(change > 10).mean(axis=0))
        assert max(strength) > 1.25 * min(strength), kind
        assert np.std(place, axis=0).min() > 0.1 * SIDE


def test_mean_brightness_does_not_tell_the_kinds_of_parts_apart():
    """Nearest class mean, judged on the very pictures it was made from: a quarter would be chance."""
    means = {
        kind: [render_part(kind, generator(3, k, i)).mean() for i in range(60)] for k, kind in enumerate(PART_KINDS)
    }
    centres = {kind: np.mean(values) for kind, values in means.items()}
    right = sum(min(centres, key=lambda c: abs(centres[c] - value)) == kind for kind in means for value in means[kind])
    assert right / (60 * len(PART_KINDS)) < 0.45


def test_an_empty_station_shows_no_metal():
    for seed in range(30):
        spread = {kind: cv2.blur(render_part(kind, generator(seed)), (9, 9)).std() for kind in ("good", "empty")}
        assert spread["empty"] < 0.5 * spread["good"]


def test_parts_lie_wholly_inside_the_picture():
    """What is metal covers the area of a flange, wherever it lies: nothing is cut off."""
    smallest = np.pi * (RADIUS[0] * SIDE) ** 2
    for seed in range(40):
        picture = cv2.blur(render_part("good", generator(seed)), (3, 3)).astype(int)
        belt = np.median(picture[[0, 1, -2, -1]].reshape(-1, 3), axis=0)
        metal = (np.abs(picture - belt).max(axis=2) > 14).sum()
        assert metal > 0.85 * smallest, f"seed {seed}"


def test_a_part_laid_over_the_edge_is_cut_off_there():
    patch = make_patch("good", generator(2), Light.draw(generator(1)), SIDE, 0.4 * SIDE)
    whole = np.full((SIDE * 3, SIDE * 3, 3), 60, np.uint8)
    for x, y in [(0, 0), (SIDE, 40), (-80, 300), (-2 * SIDE, 0)]:
        part, around = np.full((SIDE, SIDE, 3), 60, np.uint8), whole.copy()
        lay(part, patch, x, y)
        lay(around, patch, x + SIDE, y + SIDE)
        np.testing.assert_array_equal(part, around[SIDE : 2 * SIDE, SIDE : 2 * SIDE])


def test_a_dataset_is_one_folder_of_pictures_per_kind(tmp_path):
    seen = []
    write_dataset(tmp_path / "parts", 2, seed=4, size=(96, 96), progress=lambda done, total: seen.append((done, total)))
    assert sorted(p.name for p in (tmp_path / "parts").iterdir() if p.is_dir()) == sorted(KINDS)
    for k, kind in enumerate(KINDS):
        assert sorted(p.name for p in (tmp_path / "parts" / kind).iterdir()) == [
            f"{kind}_00001.png",
            f"{kind}_00002.png",
        ]
        stored = cv2.imread(str(tmp_path / "parts" / kind / f"{kind}_00002.png"))[..., ::-1]
        np.testing.assert_array_equal(stored, render_part(kind, generator(4, k, 2), (96, 96)))
    assert seen == [(n, 10) for n in range(1, 11)]


def test_counts_per_kind_and_the_same_pictures_for_any_count(tmp_path):
    write_dataset(tmp_path / "a", {"good": 3, "dent": 1}, seed=4, size=(64, 64))
    write_dataset(tmp_path / "b", {"dent": 2, "good": 1}, seed=4, size=(64, 64))
    assert len(list((tmp_path / "a").glob("*/*.png"))) == 4
    for name in ("good/good_00001.png", "dent/dent_00001.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_run_that_was_cut_off_is_known_as_one_and_the_next_run_completes_it(tmp_path):
    class CutOffError(Exception):
        pass

    def cut_off(done, total):
        if done == 3:
            raise CutOffError

    with pytest.raises(CutOffError):
        write_dataset(tmp_path, 2, seed=1, size=(64, 64), progress=cut_off)
    assert not is_complete(tmp_path, 2, 1, (64, 64))
    write_dataset(tmp_path, 2, seed=1, size=(64, 64))
    assert is_complete(tmp_path, 2, 1, (64, 64))
    assert not is_complete(tmp_path, 2, 2, (64, 64)), "another seed is another dataset"
    assert not is_complete(tmp_path, 3, 1, (64, 64))
    (tmp_path / "good" / "good_00001.png").unlink()
    assert not is_complete(tmp_path, 2, 1, (64, 64)), "a picture is missing"


def test_a_cut_off_rewrite_is_not_taken_for_the_dataset_before_it(tmp_path):
    """Nothing old is removed before the folder is marked as incomplete."""
    write_dataset(tmp_path, 1, seed=1, size=(64, 64))

    def cut_off(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_dataset(tmp_path, 1, seed=1, size=(64, 64), progress=cut_off)
    assert not is_complete(tmp_path, 1, 1, (64, 64))


def test_our_own_folder_is_written_anew_and_other_peoples_files_stay(tmp_path):
    write_dataset(tmp_path, {"good": 3, "empty": 1}, seed=1, size=(64, 64))
    (tmp_path / "good" / "mine.png").write_bytes(b"mine")
    write_dataset(tmp_path, {"good": 1}, seed=1, size=(64, 64))
    assert sorted(p.name for p in (tmp_path / "good").iterdir()) == ["good_00001.png", "mine.png"]
    assert not (tmp_path / "empty").exists(), "an empty class folder would stop the training"


def test_a_folder_with_other_things_is_refused_untouched_unless_overwrite(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match=r"holds other things.*--overwrite"):
        write_dataset(tmp_path, 1, seed=1, size=(64, 64))
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
    write_dataset(tmp_path, 1, seed=1, size=(64, 64), overwrite=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert is_complete(tmp_path, 1, 1, (64, 64))


def test_a_damaged_marker_does_not_make_a_folder_ours(tmp_path):
    (tmp_path / MARKER).write_text('{"made_by": "insp')
    with pytest.raises(DataError, match="holds other things"):
        write_dataset(tmp_path, 1, seed=1, size=(64, 64))


def test_what_cannot_be_written_is_refused_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for target, message in [("file", "is a file"), ("file/below", "cannot be written")]:
        with pytest.raises(DataError, match=message) as refusal:
            write_dataset(tmp_path / target, 1, seed=1)
        assert "\n" not in str(refusal.value)
    with pytest.raises(DataError, match="crack: no kind of part; known: good, scratch"):
        write_dataset(tmp_path / "new", {"crack": 1}, seed=1)
    with pytest.raises(DataError, match="sides from 64"):
        write_dataset(tmp_path / "new", 1, seed=1, size=(32, 320))
    assert not (tmp_path / "new").exists()
