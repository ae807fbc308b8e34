import matplotlib.pyplot as plt
import pandas as pd

from robust_features.report import curves


def test_a_name_has_one_colour_in_all_panels_also_where_some_lack_names():
    rows = pd.DataFrame({"x": [0, 1], "value": [1.0, 2.0], "low": [0.0, 1.0], "high": [2.0, 3.0]})
    every = pd.concat([rows.assign(victim=name) for name in ("densenet", "googlenet", "resnet")])
    panels, (left, right) = plt.subplots(1, 2)
    curves(left, every, x="x", hue="victim", names=every["victim"].unique())
    curves(right, every[every["victim"] != "googlenet"], x="x", hue="victim", names=every["victim"].unique())
    colours = [{line.get_label(): line.get_color() for line in axis.get_lines()} for axis in (left, right)]
    bands = [[tuple(band.get_facecolor()[0][:3]) for band in axis.collections] for axis in (left, right)]
    plt.close(panels)
    assert colours[1] == {name: colours[0][name] for name in ("densenet", "resnet")}
    assert len({*colours[0].values()}) == 3 and bands[1] == [bands[0][0], bands[0][2]]
