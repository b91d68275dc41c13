"""Keeps an :class:`EmbeddedServer` answering: probes it, and restarts it with backoff."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from nima_build.server._embedded import EmbeddedServer
from nima_build.server._install import ServerError, ServerLost


@dataclass(frozen=True)
class RestartPolicy:
    """When to probe and how patiently to restart.

    Attributes:
        check_seconds: between two looks at the process table (a dead server or stub).
        probe_seconds: between two probe inferences (a server that hangs).
        probe_timeout: seconds a probe may take; longer than the queue can hold a request.
        failures: consecutive failed probes before a restart.
        backoff_first: seconds before the first restart; doubles with each failed one.
        backoff_limit: longest wait in seconds.
        settled_seconds: a server up for so long has its backoff forgotten.
    """

    check_seconds: float = 0.25
    probe_seconds: float = 5.0
    probe_timeout: float = 30.0
    failures: int = 2
    backoff_first: float = 0.1
    backoff_limit: float = 30.0
    settled_seconds: float = 60.0


class _Stop:
    """An event that a signal handler may set, also of the thread that waits for it just now.

    :class:`threading.Event` hangs there: its lock cannot be taken twice by one thread.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.RLock())
        self._is_set = False

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        with self._changed:
            self._is_set = True
            self._changed.notify_all()

    def wait(self, timeout: float) -> bool:
        with self._changed:
            return self._changed.wait_for(self.is_set, timeout)


class Supervisor:
    """Runs until told to stop; call :meth:`run` from the thread that started the server.

    Args:
        server: a started server.
        policy: intervals and backoff.
        report: receives one line an event; an OSError of it (nobody reads it) is passed over.

    Attributes:
        restarts: how often it has brought the server back.
        launching: a restart is under way; it may take the server's ``start_timeout``.
    """

    def __init__(
        self,
        server: EmbeddedServer,
        policy: RestartPolicy | None = None,
        report: Callable[[str], None] = print,
    ) -> None:
        self._server = server
        self._policy = policy or RestartPolicy()
        self._report = report
        self._stop = _Stop()
        self._defect: str | None = None
        self.restarts = 0
        self.launching = False

    def stop(self) -> None:
        """Make :meth:`run` return; safe from a signal handler or another thread."""
        self._stop.set()

    def wait_answering(self, what: str) -> bool:
        """Return when the server is up: not dead, not hung, not being restarted.

        Args:
            what: has to wait, and is named in a report where it does.

        Returns:
            False when :meth:`stop` came first.
        """
        told, restarts = False, self.restarts
        probe = self._server.probe(self._policy.probe_timeout)
        while not self._stop.is_set():
            # In this order: a server that is being launched has no defect yet.
            away = self._server.defect() or self._defect or self.launching
            # One that hangs has none before a minute is over; a restarted one has just answered.
            if not away and (restarts != self.restarts or probe().alive):
                break
            if not told:
                told = True
                self._say(f"{what} waits until the server answers again")
            self._stop.wait(self._policy.check_seconds)
        probe.close()
        return not self._stop.is_set()

    def run(self) -> None:
        """Watch and restart until :meth:`stop`.

        Raises:
            ServerLost: no restart can help, since the server's private folder is gone.
        """
        prober = threading.Thread(target=self._probe_forever, name="nima-probe", daemon=True)
        prober.start()
        backoff, up_since = self._policy.backoff_first, time.monotonic()
        while not self._stop.wait(self._policy.check_seconds):
            defect = self._server.defect() or self._defect
            if defect is None:
                if time.monotonic() - up_since > self._policy.settled_seconds:
                    backoff = self._policy.backoff_first
                continue
            self._say(f"{defect}; restarting in {backoff:g} s")
            self._server.end_processes(grace=0)
            if self._stop.wait(backoff):
                return
            backoff = min(backoff * 2, self._policy.backoff_limit)
            began = time.monotonic()
            self.launching = True
            try:
                # A stop from now on is raised in the launch; an earlier one would wait for its end.
                if self._stop.is_set():
                    return
                self._server.launch()
            except ServerLost:
                self._stop.set()  # the prober's end too
                raise
            except ServerError as error:
                self._say(f"restart failed: {error}")
            else:
                self.restarts += 1
                self._say(f"answering again after {time.monotonic() - began:.1f} s")
            finally:
                self.launching = False
            up_since = time.monotonic()
            self._defect = None

    def _say(self, line: str) -> None:
        with contextlib.suppress(OSError):
            self._report(line)

    def _probe_forever(self) -> None:
        """Probe from a thread of its own: a hung server must not hold up the process watch."""
        probe = self._server.probe(self._policy.probe_timeout)
        failed, restarts = 0, self.restarts
        while not self._stop.wait(self._policy.probe_seconds):
            result = probe()
            if result.alive or restarts != self.restarts:
                failed, restarts = 0, self.restarts
                continue
            failed += 1
            if failed >= self._policy.failures:
                self._defect = f"{failed} probes failed, the last with: {result.reason}"
                failed = 0
        probe.close()
