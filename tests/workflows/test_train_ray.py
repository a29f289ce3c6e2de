"""The driver of a Ray cluster: what it does when workers and nodes end, and which results it accepts."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from tests.jobs import make_job
from tests.test_model_cache import put_in_cache
from unziplora_cli.cli._errors import hint
from unziplora_cli.errors import ModelError, ProjectError, UnziploraError, UsageError
from unziplora_cli.events import Notice
from unziplora_cli.job import to_json
from unziplora_cli.projects.store import ProjectStore
from unziplora_cli.sdxl.base import BaseRef, resolve_base
from unziplora_cli.training.request import TrainRequest
from unziplora_cli.workflows import train_ray
from unziplora_cli.workflows.train import TrainedProject
from unziplora_cli.workflows.train_ray import Cluster, Delivery, TrainingEnds

IDENTITY = ("revision", "sha256:0")


class Lost(Exception):
    """What Ray raises for the result of a worker that has ended."""


class FakeRay:
    """Nodes that train at once, and end as a script says: `work` gets the node and the job of a training."""

    def __init__(self, nodes: Mapping[str, Mapping[str, int]], work: Callable[["FakeRay", str, str], Any]):
        self.alive = dict(nodes)
        self.work = work
        self.used: list[str] = []
        self.reports: dict[str, Any] = {}
        self.exceptions = SimpleNamespace(RayError=Lost)
        strategy = SimpleNamespace(NodeAffinitySchedulingStrategy=lambda node, soft: node)
        self.util = SimpleNamespace(scheduling_strategies=strategy)

    def nodes(self) -> list[dict[str, Any]]:
        return [
            {"NodeID": node, "Alive": True, "Resources": resources, "NodeManagerHostname": node}
            for node, resources in self.alive.items()
        ]

    def remote(self, **claims: Any) -> Callable[[Any], Any]:
        def on(node: str) -> Any:
            def later(answer: Callable[..., Any]) -> Any:
                return SimpleNamespace(remote=lambda *arguments: lambda: answer(*arguments))

            def train(job: bytes, images: Mapping[str, bytes]) -> Any:
                self.used.append(node)
                return self.work(self, node, job.decode())

            worker = SimpleNamespace(ready=later(lambda: None), train=later(train))
            report = self.reports.get(node, (HERE, IDENTITY, ""))
            return lambda *arguments: worker if "num_gpus" in claims else lambda: report

        return lambda target: SimpleNamespace(
            options=lambda scheduling_strategy: SimpleNamespace(remote=on(scheduling_strategy))
        )

    def wait(self, calls: list[Any], timeout: float, num_returns: int = 1) -> tuple[list[Any], list[Any]]:
        return calls[:num_returns], calls[num_returns:]

    def get(self, call: Callable[[], Any], timeout: float | None = None) -> Any:
        return call()

    def put(self, value: Any) -> Callable[[], Any]:
        return lambda: value

    def init(self, *arguments: Any, **options: Any) -> None:
        pass

    def shutdown(self) -> None:
        self.alive.clear()


HERE = {"unziplora": train_ray.unziplora_cli.__version__, "torch": train_ray.version("torch").split("+")[0]}


@pytest.fixture
def delivered(make_project):
    """Four requests by number, and what a node delivers for each name."""
    requests, deliveries = {}, {}
    for number, name in enumerate(("fox", "rose", "owl", "cat")):
        project = make_project(name)
        requests[number] = TrainRequest(project.job, None, (project.folder / "source.png",))
        deliveries[name] = train_ray.pack(TrainedProject(project, 90.5, 0.1))
    return requests, deliveries


def connect(ray: FakeRay, monkeypatch: pytest.MonkeyPatch) -> tuple[Cluster, list[str]]:
    monkeypatch.setattr(train_ray, "load_ray", lambda: ray)
    monkeypatch.setattr(BaseRef, "identity", lambda base: IDENTITY)
    base = BaseRef("mini", "builtin", "mini", Path(), None, None, "sha256:0")
    connecting, notices = Cluster.connect("auto", base, None, "auto"), []
    while True:
        try:
            notices.append(next(connecting).text)
        except StopIteration as end:
            return end.value, notices


def ended(cluster: Cluster, requests: Mapping[int, TrainRequest], store: ProjectStore) -> tuple[dict, list]:
    """The results by number, each of which must come once, and the notices."""
    results, notices = {}, []
    for event in cluster.train(requests, store):
        if isinstance(event, TrainingEnds):
            assert event.index not in results
            results[event.index] = event.result
        elif isinstance(event, Notice):
            notices.append(event.text)
    return results, notices


def test_what_a_lost_worker_or_node_had_is_trained_again_and_written_once(delivered, tmp_path, monkeypatch):
    requests, deliveries = delivered
    losses = {"fox": 2, "rose": 1}

    def work(ray: FakeRay, node: str, job: str) -> Delivery:
        name = next(name for name in deliveries if f'"name": "{name}"' in job)
        if losses.get(name, 0):
            losses[name] -= 1
            if name == "rose":
                del ray.alive[node]
                ray.alive["new"] = {"CPU": 1}
            raise Lost("gone")
        return deliveries[name]

    ray = FakeRay({"a": {"CPU": 1}, "b": {"CPU": 1}}, work)
    cluster, _ = connect(ray, monkeypatch)
    store = ProjectStore(tmp_path)
    results, notices = ended(cluster, requests, store)
    assert {index: type(result) for index, result in results.items()} == dict.fromkeys(
        range(4), TrainedProject
    )
    assert store.names() == ["cat", "fox", "owl", "rose"]
    assert not any(store.verify(name).problems for name in store.names())
    assert sum("is trained again" in text for text in notices) == 2
    assert sum("is gone" in text for text in notices) == 1
    assert len(ray.used) == 7


def test_an_image_that_ends_every_worker_is_given_up_and_the_others_go_on(delivered, tmp_path, monkeypatch):
    requests, deliveries = delivered

    def work(ray: FakeRay, node: str, job: str) -> Any:
        if '"name": "fox"' in job:
            raise Lost("killed by the kernel")
        return ValueError("no fox") if '"name": "owl"' in job else deliveries["rose"]

    requests[3].images[0].unlink()
    ray = FakeRay({"a": {"CPU": 4}}, work)
    results, _ = ended(connect(ray, monkeypatch)[0], requests, ProjectStore(tmp_path))
    assert isinstance(results[1], TrainedProject)
    assert str(results[0]) == f"Its worker ended {train_ray.CRASHES} times: killed by the kernel"
    assert str(results[2]) == "no fox"
    assert isinstance(results[3], FileNotFoundError)
    assert len(ray.used) == 2 + train_ray.CRASHES


def test_without_a_node_it_ends_instead_of_waiting(delivered, tmp_path, monkeypatch):
    requests, deliveries = delivered

    def work(ray: FakeRay, node: str, job: str) -> Any:
        if '"name": "fox"' in job:
            return deliveries["fox"]
        ray.alive.clear()
        raise Lost("gone")

    cluster, _ = connect(FakeRay({"a": {"CPU": 1}}, work), monkeypatch)
    with pytest.raises(ModelError, match="No node is left that can train; 1 of 4 images are done"):
        ended(cluster, requests, ProjectStore(tmp_path))
    assert ProjectStore(tmp_path).names() == ["fox"]


def test_only_nodes_with_the_same_base_get_images_and_those_with_gpus_if_there_are_any(
    delivered, tmp_path, monkeypatch
):
    requests, deliveries = delivered

    def work(ray: FakeRay, node: str, job: str) -> Delivery:
        return deliveries[next(name for name in deliveries if f'"name": "{name}"' in job)]

    gpu = {"CPU": 8, "GPU": 1}
    ray = FakeRay({"head": {"CPU": 8}, "bare": gpu, "good": gpu, "other": gpu}, work)
    ray.reports["bare"] = (HERE, None, "The base mini is not on this disk.")
    ray.reports["other"] = (HERE, ("revision", "sha256:1"), "")
    cluster, notices = connect(ray, monkeypatch)
    assert [text.split()[2] for text in notices] == ["bare", "other"]
    results, _ = ended(cluster, requests, ProjectStore(tmp_path))
    assert len(results) == 4
    assert set(ray.used) == {"good"}


def test_other_versions_are_refused_with_the_difference(monkeypatch):
    ray = FakeRay({"a": {"CPU": 1}, "b": {"CPU": 1}}, lambda *_: None)
    ray.reports["b"] = ({**HERE, "torch": "1.0"}, IDENTITY, "")
    with pytest.raises(UsageError, match=r"The node b \(b\) has other versions: torch is 1.0, was"):
        connect(ray, monkeypatch)
    assert not ray.alive  # the connection is closed
    ray = FakeRay({"a": {"CPU": 1}}, lambda *_: None)
    ray.reports["a"] = (HERE, None, "The base mini is not on this disk.")
    with pytest.raises(ModelError, match="No node of the cluster can train on mini: The base mini is not"):
        connect(ray, monkeypatch)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"../evil": b""}, "outside the project"),
        ({"/tmp/evil": b""}, "outside the project"),
        ({"content.safetensors": b"changed"}, "content.safetensors has 7 bytes instead of"),
        ({"style.safetensors": None}, "style.safetensors is missing"),
        ({"manifest.json": None}, "manifest.json"),
    ],
)
def test_what_arrives_damaged_leaves_nothing(delivered, tmp_path, change, message):
    requests, deliveries = delivered
    arrived = {**deliveries["fox"].files, **change}
    arrived = {name: data for name, data in arrived.items() if data is not None}
    store = ProjectStore(tmp_path)
    with pytest.raises((ProjectError, ValueError), match=message):
        train_ray.unpack(Delivery(arrived, 0.1), requests[0], store)
    assert store.names() == []
    assert list(store.folder.iterdir()) == []
    with pytest.raises(ProjectError, match="it is another training"):
        train_ray.unpack(deliveries["rose"], replace(requests[0]), store)


def test_a_project_that_exists_meanwhile_is_not_replaced(delivered, tmp_path):
    requests, deliveries = delivered
    store = ProjectStore(tmp_path)
    train_ray.unpack(deliveries["fox"], requests[0], store)
    with pytest.raises(ProjectError, match="already exists"):
        train_ray.unpack(deliveries["fox"], requests[0], store)
    train_ray.unpack(deliveries["fox"], replace(requests[0], replaces=True), store)


def test_class_images_of_this_machine_are_refused(tmp_path):
    job = make_job()
    job = replace(job, settings=replace(job.config, prior_content=str(tmp_path)))
    with pytest.raises(UsageError, match="Folders of class images are on this machine"):
        train_ray.parcel_of(TrainRequest(job, None, ()))


def test_without_ray_the_extra_to_install_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UnziploraError) as caught:
        train_ray.load_ray()
    assert "unziplora[ray]" in hint(caught.value)


def test_a_node_reports_its_versions_and_its_base(monkeypatch):
    report, mini = train_ray.make_reporter(), resolve_base("mini", offline=True)[0]
    record = mini.record()
    assert report(to_json(record), None) == (HERE, mini.identity(), "")
    versions, identity, problem = report(to_json(replace(record, hash="sha256:0")), None)
    assert (versions, identity, problem) == (
        HERE,
        None,
        "The base mini is another one than where the command runs.",
    )
    missing = replace(record, spec="owner/none", kind="hub", id="owner/none", revision="1" * 40)
    assert "is not on this disk" in report(to_json(missing), None)[2]
    monkeypatch.setattr(train_ray.unziplora_cli, "__version__", "0.0.1")
    assert report(to_json(record), None)[0]["unziplora"] == "0.0.1"


# With Ray itself

PICTURES = 12
OPTIONS = ("--subject=fox", "--style=ink", "--base=owner/tiny", "--destyle-images=0", "--resolution=64")
STEPS = ("--rank=4", "--steps=6", "--recalibrations=2", "--importance-steps=1", "--device=cpu")


@pytest.fixture
def nodes(tiny_base, isolated_home) -> Iterator[Any]:
    """A cluster of three node processes with a CPU each."""
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    files = [path for path in tiny_base.rglob("*") if path.is_file()]
    put_in_cache(
        "owner/tiny", "1" * 40, {path.relative_to(tiny_base).as_posix(): path.read_bytes() for path in files}
    )
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", OMP_NUM_THREADS="1")
    cluster = cluster_utils.Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    cluster.workers = [cluster.add_node(num_cpus=1) for _ in range(2)]
    yield cluster
    cluster.shutdown()


def start(cluster: Any, folder: Path) -> "subprocess.Popen[str]":
    words = ("train", str(folder), *OPTIONS, *STEPS, "--ray", cluster.address)
    return subprocess.Popen(
        [sys.executable, "-m", "unziplora_cli", *words],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def read_until(driver: "subprocess.Popen[str]", text: str, times: int = 1) -> None:
    """Read what the driver says until a text came so often."""
    assert driver.stderr is not None
    lines = []
    for line in driver.stderr:
        lines.append(line)
        times -= text in line
        if not times:
            return
    pytest.fail(f"The driver ended with {driver.wait()}: {''.join(lines)}")


def worker_of(node: Any) -> psutil.Process:
    """The process that trains on a node."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    return next(child for child in raylet.children(recursive=True) if "ray::Worker" in child.name())


@pytest.mark.slow
def test_all_images_end_complete_once_whatever_is_killed(nodes, isolated_home, tmp_path):
    from PIL import Image

    for number in range(PICTURES):
        image = Image.linear_gradient("L").resize((96, 80)).rotate(30 * number)
        image.save(tmp_path / f"p{number:02}.png")
    nodes.add_node(num_cpus=8, env_vars={"HF_HUB_CACHE": str(tmp_path / "empty")})
    store = ProjectStore(isolated_home)

    with start(nodes, tmp_path) as driver:
        read_until(driver, "The base owner/tiny is not on this disk")
        read_until(driver, "trained", times=2)
        worker_of(nodes.workers[0]).kill()
        read_until(driver, "its image is trained again")
        nodes.remove_node(nodes.workers[1], allow_graceful=False)
        read_until(driver, "is gone")
        read_until(driver, "trained", times=1)
        driver.kill()
    complete = {name: store.open(name).manifest for name in store.names()}
    assert 3 <= len(complete) < PICTURES

    with start(nodes, tmp_path) as driver:
        read_until(driver, f"{len(complete) + 1}/{PICTURES}")
        driver.send_signal(2)
        assert driver.wait() == 130
        assert "images are complete." in driver.stderr.read()

    with start(nodes, tmp_path) as driver:
        out, err = driver.communicate()
    assert driver.returncode == 0, err
    assert "0 failed" in out
    assert store.names() == [f"p{number:02}" for number in range(PICTURES)]
    assert not any(store.verify(name).problems for name in store.names())
    assert {name: store.open(name).manifest for name in complete} == complete
    assert not [path.name for path in store.folder.iterdir() if path.name.startswith(".")]
