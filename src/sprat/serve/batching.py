"""Pictures of many requests, looked at together by one thread."""

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
    explained: str | None  # the class to explain; None: probabilities are asked for
    answer: asyncio.Future[Any]


class Batcher:
    """Asks the network in a thread of its own, about all pictures that wait when it is free.

    It never waits for more: while the network looks at one batch, the next gathers.

    Args:
        classifier: the model.
        most: pictures in a batch.
        told: called with the size of each batch, in that thread.
    """

    def __init__(
        self, classifier: Classifier, most: int, told: Callable[[int], None] = lambda size: None
    ) -> None:
        self._classifier, self._most, self._told = classifier, most, told
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()  # None: the end
        self._thread = Thread(target=self._work, name="inference", daemon=True)
        self._thread.start()

    def submit(self, pixels: Tensor) -> asyncio.Future[list[float]]:
        """Class probabilities, K, of one picture: uint8, C x side x side."""
        return self._put(pixels, None)

    def explain(self, pixels: Tensor, label: str) -> asyncio.Future[Explanation]:
        """Return where in such a picture the evidence for a class is."""
        return self._put(pixels, label)

    def _put(self, pixels: Tensor, explained: str | None) -> asyncio.Future[Any]:
        job = _Job(pixels, explained, asyncio.get_running_loop().create_future())
        self._jobs.put(job)
        return job.answer

    def waiting(self) -> int:
        """Pictures that the network has not begun with."""
        return self._jobs.qsize()

    def close(self) -> None:
        """Answers what waits, then ends the thread."""
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
                self._told(len(jobs))
                self._look_at(jobs)

    def _look_at(self, jobs: list[_Job]) -> None:
        """Answers jobs of one kind."""
        answers: list[Any]
        try:
            pixels = torch.stack([job.pixels for job in jobs])
            if explained := [job.explained for job in jobs if job.explained is not None]:
                answers = list(self._classifier.explain(pixels, explained))
            else:
                answers = self._classifier(pixels).probabilities.tolist()
        except Exception as error:  # who asked is told; the thread lives on
            if len(jobs) > 1:  # it may be for one picture's sake
                for job in jobs:
                    self._look_at([job])
                return
            answers = [error]
        # once for all: each call may wait for the event loop's thread
        jobs[0].answer.get_loop().call_soon_threadsafe(_settle, jobs, answers)


def _settle(jobs: list[_Job], answers: list[Any]) -> None:
    for job, answer in zip(jobs, answers, strict=True):
        if job.answer.done():  # nobody waits for it any more
            continue
        if isinstance(answer, Exception):
            job.answer.set_exception(answer)
        else:
            job.answer.set_result(answer)
