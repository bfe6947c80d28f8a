"""Metrics of the server in the text format of Prometheus."""

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Requests by status, their latency, images in a batch, and the process's memory and time."""

    def __init__(self) -> None:
        from prometheus_client import (
            CollectorRegistry,
            Counter,
            Histogram,
            PlatformCollector,
            ProcessCollector,
        )

        self._registry = CollectorRegistry()
        ours = {"registry": self._registry}
        ProcessCollector(**ours)
        PlatformCollector(**ours)
        self._requests = Counter(
            "repvgg_requests", "Requests to classify images", ["status"], **ours
        )
        self._latency = Histogram(
            "repvgg_request_seconds",
            "Time from the head of a request to its answer",
            buckets=_SECONDS,
            **ours,
        )
        self._batches = Histogram(
            "repvgg_batch_images", "Images in a batch", buckets=_SIZES, **ours
        )

    def request(self, status: int, seconds: float) -> None:
        """Counts a request that was answered."""
        self._requests.labels(str(status)).inc()
        self._latency.observe(seconds)

    def batch(self, size: int) -> None:
        """Counts a batch of images."""
        self._batches.observe(size)

    def text(self) -> bytes:
        """Returns all metrics as text."""
        from prometheus_client import generate_latest

        return generate_latest(self._registry)
