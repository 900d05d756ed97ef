"""deploy/alerts.yaml, evaluated by Prometheus's own promtool: each rule fires when it should, and only then."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ALERTS = Path(__file__).parents[2] / "deploy" / "alerts.yaml"
EXPORTER = "agent_gateway_exporter_call_"
FINE = {"queue_size": "0+0x60", "queue_capacity": "20000+0x60", 'exported_total{error_type=""}': "0+10x60"}
"""Ten calls are mirrored each minute, and none waits."""

WHEN: dict[str, tuple[dict[str, str], set[str]]] = {
    "all is well": ({}, set()),
    "calls wait while others are mirrored": ({"queue_size": "50+0x60"}, set()),
    "nothing is mirrored": (
        {"queue_size": "0x10 50+10x50", 'exported_total{error_type=""}': "100+0x60"},
        {"AgentGatewayMirrorsWait"},
    ),
    "the queue fills": ({"queue_size": "12000+0x60"}, {"AgentGatewayQueueFills"}),
    "one call is dropped": (
        {'exported_total{error_type="unknown_trace"}': "0x50 1x10"},
        {"AgentGatewayMirrorsDropped"},
    ),
}

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="Prometheus is not installed")


def promtool(*arguments: str | Path) -> None:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_the_rules_are_valid():
    promtool("check", "rules", ALERTS)


@needs_promtool
@pytest.mark.parametrize("situation", WHEN)
def test_what_fires_after_55_minutes(situation: str, tmp_path: Path):
    changes, firing = WHEN[situation]
    rules = {rule["alert"]: rule for rule in yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]}
    series = [{"series": EXPORTER + name, "values": values} for name, values in {**FINE, **changes}.items()]
    tests: list[dict[str, Any]] = [
        {"eval_time": "55m", "alertname": name, "exp_alerts": [expected(rules[name])] if name in firing else []}
        for name in rules
    ]
    case = {"interval": "1m", "input_series": series, "alert_rule_test": tests}
    file = tmp_path / "test.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(ALERTS)], "tests": [case]}))
    promtool("test", "rules", file)


def expected(rule: dict[str, Any]) -> dict[str, Any]:
    labels = dict(rule["labels"])
    summary = rule["annotations"]["summary"]
    if "$labels.error_type" in summary:
        labels["error_type"] = "unknown_trace"
        summary = summary.replace("{{ $labels.error_type }}", "unknown_trace")
    return {"exp_labels": labels, "exp_annotations": {"summary": summary}}
