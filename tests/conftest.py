import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tensors here are too small to share among threads

import pytest

from companion import paths


@pytest.fixture
def data(tmp_path, monkeypatch):
    """The project's data folder, for this test; it is written to as by the pipeline, and pages to the folder `page`."""
    monkeypatch.setattr(paths, "DATA", tmp_path / "data")
    monkeypatch.setenv(paths.PAGE, str(tmp_path / "page"))
    return tmp_path / "data"


@pytest.fixture
def page(data):
    """The folder of the page that the pipeline makes, for this test."""
    return data.with_name("page")
