"""What is counted, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
# a client must not be able to make new series
METHODS = frozenset({"GET", "HEAD", "POST"})
PATHS = frozenset({"/", "/docs", "/healthz", "/metrics", "/openapi.json", "/predict"})


class Metrics:
    """Counters of one server, and of its process: resident memory, CPU, open files."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._requests = Counter(
            "sprat_requests",
            "Requests answered",
            ("method", "path", "status"),
            registry=self.registry,
        )
        self._seconds = Histogram(
            "sprat_request_seconds",
            "From a request's headers to the end of its answer",
            ("path",),
            buckets=SECONDS,
            registry=self.registry,
        )
        self._refusals = Counter(
            "sprat_refusals", "Requests and pictures refused", ("reason",), registry=self.registry
        )
        self.batches = Histogram(
            "sprat_batch_pictures",
            "Pictures that the network looked at together",
            buckets=SIZES,
            registry=self.registry,
        )
        self.in_flight = Gauge(
            "sprat_requests_in_flight", "Predictions under way", registry=self.registry
        )
        self.queue = Gauge(
            "sprat_queue_pictures", "Pictures waiting for the network", registry=self.registry
        )

    def answered(self, method: str, path: str, status: int, seconds: float) -> None:
        """Counts a request."""
        method = method if method in METHODS else "other"
        path = path if path in PATHS else "other"
        self._requests.labels(method, path, status).inc()
        self._seconds.labels(path).observe(seconds)

    def refused(self, reason: str) -> None:
        """Counts a refusal."""
        self._refusals.labels(reason).inc()
