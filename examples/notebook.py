# %% [markdown]
# # Which of these photos do people like?
# A notebook as a script: open it in VS Code or Jupyter (jupytext), or run it with a folder.

# %%
import sys

import numpy as np

import nima_client
from nima_client.library.sources import SourceError, find_photos
from nima_client.tables import to_pandas

folder = sys.argv[1] if len(sys.argv) > 1 else "photos"
try:
    paths = find_photos([folder]).files
except SourceError as error:
    sys.exit(f"{error}: set `folder` to one of yours")

# %% One call scores them all. `on_error="return"`: a broken file becomes a row, not an exception.
try:
    results = nima_client.score(paths, on_error="return")
except (nima_client.NimaError, ValueError) as error:  # no server there, or no address
    sys.exit(f"{error}: start `nima serve`, or let $NIMA_URL name your server")
frame = to_pandas(results)
print(frame[["source", "mean", "std", "percentile", "code"]].to_string())

# %% What people would agree on, and what divides them: wide is disputed.
good = frame.dropna(subset=["mean"])
if good.empty:
    sys.exit("none of these photos could be scored: `code` and `message` say why")
print("best:         ", good.loc[good["mean"].idxmax(), "source"])
print("most disputed:", good.loc[good["std"].idxmax(), "source"])

# %% The distributions as one array [N, 10], for anything else.
ratings = np.stack(list(good["distribution"]))
print("chance of a 7 or more:", np.round(ratings[:, 6:].sum(axis=1), 2))
