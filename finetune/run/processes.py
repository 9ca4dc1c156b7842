"""The processes that train one model together: they meet, are compared, and miss one that is gone."""

import contextlib
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from torch import distributed
from transformers import TrainingArguments

from finetune.errors import FinetuneError
from finetune.run.waiting import WaitingRoom, is_lost_connection

__all__ = ["Processes"]


class Processes:
    """All processes of a job, as one of them sees them; a single one is a job too.

    Args:
        training: Knows how many there are, and which this one is.
    """

    def __init__(self, training: TrainingArguments):
        self.count = training.world_size
        self.is_main = training.process_index == 0
        self.is_first_of_host = training.local_process_index == 0
        self.waiting_room = None
        if self.count > 1:
            self.waiting_room = WaitingRoom(timedelta(seconds=training.ddp_timeout))

    def wait(self) -> None:
        """Wait until every process is here.

        Raises:
            FinetuneError: If one of them has ended, or can't be reached any more.
        """
        if self.waiting_room is not None:
            try:
                self.waiting_room.wait()
            except RuntimeError as error:
                raise self._lost(error) from error

    def gather(self, own: Any) -> list[Any]:
        """Return what each process has, in their order."""
        found = [own] * self.count
        if self.count > 1:
            distributed.all_gather_object(found, own)
        return found

    def compare(self, what: str, own: dict[str, Any]) -> None:
        """Refuse a process, maybe on another host, whose settings or data are not those of the others.

        Raises:
            FinetuneError: Naming the process and what differs.
        """
        self.wait()
        found = self.gather(own)
        for number, other in enumerate(found):
            differing = [name for name in found[0] if other.get(name) != found[0][name]]
            if differing:
                raise FinetuneError(
                    f"Expected the same {what} in every process, but process {number} differs from process 0 in "
                    f"{', '.join(differing)}. Start all of them alike, with the same files."
                )

    @contextlib.contextmanager
    def main_process_first(self) -> Iterator[None]:
        """Let one process of each host do the work, and the others after it, which find it in the cache."""
        if not self.is_first_of_host:
            self.wait()
        yield
        if self.is_first_of_host:
            self.wait()

    def raise_if_lost(self, error: BaseException | None) -> None:
        """Raise an error that says what happened, where another process was lost in a call of torch.

        Raises:
            FinetuneError: If it was that.
        """
        if self.waiting_room is not None and isinstance(error, RuntimeError) and is_lost_connection(error):
            raise self._lost(error) from error

    def leave(self, at_once: bool) -> None:
        """Leave together with all others, or, after an error, alone."""
        if self.waiting_room is not None:
            self.waiting_room.leave(at_once)

    def _lost(self, error: RuntimeError) -> FinetuneError:
        return FinetuneError(
            f"Expected {self.count} processes, but one ended or its host can't be reached "
            f"({str(error).partition(chr(10))[0][:200]}). Look for its own message above, then give the same command "
            "again: the run goes on from its last checkpoint."
        )
