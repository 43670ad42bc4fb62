"""Test of the server with a full log, a full disk, few open files and unresponsive clients."""

import contextlib
import os
import resource
import signal
import socket
import time

from serving import (
    CAT,
    END,
    assert_well,
    in_progress,
    metrics,
    part,
    post,
    request,
    serving,
    wait_until,
)  # fmt: skip


def test_server_survives_full_disk_and_stalled_clients() -> None:
    """Check that the server survives all of these together and still ends on SIGTERM."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, bytes(4096))
    os.set_blocking(writing, True)

    def allow_little() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_100_000, 1_100_000))  # like a full disk

    options = ("--send-seconds", 1, "--body-seconds", 600, "--header-seconds", 600)
    with serving(*options, stdout=writing, preexec_fn=allow_little) as server:
        for _ in range(3):  # each is logged
            assert_well(server)

        answer = post(server, ("x", bytes(1_500_000)))
        assert (answer.status_code, "temporary files" in answer.json()["error"]) == (507, True)

        deaf = socket.socket()
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(("127.0.0.1", server.port))
        with contextlib.suppress(ConnectionError):  # already disconnected
            for _ in range(20):
                deaf.sendall(b"GET /docs HTTP/1.1\r\nHost: localhost\r\n\r\n" * 10)
                time.sleep(0.02)
        wait_until(lambda: metrics(server).get(("sprat_refusals_total", "unread"), 0) == 1)

        crowd = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(60)]
        wait_until(lambda: server.client.get("/healthz").status_code == 200)
        crowd += [socket.create_connection(("127.0.0.1", server.port)) for _ in range(100)]
        for connection in [deaf, *crowd]:
            connection.close()
        wait_until(lambda: metrics(server)["sprat_connections",] < 5)
        assert metrics(server)["sprat_refusals_total", "connections"] > 0
        assert_well(server)

        with socket.create_connection(("127.0.0.1", server.port)) as half:
            half.sendall(request(part(CAT) + END)[:-30])
            wait_until(lambda: in_progress(server) == 1)
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(timeout=60) == 0
        complaints = (server.folder / "err").read_text()
        assert complaints.count("\n") == 1, complaints
    os.close(reading)
    os.close(writing)
