"""Puts a worker together, runs it, and takes it down without losing a token."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from typing import Final

import redis

from scheduler_worker.core.policy import default_policy
from scheduler_worker.core.scheduler import Scheduler
from scheduler_worker.executor import Executor
from scheduler_worker.protocol import keys, scripts
from scheduler_worker.protocol.messages import EventRecord
from scheduler_worker.worker import settings as worker_settings
from scheduler_worker.worker import transport
from scheduler_worker.worker.clock import RedisClock
from scheduler_worker.worker.courier_process import CourierProcess
from scheduler_worker.worker.device import meter_for
from scheduler_worker.worker.inbox import Inbox
from scheduler_worker.worker.loop import StepLoop
from scheduler_worker.worker.reporter import Reporter, WorkerIdentity
from scheduler_worker.worker.settings import WorkerSettings

logger = logging.getLogger(__name__)

LEAVE_TIMEOUT_S: Final = 5.0
SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class StartFailed(RuntimeError):
    """The model cannot be served; says why and what to mend."""


LoadExecutor = Callable[[WorkerSettings], Executor]


def main(environ: Mapping[str, str] = os.environ) -> int:
    """Run a worker with the real engine; the process's exit status."""
    try:
        settings = worker_settings.read(environ)
    except worker_settings.SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    return run(settings, load_engine)


def load_engine(settings: WorkerSettings) -> Executor:
    """The torch engine. Imported here: only a worker that loads a model pays for torch."""
    import torch

    from scheduler_worker.engine import EngineError, load_executor

    try:
        executor = load_executor(settings.engine())
    except EngineError as error:
        raise StartFailed(f"model {settings.model} cannot be served: {error}") from error
    torch.inference_mode().__enter__()  # for good: this thread computes steps until the process ends
    return executor


def run(settings: WorkerSettings, load: LoadExecutor) -> int:
    """Load, work until a signal, leave. 0 after a signal; 1 after an error that ended the worker."""
    stop = threading.Event()
    for one in SIGNALS:
        signal.signal(one, lambda *_: stop.set())
    try:
        executor = load(settings)
    except StartFailed as error:
        logger.error("%s", error)
        return 1
    try:
        return _Worker(settings, executor, stop).run()
    finally:
        executor.close()


class _Worker:
    """The parts of one worker and the order in which they start and end."""

    def __init__(self, settings: WorkerSettings, executor: Executor, stop: threading.Event) -> None:
        self._settings, self._executor, self._stop = settings, executor, stop
        self._clock, self._inbox = RedisClock(), Inbox()

    def run(self) -> int:
        """Start the helpers, turn the loop until asked to stop, leave."""
        try:
            self._greet_redis()
        except transport.Stopped:
            return 0
        loop = self._start()
        try:
            loop.run(self._stop)
            loop.finish_steps()
        except Exception as error:
            logger.exception("the worker ends: %s", error)
            self._leave(last_words=self._last_words(error))
            return 1
        logger.info("drained: claims go back to the queue")
        self._leave()
        return 0

    def _greet_redis(self) -> None:
        """Wait for Redis, set the clock, give back what an earlier process of this name still holds."""
        client = self._connect()
        release = scripts.retire(self._settings.pool, self._settings.worker_id)
        transport.persist("start", lambda: transport.synchronize(client, self._clock), self._stop)
        requeued = transport.persist("start", lambda: transport.run(client, release), self._stop)
        if requeued:
            logger.warning("gave back %d requests of an earlier process of this name", len(requeued))
        client.close()

    def _start(self) -> StepLoop:
        settings, policy = self._settings, default_policy()
        scheduler = Scheduler(policy, self._executor.capacity)
        self._courier = CourierProcess(
            settings.redis_url, settings.pool, settings.worker_id, keys.WORKER_LEASE_S
        )
        self._reporter = self._make_reporter()
        loop = StepLoop(
            scheduler,
            self._executor,
            self._courier,
            self._inbox,
            self._clock,
            policy,
            self._reporter.submit,
            scheduler.cost_model.to_dict,
            settings.worker_id,
        )
        self._reporter.start()
        self._courier.follow()
        gc.collect()
        gc.freeze()
        logger.info("worker %s of pool %s is ready", settings.worker_id, settings.pool)
        return loop

    def _make_reporter(self) -> Reporter:
        identity = WorkerIdentity(self._settings.pool, self._settings.worker_id, self._clock.now())
        meter = meter_for(self._executor.info, self._settings.cpu_tdp_w)
        return Reporter(self._connect(), self._clock, self._inbox, identity, self._executor, meter)

    def _leave(self, last_words: EventRecord | None = None) -> None:
        self._courier.leave(LEAVE_TIMEOUT_S)
        self._reporter.stop(LEAVE_TIMEOUT_S, last_words)

    def _last_words(self, error: BaseException) -> EventRecord:
        """What operators read about a worker that ended itself."""
        where = traceback.extract_tb(error.__traceback__)[-1]
        return EventRecord(
            at=self._clock.now(),
            kind="worker_failed",
            reason="worker_failed",
            numbers={
                "worker": self._settings.worker_id,
                "error": f"{type(error).__name__}: {error}",
                "where": f"{os.path.basename(where.filename)}:{where.lineno}",
            },
        )

    def _connect(self) -> redis.Redis:
        return transport.connect(self._settings.redis_url)
