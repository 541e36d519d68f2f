"""A page with all that a run, a load test and a check can show."""

from __future__ import annotations

import pytest

from offline.report.render import render
from tests.report.page import Page
from tests.report.samples import check_json, compare_json, run_result


@pytest.fixture(scope="session")
def full() -> Page:
    return Page(render(run_result(), serving=compare_json(), check=check_json()))
