"""The alerts against time and against what is no trouble: promtool, with series made up for each case.

tests/test_deploy.py asks the same conditions of a real Prometheus that scraped real metrics.
"""

import json
import subprocess

import pytest
from prometheus_server import ALERTS, INSTALLED

pytestmark = pytest.mark.skipif(not INSTALLED, reason="needs Debian's prometheus")

STEP_S = 15
NEVER, EVERY_STEP, FRAMES = "0x60", "0+1x60", "0+450x60"  # a quarter of an hour; 30 frames a second
CAMERA = 'instance="pc", camera="top"'
ROI = f'{CAMERA}, roi="lid"'

RUNNING = {
    f"inspectd_frames_captured_total{{{CAMERA}}}": FRAMES,
    f'inspectd_frames_dropped_total{{{ROI}, reason="untriggered"}}': NEVER,
    f'inspectd_frames_dropped_total{{{ROI}, reason="not_in_recipe"}}': NEVER,
    f'inspectd_verdicts_total{{{ROI}, verdict="pass", reason=""}}': NEVER,
}
TRIGGERED = RUNNING | {
    f'inspectd_frames_dropped_total{{{ROI}, reason="untriggered"}}': FRAMES,
    f"inspectd_triggers_pending{{{CAMERA}}}": NEVER,
    f'inspectd_triggers_total{{{CAMERA}, result="accepted"}}': NEVER,
}


def verdicts(verdict, reason, values):
    return {f'inspectd_verdicts_total{{{ROI}, verdict="{verdict}", reason="{reason}"}}': values}


def refused(result, values):
    return {f'inspectd_triggers_total{{{CAMERA}, result="{result}"}}': values}


def lost(reason, values):
    return {f'inspectd_evidence_lost_total{{instance="pc", reason="{reason}"}}': values}


def line(name, values):
    return {f'{name}{{instance="pc"}}': values}


def judged(folder, cases):
    """What promtool has to say: "" if in every case, after its time, exactly the expected alerts fire.

    `cases` are {name: (series, seconds after the first scrape, alerts)}.
    """
    tests = [
        {
            "interval": f"{STEP_S}s",
            "input_series": [{"series": each, "values": values} for each, values in series.items()],
            "promql_expr_test": [
                {
                    "expr": f'group by (alertname) (ALERTS{{alertstate="firing"}}) # {name}',
                    "eval_time": f"{after_s}s",
                    "exp_samples": [{"labels": f'{{alertname="{alert}"}}', "value": 1} for alert in alerts],
                }
            ],
        }
        for name, (series, after_s, alerts) in cases.items()
    ]
    path = folder / "cases.json"  # JSON is YAML
    path.write_text(json.dumps({"rule_files": [str(ALERTS)], "evaluation_interval": f"{STEP_S}s", "tests": tests}))
    done = subprocess.run(["promtool", "test", "rules", str(path)], capture_output=True, text=True, timeout=60)
    return "" if done.returncode == 0 else done.stdout + done.stderr


FIRES = {
    "a free-running camera without verdicts": (RUNNING, 300, ["InspectdNoVerdicts"]),
    "a triggered camera that takes triggers and says nothing": (
        TRIGGERED | refused("accepted", EVERY_STEP),
        300,
        ["InspectdNoVerdicts"],
    ),
    "a failed challenge, at once": (line("inspectd_challenge_passed", "1 0x60"), STEP_S, ["InspectdChallengeFailed"]),
    "one busy trigger": (refused("busy", "0 1x60"), 60, ["InspectdTriggersRefused"]),
    "a trigger for a camera that runs free": (refused("not_triggered", "0 1x60"), 60, ["InspectdTriggersRefused"]),
    "every tenth deadline missed": (
        verdicts("pass", "", "0+9x60") | verdicts("no_result", "deadline", EVERY_STEP),
        900,
        ["InspectdManyWithoutResult", "InspectdDeadlinesMissed"],
    ),
    "one deadline in fifty missed": (
        verdicts("pass", "", "0+49x60") | verdicts("no_result", "deadline", EVERY_STEP),
        900,
        ["InspectdDeadlinesMissed"],
    ),
    "results that come late": (
        {f"inspectd_late_results_total{{{CAMERA}}}": "0 1 2 3 4 5x60"},
        60,
        ["InspectdResultsLate"],
    ),
    "a part that stays": ({f"inspectd_part_stuck{{{ROI}}}": "1x60"}, 60, ["InspectdPartStuck"]),
    "a journal that stays away": (line("inspectd_journal_ok", "1 0x60"), 30, ["InspectdJournalFailing"]),
    "one lost row": (line("inspectd_journal_lost_rows_total", "0 1x60"), 60, ["InspectdJournalLosesRows"]),
    "one picture that the disk did not take": (lost("disk", "0 1x60"), 60, ["InspectdEvidenceLost"]),
}

SPARES = {
    "a triggered camera whose line stands still": (TRIGGERED, 600),
    "a triggered camera at work": (TRIGGERED | refused("accepted", EVERY_STEP) | verdicts("pass", "", EVERY_STEP), 600),
    "a region of another recipe": (
        RUNNING | {f'inspectd_frames_dropped_total{{{ROI}, reason="not_in_recipe"}}': FRAMES},
        600,
    ),
    "a station that is mostly empty": (
        RUNNING | verdicts("pass", "", EVERY_STEP) | verdicts("no_result", "empty", "0+149x60"),
        900,
    ),
    "duplicate triggers": (refused("duplicate", EVERY_STEP), 600),
    "a single missed deadline": (verdicts("pass", "", "0+10x60") | verdicts("no_result", "deadline", "0 1x60"), 900),
    "a single late result": ({f"inspectd_late_results_total{{{CAMERA}}}": "0 1x60"}, 300),
    "a part that goes on": ({f"inspectd_part_stuck{{{ROI}}}": "1x2 0x60"}, 300),
    "a journal that comes back": (line("inspectd_journal_ok", "0 1x60"), 60),
    "more pictures than max_per_s": (lost("too_many", EVERY_STEP) | lost("shutdown", EVERY_STEP), 600),
    "a daemon that is well": (
        line("inspectd_challenge_passed", "1x60")
        | line("inspectd_journal_ok", "1x60")
        | line("inspectd_journal_lost_rows_total", NEVER)
        | {f"inspectd_part_stuck{{{ROI}}}": NEVER},
        600,
    ),
}


def test_each_alert_fires_in_its_case_and_no_other_does(tmp_path):
    """`for` included."""
    assert judged(tmp_path, FIRES) == ""


def test_nothing_fires_for_what_belongs_to_a_days_work(tmp_path):
    """And promtool does judge: it finds an expectation that is wrong."""
    assert judged(tmp_path, {name: (*case, []) for name, case in SPARES.items()}) == ""
    assert "InspectdNever" in judged(tmp_path, {"wrong": (TRIGGERED, STEP_S, ["InspectdNever"])})


def test_every_alert_of_the_line_has_a_case_in_which_it_fires():
    """Whoever adds one says when it fires."""
    rules = ALERTS.read_text().split("name: inspectd-line")[1]
    alerts = {row.split()[-1] for row in rules.splitlines() if "- alert:" in row}
    assert len(alerts) >= 8
    assert alerts <= {alert for _, _, expected in FIRES.values() for alert in expected}
