"""The command's face: words in, exit status and messages out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from sublet.cli import app, completion, main
from sublet.cli.app import _with_default_stats
from sublet.errors import HostRefused

SUBLET = [sys.executable, "-m", "sublet"]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version"]) == 0
    assert capsys.readouterr().out.startswith("sublet 0.")


def test_guests_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["guests", "--json"]) == 0
    names = [guest["name"] for guest in json.loads(capsys.readouterr().out)]
    assert {"default", "debian"} <= set(names)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["frobnicate"], "No such command"),
        (["run", "--engine", "xen"], "'xen'"),
        (["run", "--memory", "lots"], "'lots' is not a size"),
        (["run", "--memory", "512K"], "--memory 512K is less than 1 MiB. Give MiB or GiB, as in 512M."),
        (["run", "--cpus", "two"], "--cpus"),
        (["run", "--stats=xml"], "'xml'"),
        (["run", "no-such-guest"], "no-such-guest"),
        (["run", "debian", "--kernel", "vmlinuz"], "not both"),
        (["run", "--initrd", "initrd.gz"], "--initrd needs --kernel"),
        (["run", *["--floppy", "none"] * 3], "at most 2"),
        (["net", "setup", "tap0", "--queues", "9"], "--queues"),
        (["disk", "info"], "Missing argument 'FILE'"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(
    words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("sublet: error: ")
    assert captured.err.count("\n") == 1
    assert complaint in captured.err


def test_a_missing_kernel_is_no_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--kernel", str(tmp_path / "none")]) in {2, 3, 4}
    assert "none" in capsys.readouterr().err


def test_help_tells_the_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--help"]) == 0
    text = capsys.readouterr().out
    for status in ("70", "80", "81", "82", "130"):
        assert status in text


def test_every_flag_that_is_promised(capsys: pytest.CaptureFixture[str]) -> None:
    main(["run", "--help"])
    text = capsys.readouterr().out
    for flag in (
        "engine",
        "cpus",
        "memory",
        "kernel",
        "initrd",
        "append",
        "disk",
        "net",
        "no-reboot",
        "stats",
    ):
        assert f"--{flag}" in text


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["run", "--stats"], ["run", "--stats=table"]),
        (["run", "--stats=json"], ["run", "--stats=json"]),
        (["run", "--", "--stats"], ["run", "--", "--stats"]),
    ],
)
def test_stats_alone_is_a_table(words: list[str], expected: list[str]) -> None:
    assert _with_default_stats(words) == expected


@pytest.mark.parametrize(
    ("raised", "status", "text"),
    [
        (
            HostRefused("no space on /tmp", remedy="Free some."),
            3,
            "sublet: error: no space on /tmp. Free some.",
        ),
        (ZeroDivisionError("oops"), 70, "ZeroDivisionError: oops"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_every_failure_ends_in_a_line(
    raised: BaseException,
    status: int,
    text: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(_: object) -> None:
        raise raised

    monkeypatch.setattr(app, "_perform", fail)
    assert main([]) == status
    error = capsys.readouterr().err
    assert text in error
    assert "Traceback" not in error


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    read, write = os.pipe()
    os.close(read)
    result = subprocess.run([*SUBLET, "guests"], stdout=write, stderr=subprocess.PIPE, timeout=60)
    os.close(write)
    assert result.stderr == b""


def test_closed_standard_descriptors_are_survived() -> None:
    command = " ".join(SUBLET) + " version <&- >&-"
    result = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, timeout=60)
    assert (result.returncode, result.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("words", "help_of"),
    [
        (["disk", "snapshot", "x", "--list"], "sublet disk snapshot"),
        (["disk", "no"], "sublet disk"),
        (["no"], "sublet"),
    ],
)
def test_what_is_not_understood_names_its_own_help(
    capsys: pytest.CaptureFixture[str], words: list[str], help_of: str
) -> None:
    assert main(words) == 2
    assert capsys.readouterr().err.endswith(f"See {help_of} --help.\n")


@pytest.mark.parametrize("words", [[], ["disk"], ["disk", "live"], ["net"]])
def test_no_verb_is_a_help_page(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert main(words) == 2
    captured = capsys.readouterr()
    assert f"Usage: {' '.join(['sublet', *words])}" in captured.out
    assert captured.err == ""


def test_every_verb_has_a_help_page() -> None:
    def walk(command: click.Command, context: click.Context) -> int:
        assert command.get_help(context).count("Usage: ") == 1
        names = command.list_commands(context) if isinstance(command, click.Group) else []
        below = [command.get_command(context, name) for name in names]
        return 1 + sum(walk(one, click.Context(one, context, one.name)) for one in below)

    assert walk(app._COMMAND, click.Context(app._COMMAND, info_name="sublet")) > 40


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("sublet ru", {"run"}),
        ("sublet disk live mi", {"mirror"}),
        ("sublet run --engine ", {"auto", "kvm", "translate"}),
    ],
)
def test_a_shell_is_told_what_may_come_next(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, line: str, offered: set[str]
) -> None:
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(line.split(" ")) - 1))
    monkeypatch.setenv("_SUBLET_COMPLETE", "bash_complete")
    assert main([]) == 0
    assert {row.partition(",")[2] for row in capsys.readouterr().out.split()} == offered


@pytest.mark.parametrize(("shell", "startup"), [("bash", ".bashrc"), ("zsh", ".zshrc")])
def test_completion_is_installed_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shell: str, startup: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SHELL", f"/bin/{shell}")
    monkeypatch.setattr(completion, "_names", lambda: (shell,))
    for _ in range(2):
        assert main(["--install-completion"]) == 0
    scripts = [path for path in tmp_path.rglob("*sublet*") if path.is_file()]
    assert "_SUBLET_COMPLETE" in scripts[0].read_text()
    assert (tmp_path / startup).read_text().count("\n") == 1
