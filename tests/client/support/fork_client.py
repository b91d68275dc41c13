"""Score in three forked children and in their parent, with one client made before the fork."""

import io
import os
import sys

from PIL import Image

from nima_client import NimaClient

buffer = io.BytesIO()
Image.new("RGB", (16, 12)).save(buffer, "JPEG")
photo = buffer.getvalue()

client = NimaClient(sys.argv[1])
if sys.argv[2] == "1":
    client.score([photo] * 20)
for _ in range(3):
    child = os.fork()
    if child == 0:
        assert len(client.score([photo] * 20, timeout=15)) == 20
        print("child", flush=True)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status == 0, status
assert len(client.score([photo] * 20, timeout=15)) == 20
print("parent", flush=True)
