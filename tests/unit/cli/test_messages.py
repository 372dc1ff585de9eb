"""Errors, progress and statistics as the user reads them."""

from __future__ import annotations

import json

import pytest

from sublet.cli.messages import ProgressDisplay, report
from sublet.cli.statistics import StatisticsFormat, print_statistics
from sublet.errors import UsageError


def test_an_error_is_one_line_with_its_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    assert report(UsageError("0 MiB of memory\nis too little", remedy="Give 64M or more.")) == 2
    assert capsys.readouterr().err == "sublet: error: 0 MiB of memory is too little. Give 64M or more.\n"


def test_progress_without_a_terminal_is_a_line_a_step(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressDisplay() as progress:
        for done in range(5):
            progress("fetching linux-image", done, 5)
        progress("building the initramfs")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "sublet: fetching linux-image\nsublet: building the initramfs\n"


def test_statistics_for_programs_are_one_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    print_statistics({"exits.pio_out": 3, "blocks.translated": 2}, StatisticsFormat.JSON)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert json.loads(captured.err) == {"blocks.translated": 2, "exits.pio_out": 3}


def test_statistics_for_people_are_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    print_statistics({"exits.pio_out": 1234567}, StatisticsFormat.TABLE)
    assert "1,234,567" in capsys.readouterr().err
