"""The Kubernetes examples fit the API's schemas, and their times fit the relay's."""

import re
import sys
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from settings import Settings
from store import Store
from tests.container.namespaces import output
from tests.support.process import ROOT
from tests.support.servers import server, usual_program

FOLDER = ROOT / "examples/kubernetes"
MANIFESTS = sorted(FOLDER.glob("*.yaml"))


def kinds(name: str) -> dict[str, Any]:
    """What each of a file's manifests specifies, by its kind."""
    return {one["kind"]: one["spec"] for one in yaml.safe_load_all((FOLDER / name).read_text())}


DEPLOYMENT: dict[str, Any] = kinds("deployment.yaml")["Deployment"]
POD: dict[str, Any] = DEPLOYMENT["template"]["spec"]
[RELAY] = POD["initContainers"]
ENVIRONMENT = {variable["name"]: variable for variable in RELAY["env"]}
GRACE = float(ENVIRONMENT["SHUTDOWN_GRACE"]["value"]) + 2

REPLICAS, VALKEY = kinds("replicas.yaml"), kinds("valkey.yaml")
ONE_OF_THREE: dict[str, Any] = REPLICAS["Deployment"]["template"]["spec"]
[ITS_RELAY] = ONE_OF_THREE["containers"]
[SERVER] = VALKEY["StatefulSet"]["template"]["spec"]["containers"]

RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


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


@pytest.mark.parametrize("relay", [RELAY, ITS_RELAY], ids=["sidecar", "replica"])
def test_it_sets_nothing_that_the_relay_does_not_know(relay: dict[str, Any]) -> None:
    environ = {variable["name"]: variable.get("value") for variable in relay["env"]}
    assert environ.keys() <= {name.upper() for name in Settings.__dataclass_fields__}
    Settings.from_environ(environ)


def test_its_conversations_are_in_a_volume_that_one_pod_has_at_a_time() -> None:
    [mount], [volume] = RELAY["volumeMounts"], POD["volumes"]
    assert ENVIRONMENT["STORE_URL"]["value"].startswith(f"sqlite:///{mount['mountPath']}/")
    assert mount["name"] == volume["name"] and DEPLOYMENT["strategy"] == {"type": "Recreate"}
    claim = yaml.safe_load((FOLDER / "volume.yaml").read_text())
    assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]


@pytest.mark.parametrize("name", ["deployment.yaml", "replicas.yaml", "valkey.yaml"])
def test_its_secrets_come_from_a_secret_that_the_first_lines_make(name: str) -> None:
    text = (FOLDER / name).read_text()
    made = set(re.findall(r"--from-literal=([\w-]+)=", text))
    wanted = re.findall(r"- name: (\w+)\n +valueFrom:\n +secretKeyRef: \{name: chat-relay, key: ([\w-]+)\}", text)
    assert made >= {key for _, key in wanted}
    assert {name for name, _ in wanted} & {"AUTH_TOKEN", "VALKEY_PASSWORD"}
    assert not re.search(r"name: (\w*(KEY|TOKEN|PASSWORD)|STORE_URL), value: \W*(sk|valkey)", text)


def test_it_runs_as_restricted_as_the_image_was_tested() -> None:
    alone = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    assert POD["securityContext"] == alone | {"fsGroup": 10001}
    assert ONE_OF_THREE["securityContext"] == alone
    assert [one["securityContext"] for one in (RELAY, ITS_RELAY, SERVER)] == [RESTRICTED] * 3


def test_a_rolling_update_cuts_nobody_off() -> None:
    """A new relay is ready before an old one drains, which takes nothing new by then, and has time to finish."""
    assert REPLICAS["Deployment"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    assert ITS_RELAY["readinessProbe"]["httpGet"] == {"path": "/health", "port": "http"}
    [grace] = [float(one["value"]) for one in ITS_RELAY["env"] if one["name"] == "SHUTDOWN_GRACE"]
    leaving = ITS_RELAY["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert leaving >= 5
    assert ONE_OF_THREE["terminationGracePeriodSeconds"] >= leaving + grace + 2


def test_nodes_are_drained_one_relay_at_a_time() -> None:
    assert REPLICAS["PodDisruptionBudget"]["maxUnavailable"] < REPLICAS["Deployment"]["replicas"] - 1
    labels = REPLICAS["Deployment"]["template"]["metadata"]["labels"]
    assert REPLICAS["PodDisruptionBudget"]["selector"]["matchLabels"] == REPLICAS["Service"]["selector"] == labels


async def test_the_server_of_the_example_is_one_that_the_relay_takes_without_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    options = [argument.replace("$(VALKEY_PASSWORD)", "s3cret") for argument in SERVER["args"]]
    with server(usual_program(), *options[2:], config="") as running:
        store = Store(Settings(store_url=running.url.replace("//", "//:s3cret@")))
        await store.open()
        await store.close()
    assert not caplog.records


def test_the_server_has_room_for_a_full_store_and_a_volume_for_it() -> None:
    args = SERVER["args"]
    assert args[args.index("--maxmemory-policy") + 1] == "noeviction"
    memory = int(args[args.index("--maxmemory") + 1].removesuffix("mb"))
    assert Settings().max_store_bytes < memory * 1024**2 <= 1024**3 / 2
    assert SERVER["resources"]["limits"]["memory"] == "1Gi"
    [mount], [claim] = SERVER["volumeMounts"], VALKEY["StatefulSet"]["volumeClaimTemplates"]
    assert (mount["name"], mount["mountPath"]) == (claim["metadata"]["name"], args[args.index("--dir") + 1])
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())
    assert compose["services"]["valkey"]["image"] == SERVER["image"]
