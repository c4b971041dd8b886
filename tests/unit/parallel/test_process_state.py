from __future__ import annotations

import os
import signal
import socket
import tempfile
import time

from atlas.parallel.process_state import is_running


def test_a_killed_process_is_gone_as_soon_as_its_connections_break() -> None:
    """It holds a deleted file, so it is no zombie yet: the disk takes back 100 MB first."""
    here, there = socket.socketpair()
    process = os.fork()
    if process == 0:
        here.close()
        with tempfile.TemporaryFile() as file:
            file.write(bytes(100 << 20))
            file.flush()
            there.send(b"!")
            time.sleep(60)
            os._exit(0)
    there.close()
    assert here.recv(1) == b"!"
    assert is_running(process)
    os.kill(process, signal.SIGKILL)
    assert here.recv(1) == b""
    assert not is_running(process)
    here.close()
    os.waitpid(process, 0)
    assert not is_running(process)
