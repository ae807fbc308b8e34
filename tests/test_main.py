import importlib
import sys
from types import SimpleNamespace

import pytest

from companion import __main__ as command
from robust_features.settings import UserError


def run(monkeypatch, main, *arguments):
    """The exit status, or message, of a command whose module has this `main`."""
    monkeypatch.setattr(sys, "argv", ["companion", *arguments])
    monkeypatch.setattr(importlib, "import_module", lambda name: SimpleNamespace(main=main))
    with pytest.raises(SystemExit) as end:
        command.main()
    return end.value.code


def test_a_command_that_is_stopped_while_it_imports_says_so_in_one_line_and_to_its_shell(monkeypatch, capsys):
    def interrupted():
        assert sys.argv == ["companion", "--only", "x"]
        raise KeyboardInterrupt

    assert run(monkeypatch, interrupted, "engine", "--only", "x") == 130 and capsys.readouterr().err == "stopped\n"


def test_what_is_wrong_is_said_without_a_traceback_and_what_is_ours_to_mend_with_one(monkeypatch):
    def wrong():
        raise UserError("params.yaml: no such key")

    assert run(monkeypatch, wrong, "params") == "params.yaml: no such key"
    with pytest.raises(ZeroDivisionError):
        run(monkeypatch, lambda: 1 / 0, "params")


@pytest.mark.parametrize("arguments", [[], ["engin"]])
def test_a_command_that_there_is_not_lists_those_that_there_are(monkeypatch, arguments):
    said = run(monkeypatch, None, *arguments)
    assert all(f"\n  {name} " in said for name in command.COMMANDS)
