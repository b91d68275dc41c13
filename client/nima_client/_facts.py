"""What is known of the model behind a connection, and when it has to be asked again."""

from __future__ import annotations

import time

from nima_client import _defaults
from nima_client.results import ModelInfo


class Facts:
    """What the server said of the model, by version; one for all clients of a connection.

    Any thread may call its methods.
    """

    def __init__(self) -> None:
        self._known: dict[str, ModelInfo] = {}
        self._heard = self._read = float("-inf")

    def any(self) -> ModelInfo | None:
        """Those of some version, to plan a call by; None where nothing is known."""
        return next(iter(self._known.values()), None)

    def of(self, version: str) -> ModelInfo | None:
        """Those of the version that has just answered; None where it has to be asked.

        After a silence it has: with nothing under way, nobody was told of a server that went and
        came back with other weights under the same version number. Whoever hears from it before the
        answer is there asks, too. After a while one asks in any case: there may be several servers.
        """
        now = time.monotonic()
        silence, self._heard = now - self._heard, now
        if silence > _defaults.RESTART_SECONDS:
            self.forget()
        elif now - self._read > _defaults.FACTS_SECONDS:
            self._read = now  # the others go by what is known until the answer is there
            return None
        return self._known.get(version)

    def remember(self, info: ModelInfo) -> ModelInfo:
        """Keep what a server said of the model, by the versions it has loaded."""
        self._known = {**self._known, **dict.fromkeys(info.versions, info)}
        self._heard = self._read = time.monotonic()
        return info

    def forget(self) -> None:
        """The server may have other weights by now."""
        self._known = {}
