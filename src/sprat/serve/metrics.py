"""Counts for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
# a client must not be able to make new series
METHODS = frozenset({"GET", "HEAD", "POST"})
PATHS = frozenset({"/", "/docs", "/healthz", "/metrics", "/openapi.json", "/predict"})


class Metrics:
    """Counters of one server, and of its process: resident memory, CPU, open files."""

    def __init__(self) -> None:
        self.registry = own = CollectorRegistry()
        ProcessCollector(registry=own)
        of_request = ("method", "path", "status")
        text = "From a request's headers to the end of its answer"
        self._requests = Counter("sprat_requests", "Requests answered", of_request, registry=own)
        self._seconds = Histogram(
            "sprat_request_seconds", text, ("path",), buckets=SECONDS, registry=own
        )
        text = "Requests and pictures refused"
        self._refusals = Counter("sprat_refusals", text, ("reason",), registry=own)
        text = "Pictures that the network looked at together"
        self.batches = Histogram("sprat_batch_pictures", text, buckets=SIZES, registry=own)
        text = "Lines of the log that nobody read in time, or no disk had room for"
        self.dropped = Counter("sprat_log_lines_dropped", text, registry=own)
        text = "Connections open"
        self.connections = Gauge("sprat_connections", text, registry=own)
        self.in_flight = Gauge("sprat_requests_in_flight", "Predictions under way", registry=own)
        self.queue = Gauge("sprat_queue_pictures", "Waiting for the network", registry=own)

    def answered(self, method: str, path: str, status: int, seconds: float) -> None:
        """Counts a request."""
        method = method if method in METHODS else "other"
        path = path if path in PATHS else "other"
        self._requests.labels(method, path, status).inc()
        self._seconds.labels(path).observe(seconds)

    def refused(self, reason: str) -> None:
        """Counts a refusal."""
        self._refusals.labels(reason).inc()
