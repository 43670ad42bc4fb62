"""Pictures of many requests, looked at together by one thread."""

from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Thread
from typing import NamedTuple

import torch
from torch import Tensor

from sprat.predict import Classifier


class _Job(NamedTuple):
    pixels: Tensor
    answer: Future[Tensor]


class Batcher:
    """Asks the network in a thread of its own, about all pictures that wait when it is free.

    It never waits for more: while the network looks at one batch, the next gathers. Kernels that
    have not been compiled are compiled before the first.

    Args:
        classifier: the model.
        most: pictures in a batch.
        told: is told the size of each batch, in that thread.
    """

    def __init__(
        self, classifier: Classifier, most: int, told: Callable[[int], None] = lambda size: None
    ) -> None:
        self._classifier, self._most, self._told = classifier, most, told
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()  # None: the end
        self._thread = Thread(target=self._work, name="inference", daemon=True)
        self._thread.start()

    def submit(self, pixels: Tensor) -> Future[Tensor]:
        """Class probabilities, K, float32, of one picture: uint8, 3 x side x side."""
        job = _Job(pixels, Future())
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
        with suppress(Exception):  # the network answers without its kernels too
            self._classifier.prepare()
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
        wanted = [job for job in batch if job.answer.set_running_or_notify_cancel()]
        if wanted:
            self._told(len(wanted))
            self._look_at(wanted)

    def _look_at(self, jobs: list[_Job]) -> None:
        try:
            rows = self._classifier(torch.stack([job.pixels for job in jobs])).probabilities
        except Exception as error:  # who asked is told; the thread lives on
            if len(jobs) == 1:
                jobs[0].answer.set_exception(error)
            else:  # it may be for one picture's sake
                for job in jobs:
                    self._look_at([job])
            return
        for job, row in zip(jobs, rows, strict=True):
            job.answer.set_result(row)
