"""The alerts against time and against what is no trouble: promtool, with series made up for each case.

tests/test_deploy.py asks the same conditions of a real Prometheus that scraped real metrics.
"""

import json
import re
import subprocess

import pytest
from prometheus_server import ALERTS, DEPLOY, INSTALLED, dashboard_expressions

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


WITHOUT_EMPTY = ("panel 'Fail'", "panel 'Without result'", "panel 'Shares per region'")


def verdicts(verdict, reason, values):
    return {f'inspectd_verdicts_total{{{ROI}, verdict="{verdict}", reason="{reason}"}}': values}


def refused(result, values):
    return {f'inspectd_triggers_total{{{CAMERA}, result="{result}"}}': values}


def lost(reason, values):
    return {f'inspectd_evidence_lost_total{{instance="pc", reason="{reason}"}}': values}


def line(name, values):
    return {f'{name}{{instance="pc"}}': values}


def parts(verdict, values):
    return {f'inspectd_parts_total{{{ROI}, verdict="{verdict}"}}': values}


def started(*at):
    """When the process that was scraped had started, in seconds; None where none answered."""
    values = " ".join("_" if each is None else str(each) for each in at)
    return {'process_start_time_seconds{instance="pc", job="inspectd"}': values}


def judged(folder, cases):
    """What promtool has to say: "" if in every case, after its time, exactly the expected alerts fire.

    `cases` are {name: (series, seconds after the first scrape, alerts)}.
    """
    return asked(
        folder,
        [
            (
                series,
                after_s,
                f'group by (alertname) (ALERTS{{alertstate="firing"}}) # {name}',
                {f'{{alertname="{alert}"}}': 1 for alert in alerts},
            )
            for name, (series, after_s, alerts) in cases.items()
        ],
    )


def asked(folder, cases):
    """What promtool has to say: "" if every expression has its values, as [(series, seconds, expression, values)]."""
    tests = [
        {
            "interval": f"{STEP_S}s",
            "input_series": [{"series": each, "values": values} for each, values in series.items()],
            "promql_expr_test": [
                {
                    "expr": expr,
                    "eval_time": f"{after_s}s",
                    "exp_samples": [{"labels": labels, "value": value} for labels, value in values.items()],
                }
            ],
        }
        for series, after_s, expr, values in cases
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
    "a triggered camera all of whose triggers are refused": (
        TRIGGERED | refused("bad_deadline", EVERY_STEP),
        300,
        ["InspectdNoVerdicts", "InspectdTriggersRefused"],
    ),
    "a trigger that names no camera": (
        {'inspectd_triggers_total{instance="pc", result="unknown_camera"}': "0 1x60"},
        60,
        ["InspectdTriggersRefused"],
    ),
    "a trigger of a client that may only listen": (refused("forbidden", "0 1x60"), 60, ["InspectdTriggersRefused"]),
    "a daemon that dies every minute": (
        {
            'up{instance="pc", job="inspectd"}': "1 1 1 0 " * 15,
            'inspectd_ready{instance="pc", job="inspectd"}': "0 1 1 stale " * 15,
        }
        | started(*(at for start in range(0, 900, 60) for at in (start, start, start, None))),
        885,
        ["InspectdRestarting"],
    ),
    "a daemon that dies every hour": (
        started(*(start * 3600 if at else None for start in range(5) for at in range(240))),
        4 * 3600 + 60,
        ["InspectdEndsNowAndThen"],
    ),
    "no part with a result, at a station that is mostly empty": (
        RUNNING
        | verdicts("no_result", "uncertain", "0+14x60")
        | verdicts("no_result", "empty", "0+436x60")
        | parts("pass", NEVER)
        | parts("no_result", EVERY_STEP),
        900,
        ["InspectdManyWithoutResult", "InspectdPartsWithoutResult"],
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
    "duplicate triggers": (TRIGGERED | refused("duplicate", EVERY_STEP), 600),
    "a daemon that is restarted twice": (started(*[0] * 10, None, *[160] * 10, None, *[330] * 40), 900),
    "a daemon that is restarted three times in a shift": (
        started(*(start * 3600 if at else None for start in range(4) for at in range(240))),
        4 * 3600,
    ),
    "one part in fifty without a result": (parts("pass", "0+49x60") | parts("no_result", EVERY_STEP), 900),
    "three parts without a result": (parts("pass", NEVER) | parts("no_result", "0 1 2 3x60"), 900),
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


def test_a_daemon_that_is_gone_is_neither_ready_nor_are_its_cameras_up(tmp_path):
    """The dashboard's tiles, of two daemons: both well, one camera down, and one daemon dead with all its series."""
    shown = {
        where: expr for where, expr in dashboard_expressions() if where in ("panel 'Ready'", "panel 'Cameras down'")
    }
    ready, down = shown["panel 'Ready'"], shown["panel 'Cameras down'"]

    def two(answers, is_ready, first, second):
        return {
            'up{instance="a", job="inspectd"}': "1x60",
            'inspectd_ready{instance="a", job="inspectd"}': "1x60",
            'inspectd_camera_up{instance="a", job="inspectd", camera="top"}': "1x60",
            'up{instance="b", job="inspectd"}': answers,
            'inspectd_ready{instance="b", job="inspectd"}': is_ready,
            'inspectd_camera_up{instance="b", job="inspectd", camera="top"}': first,
            'inspectd_camera_up{instance="b", job="inspectd", camera="side"}': second,
        }

    for series, expected in (
        (two("1x60", "1x60", "1x60", "1x60"), (1, 0)),
        (two("1x60", "0x60", "1x60", "1 0x60"), (0, 1)),
        (two("1x5 0x60", "1x5 stale", "1x5 stale", "0x5 stale"), (0, 2)),
    ):
        cases = [(series, 240, expr, {"{}": value}) for expr, value in zip((ready, down), expected, strict=True)]
        assert asked(tmp_path, cases) == ""


def test_an_empty_station_is_in_no_share_of_the_dashboard(tmp_path):
    """Half of what was there had no result, and nothing of that is hidden by the time in which nothing was there."""
    shares = [expr for where, expr in dashboard_expressions("1m") if where in WITHOUT_EMPTY]
    assert len(shares) == 4
    series = (
        verdicts("pass", "", NEVER)
        | verdicts("fail", "", "0+7x60")
        | verdicts("no_result", "uncertain", "0+7x60")
        | verdicts("no_result", "empty", "0+436x60")
    )
    half = {f"{{{ROI}}}": 0.5}
    cases = [(series, 600, expr, half if "by (" in expr else {"{}": 0.5}) for expr in shares]
    assert asked(tmp_path, cases) == ""


def test_the_example_of_an_alertmanager_is_one_that_prometheus_takes(tmp_path):
    """As shipped nobody is called; with its comment signs gone the block names one."""
    before, example = (DEPLOY / "prometheus.yml").read_text().split("#alerting:")
    named = before + "alerting:" + re.sub("^#", "", example, flags=re.MULTILINE)
    (tmp_path / "prometheus.yml").write_text(named)
    (tmp_path / "alerts.yml").write_text(ALERTS.read_text())
    done = subprocess.run(
        ["promtool", "check", "config", str(tmp_path / "prometheus.yml")], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
