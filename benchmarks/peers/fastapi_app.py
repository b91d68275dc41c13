"""FastAPI on uvicorn with uvloop and httptools, a worker a core, the raw file as request body.

The endpoint runs in the event loop: with a worker a core, a thread pool only adds switches.
"""

from __future__ import annotations

from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from scoring import Scorer, make_scorer

_scorer: Scorer | None = None


@asynccontextmanager
async def _load(_app: FastAPI):
    global _scorer
    _scorer = make_scorer()
    yield


app = FastAPI(lifespan=_load)


@app.post("/score")
async def score(request: Request) -> Response:
    """Score the image in the body."""
    assert _scorer is not None
    return JSONResponse(_scorer(await request.body()))
