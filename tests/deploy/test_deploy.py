"""deploy/: every file is read by what reads it in earnest, or by its schema.

Prometheus, promtool and systemd-analyze take part where they are installed.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import promql_parser
import pytest
import yaml
from compose_spec import PyCompose

from tests.cli.test_commands import command
from tests.floors import ROOT

DEPLOY = ROOT / "deploy"
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
KUBERNETES = ("1.30", "1.33")
DASHBOARD = json.loads((DEPLOY / "grafana/dashboards/pruned.json").read_text())
ALERTS = yaml.safe_load((DEPLOY / "prometheus/alerts.yml").read_text())
UNIT = DEPLOY / "systemd/vllm-moe-prune@.service"
OURS = "vllm_moe_expert_tokens_total"


def read(path: Path) -> list[Any]:
    return list(yaml.safe_load_all(path.read_text()))


def queries() -> list[str]:
    panels = DASHBOARD["panels"]
    found = [target["expr"] for panel in panels for target in panel["targets"]]
    found = [q.replace("$__rate_interval", "1m").replace("$instance", ".*") for q in found]
    return found + [rule["expr"] for group in ALERTS["groups"] for rule in group["rules"]]


def serve_words() -> list[list[str]]:
    """What each of the files gives to `vmprune serve`."""
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    (deployment,) = (m for f in MANIFESTS for m in read(f) if m["kind"] == "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    (line,) = re.findall(r"^ExecStart=.*/vmprune serve (.*)$", UNIT.read_text(), re.MULTILINE)
    return [compose["services"]["model"]["command"], pod["containers"][0]["args"], line.split()]


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("file", MANIFESTS, ids=lambda file: file.stem)
def test_manifests_are_what_kubernetes_takes(file: Path, version: str) -> None:
    for manifest in read(file):
        kubernetes_validate.validate(manifest, version, strict=True)


def test_a_pod_is_ready_when_its_model_has_answered() -> None:
    (deployment,) = (m for f in MANIFESTS for m in read(f) if m["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    probe = container["readinessProbe"]["exec"]["command"]
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    assert compose["services"]["model"]["healthcheck"]["test"][1:] == probe
    run = subprocess.run(
        [sys.executable, *probe[1:-1], "http://127.0.0.1:1"], capture_output=True, text=True
    )
    assert run.returncode == 1 and "does not answer" in run.stderr


@pytest.mark.parametrize("words", serve_words(), ids=["compose", "kubernetes", "systemd"])
def test_the_command_is_one_that_there_is(words: list[str]) -> None:
    model, *arguments = words
    context = command("serve").make_context("serve", [model, *arguments])
    assert context.params["model"].startswith(("/model", "/srv"))
    assert context.params["arguments"]


def test_ports_are_open_on_loopback_alone() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    for service in compose["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert "--host" not in serve_words()[2]


def test_the_compose_file_is_one() -> None:
    text = (DEPLOY / "compose.yaml").read_text()
    given = {"MODEL": "/data/out", "VLLM_API_KEY": "k", "GRAFANA_PASSWORD": "p", "MODEL_NAME": "m"}
    asked = set(re.findall(r"\$\{(\w+)", text))
    assert asked == given.keys()
    text = re.sub(r"\$\{(\w+)[^}]*\}", lambda found: given[found[1]], text)
    compose = PyCompose.from_yaml(text)
    compose.validate()
    assert set(compose.service_names()) == {"model", "prometheus", "grafana"}
    with pytest.raises(ValueError, match="stop_grace"):
        PyCompose.from_yaml(text.replace("stop_grace_period: 60s", "stop_grace_period: soon"))


@pytest.mark.parametrize("query", queries())
def test_queries_are_promql_and_name_metrics_that_are_there(query: str) -> None:
    promql_parser.parse(query)
    sources = metrics_of_vllm()
    for name in set(re.findall(r"vllm[:_][a-z_]+", query)) - {OURS}:
        plain = re.sub(r"_(total|bucket|sum|count)$", "", name)
        assert f'"{plain}"' in sources, name


def metrics_of_vllm() -> str:
    from importlib.util import find_spec

    found = find_spec("vllm")
    assert found is not None and found.submodule_search_locations
    folder = Path(found.submodule_search_locations[0])
    return (folder / "v1/metrics/loggers.py").read_text()


def test_the_dashboard_shows_our_counter_and_its_panels_do_not_overlap() -> None:
    assert any(OURS in query for query in queries())
    cells: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        rows = range(place["y"], place["y"] + place["h"])
        mine = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in rows}
        assert not mine & cells and place["x"] + place["w"] <= 24
        cells |= mine
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="there is no systemd here")
def test_systemd_reads_the_unit(tmp_path: Path) -> None:
    text = UNIT.read_text().replace("/opt/vllm-moe-prune/bin/vmprune", sys.executable)
    unit = tmp_path / "vllm-moe-prune@x.service"
    unit.write_text(text)
    run = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True
    )
    assert [line for line in run.stderr.splitlines() if "vllm-moe-prune" in line] == []


@pytest.mark.skipif(not shutil.which("promtool"), reason="there is no Prometheus here")
def test_prometheus_reads_its_files() -> None:
    run = subprocess.run(
        ["promtool", "check", "config", str(DEPLOY / "prometheus/prometheus.yml")],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
