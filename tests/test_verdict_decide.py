"""The decision rule: what may pass, and everything that must not."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from properties import examples

from inspectd.config import DecisionConfig
from inspectd.errors import ConfigError
from inspectd.model.manifest import ClassSpec, Manifest, Thresholds
from inspectd.model.preprocess import PreprocessSpec
from inspectd.verdict.decide import Decider, Decision, merged_thresholds
from inspectd.verdict.schema import FrameInfo, Latency, Verdict

FINITE = st.floats(-60, 60, width=32)
EXTREME = st.floats(width=32, allow_nan=False, allow_infinity=False)


def manifest(roles: str, *, temperature: float = 1.0, **thresholds: object) -> Manifest:
    """A manifest with one class per letter: o = ok, d = defect, e = empty; names are letter and index."""
    names = {"o": "ok", "d": "defect", "e": "empty"}
    return Manifest(
        format_version=1,
        architecture="resnet18",
        classes=tuple(ClassSpec(name=f"{letter}{i}", role=names[letter]) for i, letter in enumerate(roles)),
        preprocess=PreprocessSpec(),
        temperature=temperature,
        thresholds=Thresholds(**thresholds),
        files={},
    )


def decide(roles: str, logits: list[float], overrides: DecisionConfig | None = None, **bundle: object) -> Decision:
    decider = Decider(manifest(roles, **bundle), overrides or DecisionConfig())
    return decider.decide(np.array(logits, np.float32))


def logits_for(*probabilities: float) -> list[float]:
    """Logits whose softmax at temperature 1 is that."""
    return [math.log(p) for p in probabilities]


def softmax(logits: list[float], temperature: float) -> list[float]:
    """Written a second time, with Python's own floats."""
    top = max(logits)
    exponents = [math.exp((value - top) / temperature) for value in logits]
    return [value / math.fsum(exponents) for value in exponents]


@st.composite
def cases(draw: st.DrawFn, values: st.SearchStrategy[float] = FINITE) -> tuple[Manifest, list[float]]:
    """Any bundle with any thresholds, and logits for it."""
    roles = draw(st.text("ode", min_size=1, max_size=6)) + "d"
    defects = [f"{letter}{i}" for i, letter in enumerate(roles) if letter == "d"]
    fraction = st.floats(0.001, 1.0)
    majority = st.floats(0.501, 1.0)
    bundle = manifest(
        roles,
        temperature=draw(st.floats(0.05, 20.0)),
        pass_min=draw(majority),
        empty_min=draw(majority),
        fail_default=draw(fraction),
        fail=draw(st.dictionaries(st.sampled_from(defects), fraction)),
    )
    return bundle, draw(st.lists(values, min_size=len(roles), max_size=len(roles)))


def threshold_of(bundle: Manifest, name: str) -> float:
    return bundle.thresholds.fail.get(name, bundle.thresholds.fail_default)


@examples(400)
@given(cases())
def test_a_defect_at_its_threshold_never_passes(case: tuple[Manifest, list[float]]) -> None:
    """Whatever the bundle, the thresholds and the other scores: it fails, and names a defect that did it."""
    bundle, logits = case
    decision = Decider(bundle, DecisionConfig()).decide(np.array(logits, np.float32))
    reached = [
        spec.name
        for spec, p in zip(bundle.classes, softmax(logits, bundle.temperature), strict=True)
        if spec.role == "defect" and p >= threshold_of(bundle, spec.name) + 1e-12
    ]
    if reached:
        assert decision.verdict == "fail"
        assert decision.label is not None
        assert decision.scores[decision.label] + 1e-6 >= threshold_of(bundle, decision.label)
        assert {spec.name: spec.role for spec in bundle.classes}[decision.label] == "defect"


@examples(400)
@given(cases())
def test_whoever_reads_a_pass_can_check_it(case: tuple[Manifest, list[float]]) -> None:
    """A pass has an ok class on top, enough ok probability, and no published defect score at its threshold."""
    bundle, logits = case
    decision = Decider(bundle, DecisionConfig()).decide(np.array(logits, np.float32))
    if decision.verdict != "pass":
        return
    roles = {spec.name: spec.role for spec in bundle.classes}
    assert decision.label is not None
    assert roles[decision.label] == "ok"
    assert decision.score == decision.scores[decision.label] == max(decision.scores.values())
    assert sum(p for name, p in decision.scores.items() if roles[name] == "ok") >= bundle.thresholds.pass_min - 1e-5
    for name, score in decision.scores.items():
        assert roles[name] != "defect" or score < threshold_of(bundle, name)


@examples(400)
@given(cases(EXTREME))
def test_every_decision_can_be_published(case: tuple[Manifest, list[float]]) -> None:
    """Scores are probabilities for any finite logits, and the decision makes a valid message."""
    bundle, logits = case
    decision = Decider(bundle, DecisionConfig()).decide(np.array(logits, np.float32))
    assert math.isclose(sum(decision.scores.values()), 1.0, abs_tol=1e-5)
    assert all(0.0 <= score <= 1.0 for score in decision.scores.values())
    Verdict(
        boot_id="b",
        seq=1,
        camera="c",
        roi="r",
        verdict=decision.verdict,
        reason=decision.reason,
        label=decision.label,
        score=decision.score,
        scores=decision.scores,
        frame=FrameInfo(index=0, pts=None, clock="arrival"),
        captured_at=None,
        published_at="2026-01-31T12:00:00.000000Z",
        latency_ms=Latency(decode=0, queue=0, engine=0, total=0),
        model="m",
        config="c",
    )


@examples(200)
@given(cases(), st.sampled_from([math.nan, math.inf, -math.inf]), st.data())
def test_scores_that_are_no_numbers_decide_nothing(
    case: tuple[Manifest, list[float]], poison: float, data: st.DataObject
) -> None:
    """One NaN or infinity anywhere makes it an engine error, without label and scores."""
    bundle, logits = case
    logits[data.draw(st.integers(0, len(logits) - 1))] = poison
    decision = Decider(bundle, DecisionConfig()).decide(np.array(logits, np.float32))
    assert decision == Decision("no_result", "engine_error")


@pytest.mark.parametrize("shape", [(0,), (2,), (4,), (3, 1), (1, 3), ()])
def test_the_wrong_number_of_scores_decides_nothing(shape: tuple[int, ...]) -> None:
    """Also when they are all as good as can be."""
    decision = Decider(manifest("ood"), DecisionConfig()).decide(np.full(shape, 50, np.float32))
    assert decision == Decision("no_result", "engine_error")


def test_an_even_split_fails() -> None:
    """0.5 reaches a threshold of 0.5."""
    decision = decide("od", [3.0, 3.0])
    assert (decision.verdict, decision.label, decision.score) == ("fail", "d1", 0.5)


def test_a_score_that_rounds_up_to_the_threshold_fails() -> None:
    """Nobody shall read a defect at its threshold beside a pass."""
    logits = logits_for(0.90000003, 0.09999997)
    assert softmax(logits, 1.0)[1] < 0.1
    decision = decide("od", logits, fail_default=0.1)
    assert (decision.verdict, decision.score) == ("fail", 0.1)


def test_the_worst_of_several_defects_is_named() -> None:
    """Among those at their thresholds the most probable; another defect below its own is not named."""
    decision = decide("oddd", logits_for(0.05, 0.25, 0.3, 0.4), fail={"d1": 0.1, "d2": 0.2, "d3": 0.9})
    assert (decision.verdict, decision.label, decision.score) == ("fail", "d2", pytest.approx(0.3, abs=1e-6))


def test_a_good_part_passes() -> None:
    """The plain case."""
    decision = decide("oed", logits_for(0.9, 0.05, 0.05))
    assert (decision.verdict, decision.reason, decision.label) == ("pass", None, "o0")
    assert decision.score == pytest.approx(0.9, abs=1e-6)


def test_several_ok_classes_pass_together() -> None:
    """Which of two good variants it is need not be certain."""
    assert decide("ood", logits_for(0.45, 0.45, 0.1)).verdict == "pass"


def test_no_pass_with_a_defect_on_top() -> None:
    """Five variants that are good together do not outvote the class that is the most probable."""
    decision = decide("oooood", logits_for(0.161, 0.161, 0.161, 0.161, 0.161, 0.195))
    assert decision == Decision("no_result", "uncertain", "d5", decision.score, decision.scores)


def test_an_empty_station_is_no_result_without_reason() -> None:
    """Label and score are those of the empty class."""
    decision = decide("oed", logits_for(0.05, 0.9, 0.05))
    assert (decision.verdict, decision.reason, decision.label) == ("no_result", None, "e1")
    assert decision.score == pytest.approx(0.9, abs=1e-6)


def test_empty_without_an_empty_class_on_top_is_uncertain() -> None:
    """A reason of null always comes with the empty label."""
    decision = decide("oeed", logits_for(0.4, 0.29, 0.29, 0.02), empty_min=0.55)
    assert (decision.verdict, decision.reason, decision.label) == ("no_result", "uncertain", "o0")


def test_between_the_thresholds_is_uncertain() -> None:
    """The top class is still told."""
    decision = decide("oed", logits_for(0.7, 0.2, 0.1))
    assert (decision.verdict, decision.reason, decision.label) == ("no_result", "uncertain", "o0")


def test_a_bundle_without_ok_class_never_passes() -> None:
    """There is nothing that could."""
    assert decide("ed", logits_for(0.7, 0.3)).reason == "uncertain"


def test_the_temperature_calibrates() -> None:
    """softmax([2, 0] / 2) = sigmoid(1)."""
    decision = decide("od", [2.0, 0.0], temperature=2.0)
    assert decision.scores["o0"] == pytest.approx(1 / (1 + math.exp(-1)), abs=1e-6)
    assert decision.reason == "uncertain"
    assert decide("od", [2.0, 0.0], temperature=1.0).verdict == "pass"


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("temperature", [1e-300, 1e-30, 100.0])
def test_no_temperature_makes_nonsense_of_large_scores(temperature: float) -> None:
    """The largest logits that float32 has, divided by next to nothing, still give probabilities."""
    decision = decide("od", [-3e38, 3e38], temperature=temperature)
    assert decision == Decision("fail", None, "d1", 1.0, {"o0": 0.0, "d1": 1.0})


class TestOverrides:
    """`[decision]` on top of the bundle's thresholds."""

    def test_absent_keys_stay_as_the_bundle_has_them(self) -> None:
        bundle = manifest("odd", pass_min=0.7, empty_min=0.6, fail_default=0.3, fail={"d1": 0.2})
        assert merged_thresholds(bundle, DecisionConfig()) == bundle.thresholds

    def test_given_keys_win_one_by_one(self) -> None:
        bundle = manifest("odd", pass_min=0.7, empty_min=0.6, fail_default=0.3, fail={"d1": 0.2, "d2": 0.25})
        merged = merged_thresholds(bundle, DecisionConfig(pass_min=0.95, fail={"d2": 0.05}))
        assert merged == Thresholds(pass_min=0.95, empty_min=0.6, fail_default=0.3, fail={"d1": 0.2, "d2": 0.05})

    @pytest.mark.parametrize(
        ("overrides", "expected"),
        [
            (DecisionConfig(), "pass"),
            (DecisionConfig(pass_min=0.95), "no_result"),
            (DecisionConfig(fail={"d1": 0.08}), "fail"),
            (DecisionConfig(fail_default=0.08), "fail"),
        ],
    )
    def test_they_decide(self, overrides: DecisionConfig, expected: str) -> None:
        assert decide("ode", logits_for(0.9, 0.08 + 1e-9, 0.02), overrides).verdict == expected

    def test_the_empty_threshold_decides(self) -> None:
        assert decide("ode", logits_for(0.08, 0.02, 0.9), DecisionConfig(empty_min=0.95)).reason == "uncertain"

    @pytest.mark.parametrize("name", ["dent", "o0", "e2"])
    def test_a_class_that_is_no_defect_is_refused(self, name: str) -> None:
        with pytest.raises(ConfigError, match=rf"decision\.fail\.{name}: no defect class of the bundle; it has \['d1'"):
            merged_thresholds(manifest("ode"), DecisionConfig(fail={name: 0.5}))

    @pytest.mark.parametrize("value", [math.nan, math.inf, 0.0, -0.1, 1.1])
    def test_a_threshold_that_is_no_probability_gets_nowhere(self, value: float) -> None:
        """NaN above all: every comparison with it is false, and no defect would ever fail."""
        for make in (DecisionConfig, Thresholds):
            for keys in ({"pass_min": value}, {"empty_min": value}, {"fail_default": value}, {"fail": {"d1": value}}):
                with pytest.raises(ValueError, match=next(iter(keys))):
                    make(**keys)
