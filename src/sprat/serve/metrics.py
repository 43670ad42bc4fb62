"""Metrics for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
# others count as one, so that clients cannot create new series
METHODS = frozenset({"GET", "HEAD", "POST"})
PATHS = frozenset({"/", "/docs", "/healthz", "/metrics", "/openapi.json", "/predict"})


class Metrics:
    """Counters of one server, and of its process: resident memory, CPU, open files."""

    def __init__(self) -> None:
        self.registry = own = CollectorRegistry()
        ProcessCollector(registry=own)
        of_request = ("method", "path", "status")
        text = "Time from a request's headers to the end of its response"
        self._requests = Counter("sprat_requests", "Requests answered", of_request, registry=own)
        self._seconds = Histogram(
            "sprat_request_seconds", text, ("path",), buckets=SECONDS, registry=own
        )
        text = "Requests and pictures refused"
        self._refusals = Counter("sprat_refusals", text, ("reason",), registry=own)
        text = "Pictures that the network classified together"
        self.batches = Histogram("sprat_batch_pictures", text, buckets=SIZES, registry=own)
        text = "Lines of the log that were dropped because they could not be written in time"
        self.dropped = Counter("sprat_log_lines_dropped", text, registry=own)
        text = "Connections open"
        self.connections = Gauge("sprat_connections", text, registry=own)
        text = "Prediction requests in progress"
        self.in_flight = Gauge("sprat_requests_in_flight", text, registry=own)
        text = "Pictures that are waiting for the network"
        self.queue = Gauge("sprat_queue_pictures", text, registry=own)

    def answered(self, method: str, path: str, status: int, seconds: float) -> None:
        """Count a request."""
        method = method if method in METHODS else "other"
        path = path if path in PATHS else "other"
        self._requests.labels(method, path, status).inc()
        self._seconds.labels(path).observe(seconds)

    def refused(self, reason: str) -> None:
        """Count a refusal."""
        self._refusals.labels(reason).inc()
