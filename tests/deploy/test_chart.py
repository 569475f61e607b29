"""The Helm chart: linted and rendered by Helm, held against Kubernetes' schemas and our own."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import pytest
import yaml

import messagebusd
from messagebusd.settings import load_settings
from tests.support.shipped import DEPLOY, check_config

CHART = DEPLOY / "helm" / "messagebusd"
KUBERNETES = "1.33"
KEY = {"secrets": {"api-key": "k" * 32}}
EVERYTHING: dict[str, Any] = {
    **KEY,
    "ingress": {"enabled": True, "tlsSecret": "site"},
    "autoscaling": {"enabled": True},
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "podAnnotations": {"a": "b"},
    "nodeSelector": {"pool": "bus"},
    "tolerations": [{"key": "bus", "operator": "Exists"}],
    "affinity": {"podAntiAffinity": {}},
}


def _render(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The documents of the chart by their kind."""
    with helm_python.Chart.load(CHART) as chart:
        chart.validate_schema(dict(values))
        rendered = chart.render(dict(values), name="bus", namespace="web")
    documents = [
        document
        for text in rendered.values()
        for document in yaml.safe_load_all(text)
        if document is not None
    ]
    found = {document["kind"]: document for document in documents}
    assert len(found) == len(documents)
    return found


def _pod(documents: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    pod: dict[str, Any] = documents["Deployment"]["spec"]["template"]["spec"]
    return pod


@pytest.mark.parametrize("values", [KEY, EVERYTHING], ids=["defaults", "everything"])
def test_helm_finds_nothing(values: dict[str, Any]) -> None:
    report = helm_python.lint(CHART, values, strict=True)
    assert report["total_charts_linted"] == 1
    assert report["errors"] == []
    assert [each for each in report["messages"] if each["severity"] > 1] == []


@pytest.mark.parametrize("values", [KEY, EVERYTHING], ids=["defaults", "everything"])
def test_kubernetes_would_take_it(values: dict[str, Any]) -> None:
    documents = _render(values)
    documents.pop("ServiceMonitor", None)  # the operator's own
    for document in documents.values():
        kubernetes_validate.validate(document, KUBERNETES, strict=True)


def test_what_is_optional_is_left_out() -> None:
    assert set(_render(KEY)) == {
        "ConfigMap",
        "Secret",
        "Deployment",
        "Service",
        "PodDisruptionBudget",
    }
    assert set(_render(EVERYTHING)) == {
        *_render(KEY),
        "Ingress",
        "HorizontalPodAutoscaler",
        "ServiceMonitor",
    }
    assert "Secret" not in _render({"existingSecret": "mine"})


def test_nothing_is_installed_without_a_key() -> None:
    with pytest.raises(helm_python.HelmError, match="the API needs a key"):
        _render({})


def test_unknown_values_are_refused() -> None:
    with pytest.raises(helm_python.HelmError, match="replica"):
        _render({**KEY, "replica": 3})


def test_its_settings_are_settings(tmp_path: Path) -> None:
    documents = _render(KEY)
    [container] = _pod(documents)["containers"]
    env = {each["name"]: each["value"] for each in container["env"]}
    key = tmp_path / "api-key"
    key.write_text(documents["Secret"]["stringData"]["api-key"])
    assert env["MESSAGEBUSD_API__KEY_FILE"].endswith("/secrets/api-key")
    env["MESSAGEBUSD_API__KEY_FILE"] = str(key)
    config = tmp_path / "bus.toml"
    config.write_text(documents["ConfigMap"]["data"]["bus.toml"])
    check_config(config, env)

    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    assert env["MESSAGEBUSD_SERVER__LISTEN"].endswith(f":{ports['public']}")
    assert env["MESSAGEBUSD_SERVER__INTERNAL_LISTEN"].endswith(f":{ports['internal']}")


def test_there_is_time_to_drain() -> None:
    documents = _render(KEY)
    pod = _pod(documents)
    [container] = pod["containers"]
    [_, seconds] = container["lifecycle"]["preStop"]["exec"]["command"]
    settings = tomllib.loads(documents["ConfigMap"]["data"]["bus.toml"])
    draining = settings["server"]["shutdown_timeout"]
    assert draining == load_settings(None, {}, {}).settings.server.shutdown_timeout
    assert pod["terminationGracePeriodSeconds"] > int(seconds) + draining


def test_the_pod_may_do_little() -> None:
    pod = _pod(_render(KEY))
    [container] = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"]
    image = (DEPLOY.parent / "Dockerfile").read_text()
    assert f"\nUSER {pod['securityContext']['runAsUser']}\n" in image
    assert not pod["automountServiceAccountToken"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_the_parts_find_each_other() -> None:
    documents = _render(EVERYTHING)
    labels = documents["Deployment"]["spec"]["template"]["metadata"]["labels"]
    service = documents["Service"]
    for selector in (
        service["spec"]["selector"],
        documents["Deployment"]["spec"]["selector"]["matchLabels"],
        documents["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()
    monitor = documents["ServiceMonitor"]["spec"]
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    ports = {each["name"] for each in service["spec"]["ports"]}
    assert monitor["endpoints"][0]["port"] in ports
    [rule] = documents["Ingress"]["spec"]["rules"]
    [path] = rule["http"]["paths"]
    assert path["path"] == "/message-bus/"
    backend = path["backend"]["service"]
    assert (backend["name"], backend["port"]["name"]) == (service["metadata"]["name"], "public")
    scaled = documents["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert scaled["name"] == documents["Deployment"]["metadata"]["name"]
    volumes = {each["name"]: each for each in _pod(documents)["volumes"]}
    assert volumes["config"]["configMap"]["name"] == documents["ConfigMap"]["metadata"]["name"]
    assert volumes["secrets"]["secret"]["secretName"] == documents["Secret"]["metadata"]["name"]


def test_a_change_of_settings_rolls_the_pods() -> None:
    def note(values: Mapping[str, Any]) -> dict[str, str]:
        template = _render(values)["Deployment"]["spec"]["template"]
        annotations: dict[str, str] = template["metadata"]["annotations"]
        return annotations

    before = note(KEY)
    assert note({**KEY, "config": "[log]\nlevel = 'debug'\n"}) != before
    assert note({"secrets": {"api-key": "other"}}) != before


def test_every_value_is_used_and_typed() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())["properties"]
    templates = "".join(path.read_text() for path in (CHART / "templates").iterdir())
    used = set(re.findall(r"\.Values\.([\w.]+)", templates))
    for name, value in values.items():
        inner = schema[name].get("properties", {})
        if isinstance(value, dict) and inner:
            assert set(value) == set(inner), name
            assert {f"{name}.{key}" for key in value} <= used, name
        else:
            assert name in used, name
    assert {name.partition(".")[0] for name in used} <= set(values)
    assert set(schema) - {"global"} == set(values)


def test_its_version_is_the_daemons() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == messagebusd.__version__
