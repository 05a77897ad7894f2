from __future__ import annotations

import pytest

from modistill.data.cohort import Fault
from modistill.data.processes import run_each
from tiny_cohort import fragile


@pytest.mark.parametrize("workers", [1, 2])
def test_what_goes_wrong_costs_only_the_item(workers):
    items = ["a", "refused", "b", "bug", "memory", "c"]
    results = dict(run_each(fragile, items, workers))
    assert set(results) == set(items)
    assert [results[item] for item in "abc"] == ["A", "B", "C"]
    assert str(results["refused"]) == "p7: not today (try tomorrow)"
    assert "unexpected ZeroDivisionError: by zero" in str(results["bug"])
    assert "not enough memory" in str(results["memory"])


def test_a_dead_process_costs_only_the_item_that_killed_it():
    items = ["a", "dies", "b", "c", "d", "e", "f"]
    results = dict(run_each(fragile, items, 2))
    died = results.pop("dies")
    assert isinstance(died, Fault)
    assert "died" in died.reason
    assert results == {item: item.upper() for item in items if item != "dies"}
