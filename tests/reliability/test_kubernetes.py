"""The Kubernetes and KServe manifests, against the API's schemas and against each other."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

TREE = Path(__file__).resolve().parents[2]
FOLDER = TREE / "docker" / "kubernetes"
VERSIONS = ("1.29", "1.32", "1.37")
PLAIN = sorted(
    path
    for path in FOLDER.glob("*.yaml")
    if path.name not in ("kustomization.yaml", "prometheus-adapter.yaml")
)
# The fields that KServe's OpenAPI (0.21) gives these objects, which kubernetes-validate lacks; pod
# fields inside them are checked against Kubernetes' own schema below.
RUNTIME_FIELDS = {
    "affinity", "annotations", "builtInAdapter", "containers", "disabled", "grpcDataEndpoint",
    "grpcEndpoint", "hostIPC", "httpDataEndpoint", "imagePullSecrets", "labels", "multiModel",
    "nodeSelector", "protocolVersions", "replicas", "resourceClaims", "schedulerName",
    "storageHelper", "supportedModelFormats", "tolerations", "volumes", "workerSpec",
}  # fmt: skip
FORMAT_FIELDS = {"autoSelect", "name", "priority", "version"}
MODEL_FIELDS = {"modelFormat", "runtime", "protocolVersion", "storageUri", "storage", "env", "args",
                "resources", "image", "name", "volumeMounts"}  # fmt: skip


def documents(path: Path) -> list[dict[str, object]]:
    return [d for d in yaml.safe_load_all(path.read_text()) if d]


def everything() -> list[dict[str, object]]:
    return [d for path in PLAIN for d in documents(path)]


def of_kind(kind: str) -> list[dict[str, object]]:
    return [d for d in everything() if d["kind"] == kind]


def containers() -> list[tuple[str, dict[str, object]]]:
    found = []
    for deployment in of_kind("Deployment"):
        spec = deployment["spec"]["template"]["spec"]
        for container in [*spec["initContainers"], *spec["containers"]]:
            found.append((f"{deployment['metadata']['name']}/{container['name']}", container))
    return found


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "path",
    [*PLAIN, FOLDER / "kserve" / "scaling.yaml", FOLDER / "kserve" / "network-policy.yaml"],
    ids=lambda p: f"{p.parent.name}/{p.name}",
)
def test_schema(path: Path, version: str) -> None:
    for document in documents(path):
        kubernetes_validate.validate(document, version, strict=True)


def test_the_validator_notices_a_wrong_field() -> None:
    broken = of_kind("Deployment")[0]
    broken["spec"]["template"]["spec"]["containers"][0]["livenessProb"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, VERSIONS[-1], strict=True)


def test_everything_needed_is_there() -> None:
    kinds = [d["kind"] for d in everything()]
    for kind, count in {
        "Deployment": 2, "Service": 1, "PodDisruptionBudget": 2, "HorizontalPodAutoscaler": 2,
        "NetworkPolicy": 1, "PersistentVolumeClaim": 1, "ServiceAccount": 1,
    }.items():  # fmt: skip
        assert kinds.count(kind) == count, kind
    (service,) = of_kind("Service")
    assert service["spec"]["clusterIP"] == "None"
    listed = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["resources"]
    assert all((FOLDER / name).is_file() for name in listed)


def test_objects_fit_together() -> None:
    (service,), (policy,) = of_kind("Service"), of_kind("NetworkPolicy")
    deployments = {d["metadata"]["name"]: d for d in of_kind("Deployment")}
    claims = {c["metadata"]["name"] for c in of_kind("PersistentVolumeClaim")}
    for deployment in deployments.values():
        template = deployment["spec"]["template"]
        labels = template["metadata"]["labels"].items()
        assert deployment["spec"]["selector"]["matchLabels"].items() <= labels
        assert service["spec"]["selector"].items() <= labels
        assert policy["spec"]["podSelector"]["matchLabels"].items() <= labels
        volumes = {v["name"]: v for v in template["spec"]["volumes"]}
        for container in [*template["spec"]["initContainers"], *template["spec"]["containers"]]:
            assert {m["name"] for m in container["volumeMounts"]} <= set(volumes)
        for volume in volumes.values():
            claim = volume.get("persistentVolumeClaim")
            assert claim is None or claim["claimName"] in claims
        ports = {p["name"] for c in template["spec"]["containers"] for p in c["ports"]}
        assert {p["targetPort"] for p in service["spec"]["ports"]} <= ports
    for budget in of_kind("PodDisruptionBudget"):
        wanted = budget["spec"]["selector"]["matchLabels"]
        assert (
            sum(wanted == d["spec"]["selector"]["matchLabels"] for d in deployments.values()) == 1
        )
    adapter = yaml.safe_load((FOLDER / "prometheus-adapter.yaml").read_text())
    offered = {rule["name"]["as"] for rule in adapter["rules"]["custom"]}
    for scaler in of_kind("HorizontalPodAutoscaler"):
        assert scaler["spec"]["scaleTargetRef"]["name"] in deployments
        used = {metric["pods"]["metric"]["name"] for metric in scaler["spec"]["metrics"]}
        assert used == offered


@pytest.mark.parametrize(
    ("name", "container"), containers(), ids=lambda v: v if type(v) is str else ""
)
def test_containers_may_do_nothing_they_need_not(name: str, container: dict[str, object]) -> None:
    security = container["securityContext"]
    assert security["readOnlyRootFilesystem"] is True
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert "memory" in container["resources"]["limits"]
    assert not container["image"].endswith(":latest")


def test_pods_run_as_nobody_and_die_slowly_enough() -> None:
    for deployment in of_kind("Deployment"):
        spec = deployment["spec"]["template"]["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        (triton,) = spec["containers"]
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            # An inference, not Triton's own health.
            assert triton[probe]["exec"]["command"] == ["nima-entrypoint", "health"]
        drain = int(triton["lifecycle"]["preStop"]["exec"]["command"][1])
        (flag,) = [a for a in triton["args"] if a.startswith("--exit-timeout-secs=")]
        assert drain + int(flag.partition("=")[2]) < spec["terminationGracePeriodSeconds"]
        assert "--allow-http=false" in triton["args"]
        # The autoscaler's: applying the file again must not take its pods away.
        assert "replicas" not in deployment["spec"]
    (policy,) = of_kind("NetworkPolicy")
    assert policy["spec"]["egress"] == []


def test_the_image_has_what_the_manifests_call() -> None:
    entrypoint = (TREE / "docker" / "entrypoint.sh").read_text()
    dockerfile = (TREE / "docker" / "server.Dockerfile").read_text()
    compose = (TREE / "docker" / "compose.yaml").read_text()
    for command in ("serve)", "health)", "build)"):
        assert command in entrypoint
    assert "/opt/nima/model_repository" in dockerfile
    assert "nima-entrypoint" in dockerfile
    images = {container["image"] for _, container in containers()}
    assert len(images) == 1
    assert images.pop() in compose


class EngineContainer:
    """The script of the init container that builds the engine, with folders of ours."""

    def __init__(self, folder: Path) -> None:
        (script,) = dict(containers())["nima-gpu/engine"]["args"]
        self.network, self.engines, self.commands = (
            folder / name for name in ("models", "engines", "bin")
        )
        self.stubs = {
            "nvidia-smi": "echo 9.0",
            "python3": "echo 10.11",
            "nima-entrypoint": f"cd {self.network}; for f in model.plan model.plan.json; do "
            "[ -f $f ] || echo built here >$f; done",
        }
        for made in (self.network, self.engines, self.commands):
            made.mkdir()
        (self.network / "model.onnx").touch()
        self.script = script.replace("/models/nima_network/1", str(self.network)).replace(
            "/engines", str(self.engines)
        )

    def start(self, **more: str) -> int:
        """The exit status, with more commands in the place of the system's."""
        for name, text in {**self.stubs, **more}.items():
            (self.commands / name).write_text(f"#!/bin/sh\n{text}\n")
            (self.commands / name).chmod(0o755)
        path = f"{self.commands}{os.pathsep}{os.environ['PATH']}"
        command = ["bash", "-euo", "pipefail", "-c", self.script]
        done = subprocess.run(command, env={"PATH": path}, timeout=30, capture_output=True)
        return done.returncode

    def kept(self) -> str:
        """What the one engine on the claim says."""
        (cache,) = self.engines.iterdir()
        assert {file.name for file in cache.iterdir()} == {"model.plan", "model.plan.json"}
        return (cache / "model.plan").read_text()


def test_engines_are_kept_once_whichever_pod_comes_first(tmp_path: Path) -> None:
    container = EngineContainer(tmp_path)
    # The other pod has put its own there just before.
    other = (
        'for to; do :; done; mkdir "$to"; echo theirs | tee "$to/model.plan" >"$to/model.plan.json"'
    )
    assert container.start(mv=f'{other}; exec /bin/mv "$@"') == 0
    assert container.kept() == "theirs\n"
    for file in container.network.glob("model.plan*"):
        file.unlink()
    (container.commands / "mv").unlink()
    assert container.start() == 0
    assert container.kept() == "theirs\n"
    assert (container.network / "model.plan").read_text() == "theirs\n"


def test_what_a_killed_pod_left_beside_the_engines_is_removed(tmp_path: Path) -> None:
    """But what another pod may be writing just now, and what cannot be removed, stops nobody."""
    container = EngineContainer(tmp_path)
    assert container.start(cp="kill -9 $PPID") == -signal.SIGKILL
    (left,) = container.engines.iterdir()
    (container.commands / "cp").unlink()
    replaced = container.engines / "0123456789abcdef-8.9-10.9.old"
    replaced.mkdir()
    for folder in (left, replaced):
        os.utime(folder, (time.time() - 7200,) * 2)
    in_use = container.engines / "partial.abcdef"
    in_use.mkdir()
    assert container.start() == 0
    in_use.rmdir()
    assert container.kept() == "built here\n"
    left.mkdir()
    os.utime(left, (0, 0))
    refuses = 'case "$*" in *partial.*) exit 1;; esac; exec /bin/rm "$@"'
    assert container.start(rm=refuses) == 0


def test_kserve() -> None:
    (runtime,) = documents(FOLDER / "kserve" / "serving-runtime.yaml")
    (service,) = documents(FOLDER / "kserve" / "inference-service.yaml")
    assert (runtime["apiVersion"], runtime["kind"]) == (
        "serving.kserve.io/v1alpha1",
        "ServingRuntime",
    )
    assert (service["apiVersion"], service["kind"]) == (
        "serving.kserve.io/v1beta1",
        "InferenceService",
    )
    spec, predictor = runtime["spec"], service["spec"]["predictor"]
    assert set(spec) <= RUNTIME_FIELDS
    assert all(set(f) <= FORMAT_FIELDS for f in spec["supportedModelFormats"])
    assert set(predictor["model"]) <= MODEL_FIELDS
    assert predictor["model"]["runtime"] == runtime["metadata"]["name"]
    assert predictor["model"]["modelFormat"]["name"] in {
        f["name"] for f in spec["supportedModelFormats"]
    }
    assert predictor["model"]["protocolVersion"] in spec["protocolVersions"]
    # KServe names the Deployment so, and labels its pods so.
    budget, scaler = documents(FOLDER / "kserve" / "scaling.yaml")
    name = service["metadata"]["name"]
    assert scaler["spec"]["scaleTargetRef"]["name"] == f"{name}-predictor"
    assert budget["spec"]["selector"]["matchLabels"] == {"serving.kserve.io/inferenceservice": name}
    assert scaler["spec"]["metrics"] == of_kind("HorizontalPodAutoscaler")[0]["spec"]["metrics"]
    (policy,) = documents(FOLDER / "kserve" / "network-policy.yaml")
    (plain,) = of_kind("NetworkPolicy")
    assert policy["spec"]["podSelector"] == budget["spec"]["selector"]
    assert policy["spec"]["egress"] == []
    assert [r["from"] for r in policy["spec"]["ingress"]] == [
        r["from"] for r in plain["spec"]["ingress"]
    ]
    (port,) = spec["containers"][0]["ports"]
    assert policy["spec"]["ingress"][0]["ports"][0]["port"] == port["containerPort"]
    # What both hand to the pod is a pod's.
    pod_fields = {k: v for k, v in predictor.items() if k not in ("model", "minReplicas")}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "nima"},
        "spec": {"containers": spec["containers"], "volumes": spec["volumes"], **pod_fields},
    }
    kubernetes_validate.validate(pod, VERSIONS[-1], strict=True)
    (triton,) = spec["containers"]
    assert triton["name"] == "kserve-container"
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert triton[probe]["exec"]["command"] == ["nima-entrypoint", "health"]
    drain = int(triton["lifecycle"]["preStop"]["exec"]["command"][1])
    (flag,) = re.findall(r"--exit-timeout-secs=(\d+)", triton["args"][0])
    assert drain + int(flag) < predictor["terminationGracePeriodSeconds"]
