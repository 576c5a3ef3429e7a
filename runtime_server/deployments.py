"""The models of one machine: stored, loading, ready."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field

from mantler.config import RuntimeSettings
from mantler.errors import ErrorCode, MantlerError
from mantler.messages import LoadProgress, LoadStage, ModelInfo, ModelState
from runtime_server.backends.choice import quantization_for
from runtime_server.backends.devices import DeviceError
from runtime_server.deployed import DeployedModel, deploy
from runtime_server.engine.engine import unavailable
from runtime_server.engine.kv_plan import KvPlanError
from runtime_server.models.catalogue import look_up
from runtime_server.models.errors import PullError
from runtime_server.models.manifest import Manifest
from runtime_server.models.names import ModelName
from runtime_server.models.pull import pull as pull_model
from runtime_server.models.store import ModelStore

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Load:
    """A load under way. Several callers may follow one."""

    written: str
    """The model's name as the first caller spelled it, for errors."""
    progress: LoadProgress
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[Manifest] = field(init=False)
    abandoned: bool = False
    """Set when the runtime stops: whatever still works on the load ends at its next report."""

    def report(self, progress: LoadProgress) -> None:
        """Tells the callers."""
        self.progress = progress
        self.changed.set()


class Deployments:
    """Loads and unloads models. Lives on the event loop; the slow parts run in threads.

    A model has one id but several spellings (``SmolLM2:135M``). Each is taken wherever a model is named.

    Args:
        settings: of the runtime.
        store: of converted models.
        on_change: called after a model became ready or stopped being so.

    Attributes:
        draining: whether new requests are refused. Running ones finish.
    """

    def __init__(
        self, settings: RuntimeSettings, store: ModelStore, on_change: Callable[[], None] = lambda: None
    ) -> None:
        self._settings = settings
        self._store = store
        self._on_change = on_change
        self.draining = False
        self._ready: dict[str, DeployedModel] = {}
        self._loads: dict[str, _Load] = {}
        self._unloading: dict[str, DeployedModel] = {}
        self._deploying = asyncio.Lock()
        self._unloads: set[asyncio.Task[None]] = set()

    def serving(self, name: str) -> DeployedModel:
        """The model, if it takes requests. Raises ``MantlerError`` MODEL_NOT_FOUND or RUNTIME_UNAVAILABLE."""
        model = self._deployed(name)
        if self.draining:
            raise MantlerError(
                ErrorCode.RUNTIME_UNAVAILABLE, "The machine is draining: it takes no new requests.", retry_after_s=1.0
            )
        return model

    @property
    def ready(self) -> list[DeployedModel]:
        """The models that take requests."""
        return list(self._ready.values())

    async def models(self) -> list[ModelInfo]:
        """Every model of the machine, by id."""
        stored = {manifest.id: manifest for manifest in await asyncio.to_thread(self._store.list)}
        for deployed in [*self._ready.values(), *self._unloading.values()]:
            stored.setdefault(deployed.manifest.id, deployed.manifest)
        return [self._info(stored[name]) for name in sorted(stored)]

    async def model(self, name: str) -> ModelInfo:
        """One model. Raises ``MantlerError`` MODEL_NOT_FOUND."""
        model_id = _model_id(name)
        for info in await self.models():
            if info.id == model_id:
                return info
        raise MantlerError(ErrorCode.MODEL_NOT_FOUND, f"The model {name!r} is not on this machine.", param="model")

    async def load(self, name: str, *, pull: bool) -> AsyncGenerator[LoadProgress, None]:
        """Brings a model into memory and reports on it; the last report has the stage READY.

        Closing the iterator leaves the load running. Raises ``MantlerError`` where the model is not stored and must
        not be pulled, cannot be pulled, or does not fit.
        """
        model_id = _model_id(name)
        if model_id in self._unloading:
            raise unavailable(model_id)
        if (model := self._ready.get(model_id)) is not None:
            yield LoadProgress(LoadStage.READY, model=self._info(model.manifest))
            return
        load = self._loads.get(model_id)
        if load is None:
            load = self._loads[model_id] = _Load(name, LoadProgress(LoadStage.LOADING))
            load.task = asyncio.create_task(self._load(model_id, load, pull=pull), name=f"load {model_id}")
        task = load.task
        while not task.done():
            yield load.progress
            load.changed.clear()
            changed = asyncio.create_task(load.changed.wait())
            try:
                await asyncio.wait({changed, task}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                changed.cancel()
        # The manifest comes from the load: the model may have been unloaded again while this caller was slow.
        yield LoadProgress(LoadStage.READY, model=self._info(task.result()))

    async def unload(self, name: str) -> None:
        """Takes no new requests, lets the running ones finish for ``drain_timeout_s`` and frees the memory.

        It goes on where the caller leaves: the running requests are not the caller's. Raises ``MantlerError``
        MODEL_NOT_FOUND or RUNTIME_UNAVAILABLE.
        """
        model = self._deployed(name)
        del self._ready[model.manifest.id]
        self._unloading[model.manifest.id] = model
        self._on_change()
        task = asyncio.create_task(self._unload(model), name=f"unload {model.manifest.id}")
        self._unloads.add(task)
        task.add_done_callback(self._unloads.discard)
        await asyncio.shield(task)

    async def close(self) -> None:
        """Stops loads, unloads and engines. Requests that still run fail."""
        for load in self._loads.values():
            load.abandoned = True
        # Not cancelled: a thread cannot be, and a model that finishes loading must be closed below.
        await asyncio.gather(*(load.task for load in self._loads.values()), *self._unloads, return_exceptions=True)
        models = list(self._ready.values())
        self._ready.clear()
        await asyncio.gather(*(model.close() for model in models))

    def _deployed(self, name: str) -> DeployedModel:
        model_id = _model_id(name)
        model = self._ready.get(model_id)
        if model is not None:
            return model
        if model_id in self._loads or model_id in self._unloading:
            raise unavailable(model_id)
        raise MantlerError(
            ErrorCode.MODEL_NOT_FOUND, f"The model {name!r} is not deployed on this machine.", param="model"
        )

    async def _unload(self, model: DeployedModel) -> None:
        name = model.manifest.id
        await self._drain(model)
        await model.close()
        del self._unloading[name]
        logger.info("unloaded %s", name)

    async def _load(self, name: str, load: _Load, *, pull: bool) -> Manifest:
        try:
            manifest = await self._fetch(name, load, pull=pull)
            load.report(LoadProgress(LoadStage.LOADING, total_bytes=manifest.size_bytes))
            folder = self._store.path(name)
            # One after the other, so that each plans with what the one before it has reserved.
            async with self._deploying:
                model = await deploy(manifest, folder, self._settings, reserved_bytes=self._reserved_bytes())
                self._ready[name] = model
        except PullError as error:
            raise MantlerError(ErrorCode.INVALID_REQUEST, str(error), param="model") from error
        except KvPlanError as error:
            message = f"{name} does not fit: {error} ({error.hint})."
            raise MantlerError(ErrorCode.INVALID_REQUEST, message, param="model") from error
        except DeviceError as error:
            message = f"{name} cannot run here: {error} ({error.hint})."
            raise MantlerError(ErrorCode.INVALID_REQUEST, message, param="model") from error
        finally:
            del self._loads[name]
        self._on_change()
        plan = model.deployment()
        logger.info(
            "loaded %s on %s: %d slots of %d tokens, %.0f MB for keys and values",
            name, plan.device, plan.slots, plan.max_request_tokens, plan.kv_cache_bytes / 1e6,
        )  # fmt: skip
        return manifest

    async def _fetch(self, name: str, load: _Load, *, pull: bool) -> Manifest:
        """The stored model, pulled first where that is wanted and needed."""
        manifest = await asyncio.to_thread(self._store.get, name)
        if manifest is not None:
            return manifest
        if not pull:
            message = f"The model {load.written!r} is not in this machine's store: `mantler pull` there fetches it."
            raise MantlerError(ErrorCode.MODEL_NOT_FOUND, message, param="model")
        # Callers over the network may name what the catalogue holds, not files of this machine.
        entry = look_up(name, load.written)
        loop = asyncio.get_running_loop()

        def report(progress: LoadProgress) -> None:
            if load.abandoned:
                raise unavailable(name)
            loop.call_soon_threadsafe(load.report, progress)

        kind = await asyncio.to_thread(quantization_for, self._settings.device)
        return await asyncio.to_thread(pull_model, entry.id, self._settings.home, quantization=kind, progress=report)

    async def _drain(self, model: DeployedModel) -> None:
        try:
            async with asyncio.timeout(self._settings.drain_timeout_s):
                await model.engine.idle()
        except TimeoutError:
            logger.warning("requests of %s still ran after %g s", model.manifest.id, self._settings.drain_timeout_s)

    def _reserved_bytes(self) -> int:
        """Of caches on the processor; a card gives the memory of its caches at once."""
        plans = [model.deployment() for model in [*self._ready.values(), *self._unloading.values()]]
        return sum(plan.kv_cache_bytes for plan in plans if plan.device == "cpu")

    def _info(self, manifest: Manifest) -> ModelInfo:
        deployed = self._ready.get(manifest.id)
        return ModelInfo(
            id=manifest.id,
            state=self._state(manifest.id),
            architecture=manifest.config.architecture,
            quantization=manifest.quantization,
            parameter_count=manifest.parameter_count,
            context_length=manifest.config.context_length,
            size_bytes=manifest.size_bytes,
            created_unix_s=manifest.created_unix_s,
            deployment=None if deployed is None else deployed.deployment(),
        )

    def _state(self, name: str) -> ModelState:
        deployed = self._ready.get(name)
        if deployed is not None:
            return ModelState.FAILED if deployed.engine.failed else ModelState.READY
        if name in self._loads:
            return ModelState.LOADING
        return ModelState.UNLOADING if name in self._unloading else ModelState.STORED


def _model_id(name: str) -> str:
    """The id that ``name`` spells. What cannot be a name stays as it is; nothing is found under it."""
    try:
        return str(ModelName.parse(name))
    except PullError:
        return name
