"""Measure how many requests the server answers, how long they wait, and how its memory grows.

    python benchmarks/serve.py --json
    python benchmarks/serve.py --against ../other-checkout

Starts `sprat serve` with the most accurate pretrained model and sends it requests on the loopback
interface: 1, 8 and 64 clients in one process each send one PNG of 32 px and wait for the answer.
The network alone is measured too, one image at a time and in batches of 64. Then come many more
requests, while the server's resident memory is read at intervals. Clients and server share the
cores, so the clients do as little as HTTP allows. With --against, the server of another checkout
takes turns with this one, each with the checkout's own `.venv` if there is one, and the ratio is
printed. This takes ten minutes on two cores.
"""

import argparse
import asyncio
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import torch
from side_by_side import noise, parser_for, report

import sprat
from sprat.runtime import describe_machine, keep_freed_memory, set_threads, versions
from sprat.serve.uploads import png

CLIENTS = (1, 8, 64)
ROUNDS = 3  # turns; their median is reported
SOURCE = Path(sprat.__file__).parents[1]


@contextmanager
def serving(source: Path, threads: int, clients: int) -> Iterator[str]:
    """Yield the address of a server that admits so many clients of this machine.

    Args:
        source: folder with the server's package sprat.
    """
    environment = os.environ | {"PYTHONPATH": str(source)}
    own = source.parent / ".venv/bin/python"
    python = str(own) if own.is_file() else sys.executable
    command = [python, "-m", "sprat", "serve", "--port", "0", "--threads", str(threads)]
    command += ["--max-requests", str(clients), "--max-requests-per-client", str(clients)]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if ready := re.search(r"ready at (\S+)/", line):
                yield ready[1]
                break
            sys.stderr.write(line)
        else:
            sys.exit("the server did not start; see its message above")
    finally:
        process.terminate()
        process.communicate()


async def ask(url: str, picture: bytes, clients: int, requests: int) -> dict[str, float]:
    """Send so many requests, as many at once as there are clients."""
    milliseconds: list[float] = []
    address = urlsplit(url)
    request = httpx.Request("POST", f"{url}/predict", files={"images": picture})
    lines = [b"POST /predict HTTP/1.1", *(b": ".join(header) for header in request.headers.raw)]
    sent = b"\r\n".join([*lines, b"", request.read()])

    async def client(count: int) -> None:
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        for _ in range(count):
            began = time.perf_counter()
            writer.write(sent)
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
            if not head.startswith(b"HTTP/1.1 200 ") or length is None:
                sys.exit(f"the server answered {head.decode()}")
            await reader.readexactly(int(length[1]))
            milliseconds.append(1e3 * (time.perf_counter() - began))
        writer.close()

    began = time.perf_counter()
    await asyncio.gather(*(client(requests // clients) for _ in range(clients)))
    seconds = time.perf_counter() - began
    p50, p99 = np.percentile(milliseconds, (50, 99)).tolist()
    return {"requests_per_s": len(milliseconds) / seconds, "p50_ms": p50, "p99_ms": p99}


def resident_bytes(url: str) -> int:
    """Return what the server reports about itself."""
    text = httpx.get(f"{url}/metrics", trust_env=False, verify=False).text
    found = re.search(r"^process_resident_memory_bytes (\S+)$", text, re.MULTILINE)
    return int(float(found[1])) if found else 0  # 0: the system does not say


def bare(pixels: torch.Tensor, seconds: float) -> float:
    """Return images/s of the network alone, in this process, on the same images again and again."""
    classifier = sprat.load(device="cpu")
    classifier(pixels)
    began, images = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        classifier(pixels)
        images += len(pixels)
    return images / (time.perf_counter() - began)


def median_of(turns: list[dict[str, float]]) -> dict[str, Any]:
    return {key: statistics.median(turn[key] for turn in turns) for key in turns[0]} | {
        "turns": turns
    }


def watch_memory(url: str, picture: bytes, arguments: argparse.Namespace) -> list[dict[str, int]]:
    """Return the server's resident bytes before the first and after every tenth of the requests."""
    seen = [{"requests": 0, "resident_bytes": resident_bytes(url)}]
    step = max(1, arguments.memory_requests // 10)
    for done in range(step, arguments.memory_requests + 1, step):
        asyncio.run(ask(url, picture, clients=min(8, step), requests=step))
        seen.append({"requests": done, "resident_bytes": resident_bytes(url)})
        print(f"{done:7,} requests: {seen[-1]['resident_bytes'] / 2**20:,.1f} MiB", flush=True)
    return seen


def main() -> None:
    parser = parser_for(__doc__, rounds=ROUNDS)
    parser.add_argument("--clients", type=int, nargs="+", default=CLIENTS, help="clients at once")
    parser.add_argument("--requests", type=int, default=3_000, help="requests per turn")
    parser.add_argument(
        "--memory-requests", type=int, default=20_000, help="requests while memory is read"
    )
    parser.add_argument("--against", type=Path, help="checkout of sprat to compare with")
    parser.add_argument("--bare-seconds", type=float, default=10, help="seconds per batch size")
    arguments = parser.parse_args()
    keep_freed_memory()
    threads = set_threads(arguments.threads)
    pixels = noise(64).train.images[:]
    picture = png(pixels[0])
    rates = {
        f"bare_{size}_images_per_s": bare(pixels[:size], arguments.bare_seconds)
        for size in (1, len(pixels))
    }
    sources = {"here": SOURCE}
    if arguments.against:
        sources["there"] = arguments.against / "src"
    turns: dict[str, dict[str, list[dict[str, float]]]] = {
        name: {str(count): [] for count in arguments.clients} for name in sources
    }
    with ExitStack() as servers:
        urls = {
            name: servers.enter_context(serving(source, threads, max(arguments.clients)))
            for name, source in sources.items()
        }
        for url in urls.values():
            asyncio.run(ask(url, picture, clients=1, requests=10))
        for _ in range(arguments.rounds):
            for count in arguments.clients:
                for name, url in urls.items():
                    requests = max(count, arguments.requests)
                    turns[name][str(count)].append(asyncio.run(ask(url, picture, count, requests)))
        memory = watch_memory(urls["here"], picture, arguments)
    measured, *others = (
        {count: median_of(done) for count, done in of_server.items()}
        for of_server in turns.values()
    )
    print(f"\n{'clients':>8} {'requests/s':>11} {'p50, ms':>9} {'p99, ms':>9}")
    for count, figures in measured.items():
        print(
            f"{count:>8} {figures['requests_per_s']:11,.0f} {figures['p50_ms']:9.1f} "
            f"{figures['p99_ms']:9.1f}"
        )
    print(
        f"the bare network: {rates['bare_1_images_per_s']:,.0f} images/s one at a time, "
        f"{rates['bare_64_images_per_s']:,.0f} in batches of 64"
    )
    figures: dict[str, Any] = {
        "measured": measured,
        "requests": arguments.requests,
        **rates,
        "memory": memory,
        "machine": describe_machine(torch.device("cpu"), "fp32", threads),
        "versions": versions(),
    }
    for other in others:
        figures["against"] = other
        figures["ratios"] = {
            count: measured[count]["requests_per_s"] / of_other["requests_per_s"]
            for count, of_other in other.items()
        }
        for count, ratio in figures["ratios"].items():
            print(f"{count:>8} clients: {ratio:.2f} times the requests/s of {arguments.against}")
    report(figures, arguments)


if __name__ == "__main__":
    main()
