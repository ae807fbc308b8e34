import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from companion.paths import LIBRARY
from companion.report.surroundings import apart, channel


@pytest.mark.parametrize("name", ["PYTHONSTARTUP", "PYTHONWARNINGS", "JUPYTER_PATH", "JUPYTER_DATA_DIR", "IPYTHONDIR"])
def test_a_users_settings_are_out_of_the_environment_and_back_in_it_afterwards(name, tmp_path, monkeypatch):
    monkeypatch.setenv(name, "theirs")
    monkeypatch.setenv("PYTHONPATH", "theirs")
    before = dict(os.environ)
    with pytest.raises(ZeroDivisionError), apart(tmp_path) as folder:
        assert os.environ.get(name) != "theirs" and os.environ["PYTHONPATH"] == str(LIBRARY)
        assert os.environ["IPYTHONDIR"].startswith(str(folder)) and os.environ["HOME"] == before["HOME"]
        raise ZeroDivisionError
    assert dict(os.environ) == before and not folder.exists()


def test_a_kernel_is_reached_through_ports_where_a_sockets_name_is_too_long():
    with TemporaryDirectory(dir="/tmp") as short:
        long = Path(short, "ä" * 50)
        long.mkdir()
        assert [channel(folder)["transport"] for folder in (Path(short), long)] == ["ipc", "tcp"]
