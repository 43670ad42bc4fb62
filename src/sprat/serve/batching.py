"""Batching: one thread classifies the pictures of many requests together."""

import asyncio
from collections.abc import Callable
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sprat.classifier import Classifier
from sprat.evaluation.explain import Explanation


class _Job(NamedTuple):
    pixels: Tensor
    explained: str | None  # class to explain; None: return probabilities
    answer: asyncio.Future[Any]


class Batcher:
    """Run the network in its own thread, on all pictures that are waiting when it is free.

    It never waits for more pictures: while the network processes one batch, the next one gathers.

    Args:
        classifier: the model.
        most: maximum number of pictures in a batch.
        notify: called with the size of each batch, in that thread.
    """

    def __init__(
        self, classifier: Classifier, most: int, notify: Callable[[int], None] = lambda size: None
    ) -> None:
        self._classifier, self._most, self._notify = classifier, most, notify
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()  # None: the end
        self._thread = Thread(target=self._work, name="inference", daemon=True)
        self._thread.start()

    def submit(self, pixels: Tensor) -> asyncio.Future[list[float]]:
        """Return the future class probabilities (K) of a picture: uint8, C x side x side."""
        return self._put(pixels, None)

    def explain(self, pixels: Tensor, label: str) -> asyncio.Future[Explanation]:
        """Return the future explanation of where in a picture the evidence for a class is."""
        return self._put(pixels, label)

    def _put(self, pixels: Tensor, explained: str | None) -> asyncio.Future[Any]:
        job = _Job(pixels, explained, asyncio.get_running_loop().create_future())
        self._jobs.put(job)
        return job.answer

    def waiting(self) -> int:
        """Return the number of pictures that are waiting for the network."""
        return self._jobs.qsize()

    def close(self) -> None:
        """Process the waiting pictures, then end the thread."""
        self._jobs.put(None)
        self._thread.join()

    def _work(self) -> None:
        while job := self._jobs.get():
            batch = [job]
            while len(batch) < self._most:
                try:
                    following = self._jobs.get_nowait()
                except Empty:
                    break
                if following is None:
                    self._answer(batch)
                    return
                batch.append(following)
            self._answer(batch)

    def _answer(self, batch: list[_Job]) -> None:
        wanted = [job for job in batch if not job.answer.cancelled()]
        plain = [job for job in wanted if job.explained is None]
        for jobs in (plain, [job for job in wanted if job.explained is not None]):
            if jobs:
                self._notify(len(jobs))
                self._look_at(jobs)

    def _look_at(self, jobs: list[_Job]) -> None:
        """Process jobs of one kind."""
        answers: list[Any]
        try:
            pixels = torch.stack([job.pixels for job in jobs])
            if explained := [job.explained for job in jobs if job.explained is not None]:
                answers = list(self._classifier.explain(pixels, explained))
            else:
                answers = self._classifier(pixels).probabilities.tolist()
        except Exception as error:  # reported to the requests; the thread continues
            if len(jobs) > 1:  # a single picture may be the cause
                for job in jobs:
                    self._look_at([job])
                return
            answers = [error]
        # one call for all: each may wait for the event loop's thread
        jobs[0].answer.get_loop().call_soon_threadsafe(_settle, jobs, answers)


def _settle(jobs: list[_Job], answers: list[Any]) -> None:
    for job, answer in zip(jobs, answers, strict=True):
        if job.answer.done():  # the request has ended
            continue
        if isinstance(answer, Exception):
            job.answer.set_exception(answer)
        else:
            job.answer.set_result(answer)
