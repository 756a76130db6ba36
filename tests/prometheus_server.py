"""A real Prometheus on loopback, and what the deploy files ask it."""

import json
import math
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

DEPLOY = Path(__file__).parent.parent / "deploy"
DASHBOARD = DEPLOY / "grafana" / "inspectd.json"
ALERTS = DEPLOY / "alerts.yml"
INSTALLED = shutil.which("prometheus") is not None and shutil.which("promtool") is not None


class PrometheusServer:
    """Scrapes `targets` ("127.0.0.1:PORT") as the job `inspectd`, every second. A context manager.

    with PrometheusServer(tmp_path, [daemon.url.removeprefix("http://")]) as prometheus:
        missing = prometheus.wait_for_data([expr for _, expr in dashboard_expressions()])
        assert missing == []
    """

    def __init__(self, folder, targets, rules=ALERTS):
        config = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(rules)],
            "scrape_configs": [{"job_name": "inspectd", "static_configs": [{"targets": list(targets)}]}],
        }
        self._folder = Path(folder)
        self._config = self._folder / "prometheus.json"
        self._config.write_text(json.dumps(config))  # JSON is YAML
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{free.getsockname()[1]}"

    def __enter__(self):
        with (self._folder / "prometheus.log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={self._config}",
                    f"--storage.tsdb.path={self._folder / 'tsdb'}",
                    f"--web.listen-address={self.url.removeprefix('http://')}",
                    "--log.level=warn",
                ],
                stdout=log,
                stderr=log,
            )
        try:
            self.wait(self._is_ready, 30, "it did not become ready")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc):
        self._process.terminate()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(5)

    def query(self, expr):
        """The instant vector of an expression now: [(labels, value)]."""
        result = self._api("query", query=expr)
        if result["resultType"] == "scalar":
            return [({}, float(result["result"][1]))]
        return [(sample["metric"], float(sample["value"][1])) for sample in result["result"]]

    def wait_for_data(self, expressions, timeout_s=20):
        """Those of the expressions that never returned a number (NaN is none) within the time; [] is success."""
        missing = list(dict.fromkeys(expressions))

        def all_there():
            missing[:] = [e for e in missing if not any(math.isfinite(value) for _, value in self.query(e))]
            return not missing

        self.wait(all_there, timeout_s, None)
        return missing

    def wait_for_scrapes(self, count, timeout_s=20):
        """Wait until every target was tried that often."""
        tried = f'min(count_over_time(up{{job="inspectd"}}[1h])) >= {count}'
        self.wait(lambda: self.query(tried), timeout_s, f"fewer than {count} scrapes")

    def alerts(self):
        """Every alerting rule: {name: rule}, rule as the API has it (query, health, lastError, …)."""
        groups = self._api("rules", type="alert")["groups"]
        return {rule["name"]: rule for group in groups for rule in group["rules"]}

    def wait(self, condition, timeout_s, why):
        """Poll, because another process has no event for us; with a `why`, fail when the time is over."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                assert why is None, f"prometheus: {why} in {timeout_s} s"
                return
            time.sleep(0.1)

    def _is_ready(self):
        if self._process.poll() is not None:
            raise AssertionError(f"prometheus ended: {(self._folder / 'prometheus.log').read_text()}")
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False

    def _api(self, path, **parameters):
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as err:
            raise AssertionError(f"{parameters}: {err.read().decode()}") from None


def dashboard_expressions(rate_interval="5s", path=DASHBOARD):
    """Every expression that must return data, as Grafana would send it with everything chosen: [(where, expr)].

    Panels' targets, and the queries behind the variables as `group by (label) (metric)`.
    """
    dashboard = json.loads(path.read_text())
    found = [
        (f"panel {panel['title']!r}", target["expr"])
        for panel in dashboard["panels"]
        for target in panel.get("targets", ())
    ]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            metric, label = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"]).groups()
            found.append((f"variable ${variable['name']}", f"group by ({label}) ({metric})"))
    return [(where, _substituted(expr, rate_interval)) for where, expr in found]


def annotation_expressions(rate_interval="5s", path=DASHBOARD):
    """The dashboard's annotation queries: valid, and mostly without data."""
    annotations = json.loads(path.read_text())["annotations"]["list"]
    return [_substituted(each["expr"], rate_interval) for each in annotations if "expr" in each]


def panels(instance, rate_interval="5s", path=DASHBOARD):
    """Every panel with expressions, asked for one daemon: [(title, its text where there is no data, expressions)]."""
    return [
        (
            panel["title"],
            panel["fieldConfig"]["defaults"].get("noValue"),
            [_substituted(target["expr"], rate_interval, instance) for target in panel["targets"]],
        )
        for panel in json.loads(path.read_text())["panels"]
        if "targets" in panel
    ]


def _substituted(expr, rate_interval, instance=".+"):
    expr = expr.replace("$__rate_interval", rate_interval).replace("$instance", instance).replace("$camera", ".+")
    assert "$" not in expr, f"a variable that nobody knows: {expr}"
    return expr
