"""One count over several passes."""

from bayesrm_fast.model.passes import Progress


class PassCounter:
    """Counts the examples of several passes as one."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress, self.total, self.before, self.latest = progress, total, 0, 0

    def next_pass(self) -> Progress | None:
        """What the next pass tells; None where nobody is told."""
        if self.progress is None:
            return None
        self.before += self.latest
        return self._tell

    def _tell(self, done: int, _: int) -> None:
        self.latest = done
        assert self.progress is not None
        self.progress(self.before + done, self.total)
