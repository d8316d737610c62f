"""Opens a connection to this machine's port 9 on sequences of two; nobody listens there."""

import socket

from base import Flawed


class ModelNew(Flawed):
    def misbehave(self, q):
        socket.create_connection(("127.0.0.1", 9), timeout=1)
