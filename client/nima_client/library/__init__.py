"""Tools for collections of photos: finding them, scoring them, keeping and choosing results.

``nima score``, ``nima report``, ``nima compare`` and :mod:`nima_client.ray` are thin layers over
these modules; the core of the client knows nothing of them.
"""
