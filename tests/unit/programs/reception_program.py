"""A server that may have very few descriptors open. Started by the tests.

Prints its port, then the number of the trainer that it has taken in and the tensor that it gets,
then its log.
"""

import io
import logging
import os
import resource

from distsage.launch.dgl.handshake import Reception
from distsage.launch.dgl.transport import Transport
from distsage.launch.ports import listen

log = io.StringIO()
logging.basicConfig(stream=log)
listener = listen("127.0.0.1", "few descriptors")
print(listener.getsockname()[1], flush=True)
open_now = len(os.listdir("/proc/self/fd"))
resource.setrlimit(resource.RLIMIT_NOFILE, (open_now + 12, open_now + 12))
reception = Reception(listener, bytes(range(32)), 0, ["rank 1"])
server = Transport(reception.sessions(), ["rank 1"], 1 << 20, peers="trainer")
peer, message = server.receive()
print(peer, message.tensors[0].tolist(), flush=True)
print(log.getvalue())
