"""The in-process server as a process of its own: prints its address, ends on SIGTERM."""

import signal
import sys
import threading

from kserve_server import KServeServer

ended = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: ended.set())
with KServeServer() as server:
    server.keep = False
    server.delay = float(sys.argv[1]) if len(sys.argv) > 1 else 0.0
    print(server.url, flush=True)
    ended.wait(300)
