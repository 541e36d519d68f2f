"""A closed loop's stages as locust's own shape of load."""

from __future__ import annotations

from locust import LoadTestShape

from loadtest.load import Load

_SPAWN_RATE = 1000.0  # users of a stage are there at once; a ramp is in their number


class StagesShape(LoadTestShape):
    """So many users as the stages of a workload say."""

    def __init__(self, load: Load) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._load = load

    def tick(self) -> tuple[int, float] | None:
        """The number of users now; None ends the test."""
        users = self._load.users_at(self.get_run_time())  # type: ignore[no-untyped-call]
        return None if users is None else (users, _SPAWN_RATE)
