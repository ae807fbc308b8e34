import runpy
import sys

import pytest

from companion import __main__ as command


def test_a_command_that_is_stopped_while_it_imports_says_so_in_one_line_and_to_its_shell(monkeypatch, capsys):
    def interrupted(name, **how):
        assert name == "companion.engine" and sys.argv == ["companion", "--only", "x"]
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["companion", "engine", "--only", "x"])
    monkeypatch.setattr(runpy, "run_module", interrupted)
    with pytest.raises(SystemExit) as end:
        command.main()
    assert end.value.code == 130 and capsys.readouterr().err == "stopped\n"
