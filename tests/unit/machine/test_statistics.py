"""Counters of a run over several vCPUs and boots."""

from __future__ import annotations

from sublet.machine.statistics import Totals


def test_counts_add_up_and_the_longest_time_stays() -> None:
    totals = Totals()
    totals.add({"vcpu.halts": 2, "translate.longest_flush_us": 30})
    totals.add({"vcpu.halts": 3, "translate.longest_flush_us": 20})
    totals.count("vcpu.halts")
    assert totals.as_dict() == {"translate.longest_flush_us": 30, "vcpu.halts": 6}
