import json

import pytest
from sample_networks import GROUP

from companion import chosen
from companion.groups import Group
from robust_features.hardware import HardwareSettings
from robust_features.settings import UserError, describe


@pytest.fixture
def written(data):
    parts = {"networks/p/g": describe(GROUP), "networks/p/other": {}, "seed": 3, "hardware": {"threads": 2}}
    for name, part in parts.items():
        path = data / "params" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(part))


@pytest.mark.usefixtures("written")
def test_an_entry_comes_back_as_its_settings():
    assert chosen.entry("networks", "p/g", Group) == GROUP
    assert chosen.seed() == 3 and chosen.hardware() == HardwareSettings(threads=2)


@pytest.mark.usefixtures("written")
def test_an_entry_that_there_is_not_is_named_with_the_nearest():
    said = "run.yaml has no 'p/othr' among its networks; did you mean 'p/other'?; there are p/g, p/other"
    with pytest.raises(UserError) as error:
        chosen.entry("networks", "p/othr", Group)
    assert str(error.value) == said


def test_without_settings_written_out_the_command_is_told(data):
    with pytest.raises(
        UserError, match=r"params/seed.json: there is none yet; run `make status`, or `dvc repro params`"
    ):
        chosen.seed()
