"""Train images on the machines of a Ray cluster: Ray starts workers, this process alone writes projects.

The driver asks every node for its versions and its base, and starts a worker on each GPU (or CPU) of those
that can train. A worker keeps the base loaded, and trains one image at a time in a folder of its own. Images
and finished projects travel as bytes, so that no disk is shared.
"""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from tempfile import gettempdir
from typing import TYPE_CHECKING, Any, cast

import unziplora_cli
from unziplora_cli import files
from unziplora_cli.errors import ModelError, ProjectError, Remedy, UnziploraError, UsageError, first_line
from unziplora_cli.events import Notice, run
from unziplora_cli.job import BaseRecord, Job, differences, from_json, relative_path, to_json
from unziplora_cli.projects import manifest
from unziplora_cli.projects.store import ProjectStore
from unziplora_cli.projects.verify import verify
from unziplora_cli.training.request import TrainRequest
from unziplora_cli.workflows.train import (
    TrainedProject,
    input_cache_for,
    recorded_base,
    recorded_request,
    train,
)

if TYPE_CHECKING:
    from unziplora_cli.sdxl.base import BaseRef

WAIT = 2.0
"""Seconds after which the driver looks whether nodes have come or gone."""
LATE, ANSWER_WITHIN = 60.0, 600.0
"""Seconds to wait for what all nodes have, and for the first one that can train: busy machines are slow."""
WRITERS = 4
"""Results that are written at a time: while one is flushed, the hashes of another are computed."""
CRASHES = 3
"""An image whose worker ends this often while its node goes on is given up."""

NodeReport = tuple[dict[str, str], tuple[str, str] | None, str]
"""What a node says of itself: versions of packages, and the identity of its base or what is wrong with it."""


@dataclass(frozen=True)
class Delivery:
    """A finished project: its files as arrays of bytes, by name."""

    files: Mapping[str, Any]
    seconds_per_step: float


@dataclass(frozen=True)
class TrainingBegins:
    """The training of ``name`` begins."""

    name: str


@dataclass(frozen=True)
class TrainingEnds:
    """The training of request ``index`` ended: with a project, or an error; None: another process has it.

    A text says how a project that was finished before differs from the request.
    """

    index: int
    result: TrainedProject | Exception | str | None


# On the nodes


def make_reporter() -> Callable[[bytes, str | None], NodeReport]:
    """The function that a node reports with.

    As a function in a function it travels as code, and so runs on nodes with another version, or without one.
    """

    def report(record: bytes, vae: str | None) -> NodeReport:
        from importlib.metadata import PackageNotFoundError, version

        versions = {}
        try:
            import unziplora_cli

            versions["unziplora"] = unziplora_cli.__version__
            versions["torch"] = version("torch").partition("+")[0]  # builds for other devices are the same
            from unziplora_cli.job import BaseRecord, from_json
            from unziplora_cli.workflows import train_ray

            base = train_ray.base_here(from_json(BaseRecord, record, "base"), vae)
        except (ImportError, PackageNotFoundError):
            return versions, None, "unziplora or torch cannot be imported."
        except unziplora_cli.errors.UnziploraError as error:
            return versions, None, error.message
        return versions, base.identity(), ""

    return report


def base_here(record: BaseRecord, vae: str | None) -> BaseRef:
    """The base of a job on this machine; raises ModelError if it is missing or another one."""
    base = recorded_base(record, vae)
    if base.fingerprint != record.hash:
        raise ModelError(f"The base {record.spec} is another one than where the command runs.")
    return base


class Worker:
    """Trains one image after the other; the models of the last one stay loaded. Runs as an actor of Ray."""

    def __init__(self) -> None:
        self.models: object = None
        self.cache = input_cache_for([])

    def ready(self) -> None:
        """Answer once this process has started."""

    def train(self, job: bytes, images: Mapping[str, bytes]) -> Delivery | Exception:
        """The finished project of a job in JSON with its images by name, or the error of its training."""
        try:
            return self._train(from_json(Job, job, "job"), images)
        except UnziploraError as error:
            return error.with_traceback(None)
        except Exception as error:  # its class may not exist where the result arrives
            self.models = None
            return RuntimeError(f"{type(error).__name__}: {error}")

    def _train(self, job: Job, contents: Mapping[str, bytes]) -> Delivery:
        from unziplora_cli.workflows.train_many import models_of

        base = base_here(job.base, job.vae)
        with files.temporary_folder(Path(gettempdir())) as scratch:
            for name, data in contents.items():
                write_inside(scratch, name, data)
            request = recorded_request(job, base, scratch)
            if (models := models_of(request)) != self.models or job.config.destyle == "edit":
                self.models, self.cache = models, input_cache_for([])
            self.cache.expect([request])
            trained = run(train(request, ProjectStore(scratch / "home"), self.cache))
            assert trained is not None
            return pack(trained)


def pack(trained: TrainedProject) -> Delivery:
    """All files of a project as arrays, which Ray moves without copying."""
    import numpy as np

    folder = trained.project.folder
    return Delivery(
        {
            path.relative_to(folder).as_posix(): np.fromfile(path, np.uint8)
            for path in sorted(folder.rglob("*"))
            if path.is_file() and not path.is_symlink()
        },
        trained.seconds_per_step,
    )


# On the driver


def load_ray() -> Any:
    """Ray, without usage statistics unless the user asks for them; raises UsageError if it is missing."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise UsageError(
            "Training on the machines of a cluster needs the package ray, which is not installed.",
            Remedy(extra="ray"),
        ) from error
    return ray


@dataclass(eq=False)
class _Call:
    """What a worker, or a node without one, is doing: the training of request ``index``, or starting."""

    node: str
    worker: Any = None
    index: int | None = None


@dataclass
class Cluster:
    """The connection to a Ray cluster whose nodes train on one base."""

    ray: Any
    record: BaseRecord
    vae: str | None
    identity: tuple[str, str]
    on_gpu: bool | None
    """None: on GPUs if any node has one."""
    workers: dict[str, int] = field(default_factory=dict)
    """How many trainings a node can run at a time, by its id; 0 for one that cannot train."""
    calls: dict[Any, _Call] = field(default_factory=dict)
    idle: list[_Call] = field(default_factory=list)

    @classmethod
    def connect(
        cls, address: str, base: BaseRef, vae: str | None, device: str
    ) -> Generator[Notice, None, Cluster]:
        """Join the cluster at ``address``, or start one on this machine (``local``), and ask all nodes.

        Raises UsageError if there is no cluster or its versions differ, ModelError if no node has the base.
        """
        if device not in ("auto", "cpu", "cuda"):
            raise UsageError(f"Ray chooses the GPU, so the device cannot be {device}.", Remedy("Use cuda."))
        ray = load_ray()
        local = {"_node_ip_address": "127.0.0.1", "include_dashboard": False} if address == "local" else {}
        try:
            ray.init(address, log_to_driver=False, logging_level="ERROR", **local)
        except (ConnectionError, RuntimeError, ValueError, AssertionError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UsageError(
                f"There is no cluster to use at {address!r}: {reason}",
                Remedy("Join the cluster on this machine first, or train on this machine alone with local."),
            ) from error
        on_gpu = None if device == "auto" else device == "cuda"
        cluster = cls(ray, base.record(), vae, base.identity(), on_gpu)
        try:
            yield from cluster._ask_all()
        except BaseException:
            cluster.close()
            raise
        return cluster

    def close(self) -> None:
        """Stop all workers, and a cluster that was started on this machine."""
        self.calls.clear()
        self.idle.clear()
        self.ray.shutdown()  # workers belong to this process, and end with it

    def train(
        self, requests: Mapping[int, TrainRequest], store: ProjectStore
    ) -> Generator[Notice | TrainingBegins | TrainingEnds, None, None]:
        """Train all ``requests``, each until it is delivered once; a lost worker's image is trained anew.

        Raises ModelError when all nodes that can train are gone.
        """
        waiting, crashes, done = deque(requests), Counter[int](), 0
        writing: dict[Future[list[Notice | TrainingEnds]], int] = {}
        with ThreadPoolExecutor(WRITERS) as writers:
            while done < len(requests):
                alive = self._alive()
                self._ask(alive)
                self._start_workers(alive, len(waiting))
                if not self.calls and not writing:
                    raise ModelError(
                        f"No node is left that can train; {done} of {len(requests)} images are done.",
                        Remedy("Run the same command again once there is one: it continues."),
                    )
                ready = self.ray.wait(list(self.calls), timeout=WAIT)[0] if self.calls else []
                for reference in ready:
                    index, answer = yield from self._answer(reference, waiting, crashes)
                    while waiting and self.idle:  # before the result is written: no worker waits for the disk
                        begins = waiting.popleft()
                        self._assign(begins, requests[begins])
                        yield TrainingBegins(requests[begins].job.name)
                    if index is not None:
                        writing[writers.submit(keep, index, answer, requests[index], store)] = index
                    del answer, reference  # they keep the files of the project in memory
                full = not self.calls or len(writing) > WRITERS
                for future in wait(writing, WAIT if full else 0.0, FIRST_COMPLETED).done:
                    del writing[future]
                    done += 1
                    yield from future.result()

    def _answer(
        self, reference: Any, waiting: deque[int], crashes: Counter[int]
    ) -> Generator[Notice, None, tuple[int | None, Delivery | Exception | None]]:
        """The request that has a result, and that result; an image whose worker ended is waiting again."""
        call = self.calls.pop(reference)
        index, call.index = call.index, None
        try:
            answer = self.ray.get(reference)
        except self.ray.exceptions.RayError as error:
            yield from self._lost(call, index, error)
            if index is None:
                return None, None
            crashes[index] += call.node in self._alive()
            if crashes[index] < CRASHES:
                waiting.appendleft(index)
                return None, None
            return index, UnziploraError(
                f"Its worker ended {CRASHES} times: {first_line(error)}",
                Remedy("Look into the logs of Ray on that node."),
            )
        if call.worker is None:
            yield from self._accept(call.node, answer)
        else:
            self.idle.append(call)
        return index, answer

    def _assign(self, index: int, request: TrainRequest) -> None:
        """Let an idle worker train a request; images that cannot be read are its result."""
        call = self.idle.pop()
        call.index = index
        try:
            reference = call.worker.train.remote(*parcel_of(request))
        except (OSError, UnziploraError) as error:
            reference = self.ray.put(error)
        self.calls[reference] = call

    def _alive(self) -> dict[str, Mapping[str, Any]]:
        return {node["NodeID"]: node for node in self.ray.nodes() if node["Alive"]}

    def _on(self, node: str) -> Any:
        """The scheduling strategy that runs something on ``node`` and nowhere else."""
        return self.ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=False)

    def _ask(self, alive: Mapping[str, Mapping[str, Any]]) -> None:
        """Ask nodes that have joined what they have."""
        for node in alive:
            if node not in self.workers:
                self.workers[node] = 0
                task = self.ray.remote(num_cpus=0, max_retries=0)(make_reporter())
                options = task.options(scheduling_strategy=self._on(node))
                self.calls[options.remote(to_json(self.record), self.vae)] = _Call(node)

    def _ask_all(self) -> Generator[Notice, None, None]:
        """Ask all nodes at the start; one that answers late joins later, unless no other one can train."""
        self._ask(self._alive())
        began, problems = time.monotonic(), ["there is none, or none has a GPU."]
        while self.calls and (waited := time.monotonic() - began) < ANSWER_WITHIN:
            if any(self.workers.values()) and waited > LATE:
                break
            for reference in self.ray.wait(list(self.calls), timeout=WAIT)[0]:
                node = self.calls.pop(reference).node
                try:
                    answer = self.ray.get(reference)
                except self.ray.exceptions.RayError as error:
                    problems.append(f"{self._label(node)} does not answer: {first_line(error)}")
                    yield Notice(f"{problems[-1]} It trains nothing.")
                    continue
                if different := differing(answer[0]):
                    raise UsageError(
                        f"The node {self._label(node)} has other versions: {different}.",
                        Remedy("Install the same versions on all machines."),
                    )
                yield from self._accept(node, answer)
                problems += [answer[2]] if answer[2] else []
        if not any(self.workers.values()):
            raise ModelError(
                f"No node of the cluster can train on {self.record.spec}: {problems[-1]}",
                Remedy("Download it on every node", "models pull", (self.record.spec,)),
            )

    def _accept(self, node: str, answer: NodeReport) -> Generator[Notice, None, None]:
        """Let a node train if it has what that takes."""
        versions, base, problem = answer
        if different := differing(versions):
            problem = f"It has other versions: {different}."
        if not problem and base != self.identity:
            problem = "Its files of the base are others than here."
        if problem:
            yield Notice(f"The node {self._label(node)} trains nothing. {problem}")
            return
        nodes = self._alive()
        if self.on_gpu is None:
            self.on_gpu = any("GPU" in other["Resources"] for other in nodes.values())
        if node in nodes:
            self.workers[node] = int(nodes[node]["Resources"].get("GPU" if self.on_gpu else "CPU", 0))

    def _start_workers(self, alive: Mapping[str, Any], waiting: int) -> None:
        """Start as many workers as images are waiting, where a node has room; Ray waits for busy GPUs."""
        busy = Counter(call.node for call in (*self.calls.values(), *self.idle) if call.worker is not None)
        starting = sum(call.index is None and call.worker is not None for call in self.calls.values())
        while starting < waiting:
            room = [node for node in alive if busy[node] < self.workers.get(node, 0)]
            if not room:
                return
            node = min(room, key=lambda node: busy[node])
            actor = self.ray.remote(num_cpus=1, num_gpus=int(bool(self.on_gpu)), max_restarts=0)(Worker)
            worker = actor.options(scheduling_strategy=self._on(node)).remote()
            self.calls[worker.ready.remote()] = _Call(node, worker)
            busy[node] += 1
            starting += 1

    def _lost(self, call: _Call, index: int | None, error: Exception) -> Generator[Notice, None, None]:
        """Say what was lost; a node that cannot even start a worker gets no other one."""
        if call.node not in self._alive():
            yield Notice(f"The node {self._label(call.node)} is gone.")
        elif index is not None:
            yield Notice(f"A worker on {self._label(call.node)} ended; its image is trained again.")
        else:
            self.workers[call.node] = 0
            yield Notice(f"No worker starts on {self._label(call.node)}: {first_line(error)}")

    def _label(self, node: str) -> str:
        host = next((n["NodeManagerHostname"] for n in self.ray.nodes() if n["NodeID"] == node), "")
        return f"{host} ({node[:8]})"


def differing(versions: Mapping[str, str]) -> str:
    """Which versions of a node differ from those here, in words."""
    here = {"unziplora": unziplora_cli.__version__, "torch": version("torch").partition("+")[0]}
    return "; ".join(differences(versions, here))


def parcel_of(request: TrainRequest) -> tuple[bytes, dict[str, bytes]]:
    """The job of ``request`` as JSON, and its images; raises UsageError if it needs folders from here."""
    if request.config.prior_content or request.config.prior_style:
        raise UsageError(
            "Folders of class images are on this machine, so other machines cannot use them.",
            Remedy("Train this image here."),
        )
    sources = (*request.job.images, *request.job.destyled)
    paths = (*request.images, *request.destyled)
    images = {
        source.file: files.read_bytes(path, files.MAX_IMAGE_SIZE)
        for source, path in zip(sources, paths, strict=True)
    }
    return to_json(request.job), images


def keep(
    index: int, answer: Delivery | Exception | None, request: TrainRequest, store: ProjectStore
) -> list[Notice | TrainingEnds]:
    """Write what was delivered for a request; returns what to say about it. Runs in a thread."""
    if not isinstance(answer, Delivery):
        return [TrainingEnds(index, answer)]
    name = request.job.name
    former = store.former_versions(name)
    try:
        trained = unpack(answer, request, store)
    except Exception as error:
        return [TrainingEnds(index, error)]
    return [*map(Notice, store.replaced_notes(name, former)), TrainingEnds(index, trained)]


def unpack(delivery: Delivery, request: TrainRequest, store: ProjectStore) -> TrainedProject:
    """Make what a node delivered a project, at once and verified.

    Raises ProjectError if the files are not those that the manifest names, of the requested training, or if
    the name is taken.
    """
    job = request.job
    with store.create(job.name, force=request.replaces) as folder:
        for name, data in delivery.files.items():
            write_inside(folder, name, data)
        made = manifest.read(folder)
        problems = [f"{problem.path} {problem.reason}" for problem in verify(folder, made).problems]
        if made.state != "complete" or made.job.created != job.created or made.job.images != job.images:
            problems.append("it is another training")
        if problems:
            raise ProjectError(f"What arrived of {job.name!r} is not whole: {'; '.join(problems)}.")
    return TrainedProject(store.open(job.name), made.seconds, delivery.seconds_per_step)


def write_inside(folder: Path, name: str, data: Any) -> None:
    """Write bytes under a name inside ``folder``; raises ValueError for a name that leads out."""
    path = folder / relative_path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cast(bytes, memoryview(data)))
