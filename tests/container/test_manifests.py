"""The Kubernetes example fits the API's schemas, and its times fit the relay's."""

import sys
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from serving.settings import Settings
from tests.container.namespaces import output
from tests.support.process import ROOT

MANIFESTS = sorted((ROOT / "examples/kubernetes").glob("*.yaml"))
DEPLOYMENT: dict[str, Any] = yaml.safe_load((ROOT / "examples/kubernetes/deployment.yaml").read_text())["spec"]
POD: dict[str, Any] = DEPLOYMENT["template"]["spec"]
[RELAY] = POD["initContainers"]
ENVIRONMENT = {variable["name"]: variable for variable in RELAY["env"]}
GRACE = float(ENVIRONMENT["SHUTDOWN_GRACE"]["value"]) + 2


@pytest.mark.parametrize("version", ["1.29", "1.33", "1.37"])
def test_the_manifests_fit_the_schemas_of(version: str) -> None:
    validate = (sys.executable, "-m", "kubernetes_validate", "--strict", "--kubernetes-version", version)
    output(*validate, *map(str, MANIFESTS))


def test_the_relay_is_a_sidecar_with_time_to_finish_after_the_app() -> None:
    assert RELAY["restartPolicy"] == "Always"
    assert POD["terminationGracePeriodSeconds"] >= GRACE + 30  # what an app has by default


def test_no_probe_kills_a_relay_that_drains() -> None:
    """/health is 503 for as long as a drain takes."""
    probe = RELAY["livenessProbe"]
    assert probe["periodSeconds"] * (probe["failureThreshold"] - 1) > GRACE


def test_it_sets_nothing_that_the_relay_does_not_know() -> None:
    assert ENVIRONMENT.keys() <= {name.upper() for name in Settings.__dataclass_fields__}
    Settings.from_environ({name: variable.get("value") for name, variable in ENVIRONMENT.items()})


def test_its_conversations_are_in_a_volume_that_one_pod_has_at_a_time() -> None:
    [mount], [volume] = RELAY["volumeMounts"], POD["volumes"]
    assert ENVIRONMENT["STORE_URL"]["value"].startswith(f"sqlite:///{mount['mountPath']}/")
    assert mount["name"] == volume["name"] and DEPLOYMENT["strategy"] == {"type": "Recreate"}
    claim = yaml.safe_load((ROOT / "examples/kubernetes/volume.yaml").read_text())
    assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]


def test_its_secrets_come_from_a_secret() -> None:
    for name in ("OPENROUTER_API_KEY", "AUTH_TOKEN"):
        assert ENVIRONMENT[name]["valueFrom"]["secretKeyRef"]["name"] == "chat-relay"


def test_it_runs_as_restricted_as_the_image_was_tested() -> None:
    assert POD["securityContext"] == {
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
        "fsGroup": 10001,
    }
    assert RELAY["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
