"""A web service that scores uploaded photos: one client for all requests, each error its status.

pip install 'nima-triton' fastapi uvicorn
NIMA_URL=127.0.0.1:8001 uvicorn --port 8080 --app-dir examples fastapi_service:app
curl --data-binary @photo.jpg http://127.0.0.1:8080/score
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException, Request

import nima_client

DEADLINE_S = 2.0


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """One client, and with it one connection, for as long as the service runs."""
    # A caller waits: better an early 503 than a late score.
    retry = nima_client.RetryPolicy(attempts=3, budget_s=1.0)
    async with nima_client.AsyncNimaClient(retry=retry) as client:
        app.state.nima = client
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/score")
async def score(request: Request) -> dict[str, object]:
    """Score the photo in the request's body."""
    client: nima_client.AsyncNimaClient = request.app.state.nima
    try:
        result = await client.score_one(await request.body(), timeout=DEADLINE_S)
    except nima_client.ImageRejectedError as error:
        raise HTTPException(422, detail={"code": error.code, "message": error.detail}) from error
    except nima_client.OverloadError as error:
        raise HTTPException(503, detail="busy", headers={"Retry-After": "1"}) from error
    except nima_client.DeadlineExceeded as error:
        raise HTTPException(504, detail="too slow") from error
    except nima_client.NimaError as error:
        raise HTTPException(502, detail="scoring is not available") from error
    return result.to_dict()


@app.get("/ready")
async def ready(request: Request) -> dict[str, str]:
    """Whether a NIMA server of the right contract answers."""
    try:
        info = await request.app.state.nima.model_info()
    except nima_client.NimaError as error:
        raise HTTPException(503, detail=str(error)) from error
    return {"checkpoint": info.served.checkpoint_name}
