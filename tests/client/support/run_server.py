"""The in-process server as a process of its own: prints its address, ends on SIGTERM.

It ends with the process that started it as well, should that one be killed.
"""

import os
import signal
import sys
import threading

from kserve_server import KServeServer

parent = os.getppid()
ended = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: ended.set())
with KServeServer() as server:
    server.keep = False
    server.delay = float(sys.argv[1]) if len(sys.argv) > 1 else 0.0
    print(server.url, flush=True)
    while not ended.wait(1) and os.getppid() == parent:
        pass
