"""Dashboard and alerts name what the daemon tells, and nothing else; promtool reads them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import yaml
from prometheus_client.parser import text_string_to_metric_families

from messagebusd.metrics import Metrics
from tests.support.hosted import HostedDaemon
from tests.support.program import find_program
from tests.support.shipped import DEPLOY

_SELECTOR = re.compile(r"(messagebusd_\w+)(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'(\w+)(=~|=)"([^"]*)"')
_BY = re.compile(r"\bby \(([^)]*)\)")
# What Prometheus itself puts on every series.
TARGET = {"job", "instance"}

Series = dict[str, list[dict[str, str]]]  # the labels of each sample, by name


def _dashboard() -> dict[str, Any]:
    board: dict[str, Any] = json.loads((DEPLOY / "grafana" / "messagebusd.json").read_text())
    return board


def _rules() -> list[dict[str, Any]]:
    [group] = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"]
    rules: list[dict[str, Any]] = group["rules"]
    return rules


def _queries() -> Iterator[tuple[str, str]]:
    for rule in _rules():
        yield rule["alert"], rule["expr"]
    for panel in _dashboard()["panels"]:
        for target in panel.get("targets", []):
            yield f"{panel['title']} {target['refId']}", target["expr"]


QUERIES = dict(_queries())


def _series(text: str) -> Series:
    found: Series = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(dict(sample.labels))
    return found


async def _told(folder: Path) -> Series:
    """What a daemon tells after a publish, a poll and refusals.

    Reasons that only a store on the network has are told by the same list of metrics.
    """
    async with HostedDaemon(folder) as daemon, httpx.AsyncClient(base_url=daemon.url) as client:
        await daemon.publish("/a", 1)
        await client.post("/message-bus/c1/poll?dlp=t", data={"/a": "0"})
        assert (await client.post("/message-bus/c1/poll", json=1)).status_code == 400
        assert (await client.post("/api/v1/publish")).status_code == 401
        series = _series((await client.get("/metrics")).text)
    of_stores = Metrics()
    of_stores.store_ignored("unsubscribe")
    for name, samples in _series(of_stores.render().decode()).items():
        series.setdefault(name, samples)
    return series


async def test_what_is_asked_for_is_told(tmp_path: Path) -> None:
    told = await _told(tmp_path)
    problems = [
        f"{name}: {each}" for name, query in QUERIES.items() for each in _wrong(query, told)
    ]
    assert not problems


def _wrong(query: str, told: Series) -> Iterator[str]:
    labels = set(TARGET)
    for metric, matchers in _SELECTOR.findall(query):
        if metric not in told:
            yield f"{metric} is no metric of the daemon"
            continue
        labels |= {label for sample in told[metric] for label in sample}
        for label, how, value in _MATCHER.findall(matchers):
            if label in TARGET:
                continue
            values = {sample.get(label) for sample in told[metric]} - {None}
            wanted = value.split("|") if how == "=~" else [value]
            # Of codes only those that were counted so far are told.
            if not values or (label != "code" and not values.issuperset(wanted)):
                yield f'{metric} has no {label}="{value}"'
    for grouped in _BY.findall(query):
        if unknown := set(re.split(r",\s*", grouped)) - labels:
            yield f"nothing there has {unknown}"


def test_refusals_are_documented_ones() -> None:
    documented = (DEPLOY.parent / "docs" / "limits.md").read_text()
    codes = {
        code
        for query in QUERIES.values()
        for label, _, value in _MATCHER.findall(query)
        if label == "code"
        for code in value.split("|")
    }
    assert codes
    for code in codes:
        assert f"`{code}`" in documented, code


def test_legends_and_sentences_name_labels_that_are_left() -> None:
    for panel in _dashboard()["panels"]:
        for target in panel.get("targets", []):
            used = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            left = {
                label
                for grouped in _BY.findall(target["expr"])
                for label in re.split(r",\s*", grouped)
            }
            assert used <= left, panel["title"]
    for rule in _rules():
        used = set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"])))
        left = {
            label for grouped in _BY.findall(rule["expr"]) for label in re.split(r",\s*", grouped)
        }
        assert used <= (left or TARGET), rule["alert"]


def test_promtool_accepts_alerts_and_what_they_say(tmp_path: Path) -> None:
    for name in ("alerts.yml", "alerts_test.yml"):
        shutil.copy(DEPLOY / "prometheus" / name, tmp_path)
    shutil.copy(DEPLOY / "compose" / "prometheus.yml", tmp_path)
    _promtool(tmp_path, "check", "rules", "alerts.yml")
    _promtool(tmp_path, "test", "rules", "alerts_test.yml")
    _promtool(tmp_path, "check", "config", "prometheus.yml")


def test_promtool_accepts_the_dashboards_queries(tmp_path: Path) -> None:
    """As rules, which is what it can read."""
    rules = [
        {"record": f"panel_{number}", "expr": _without_variables(query)}
        for number, query in enumerate(QUERIES.values())
    ]
    content = {"groups": [{"name": "dashboard", "rules": rules}]}
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(content))
    _promtool(tmp_path, "check", "rules", "rules.yml")


def _without_variables(query: str) -> str:
    for variable, value in (("$__rate_interval", "1m"), ("$job", ".*"), ("$instance", ".*")):
        query = query.replace(variable, value)
    assert "$" not in query
    return query


def _promtool(folder: Path, *arguments: str) -> None:
    ran = subprocess.run(
        [find_program("promtool", "prometheus"), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_the_dashboard_is_whole() -> None:
    board = _dashboard()
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    variables = {variable["name"] for variable in board["templating"]["list"]}
    assert set(re.findall(r"\$\{?(\w+)", json.dumps(board))) <= variables | {
        "__rate_interval",
        "__all",
    }
    places = [
        (column, line)
        for panel in board["panels"]
        for column in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for line in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(places)) == len(places), "panels overlap"
    assert max(column for column, _ in places) < 24
