"""The axes of the X/Y/Z plot, with a plot reduced to what it does with an axis."""

import copy
import sys
import types

import pytest

from lib_ccn.settings import Settings, fields
from lib_ccn.webui import xyz
from lib_ccn.webui.arguments import RefusedError, read

LABELS = [
    "[CCN] Fusion mode",
    "[CCN] Delta",
    "[CCN] Injection",
    "[CCN] Start step",
    "[CCN] Start layer",
    "[CCN] Foreground word",
    "[CCN] Mask threshold",
    "[CCN] Layers",
    "[CCN] Foreground gain",
    "[CCN] Outside all places",
]


class AxisOption:
    """The plot's own class has these arguments in all four WebUIs."""

    def __init__(
        self,
        label,
        type,
        apply,
        format_value=None,
        confirm=None,
        cost=0.0,
        choices=None,
        prepare=None,
    ):
        self.label, self.type, self.apply, self.confirm = label, type, apply, confirm
        self.format_value, self.cost, self.choices = format_value, cost, choices


@pytest.fixture
def plot(monkeypatch):
    plot = types.ModuleType("xyz_grid.py")
    plot.AxisOption = AxisOption
    plot.axis_options = [AxisOption("Nothing", str, lambda p, x, xs: None)]
    modules = types.ModuleType("modules")
    data = [("/webui/scripts/xyz_grid.py", plot), ("/webui/scripts/other.py", None)]
    modules.scripts = types.SimpleNamespace(
        scripts_data=[types.SimpleNamespace(path=path, module=module) for path, module in data]
    )
    monkeypatch.setitem(sys.modules, "modules", modules)
    return plot


def axis(name):
    return xyz.axis(name, AxisOption)


def cell(name, text, p=None):
    """One cell of a plot: the value typed, confirmed, applied to a copy."""
    option = axis(name)
    xs = [option.type(text)]
    option.confirm(p, xs)
    pc = copy.copy(p or types.SimpleNamespace())
    option.apply(pc, xs[0], xs)
    return pc


def test_axes_are_added_once_and_after_a_reload(plot):
    xyz.register()
    assert [option.label for option in plot.axis_options] == ["Nothing", *LABELS]
    # The plot offers an axis in both tabs only if it is of exactly this class.
    assert {type(option) for option in plot.axis_options} == {AxisOption}
    first = list(plot.axis_options)
    xyz.register()
    assert plot.axis_options == first
    plot.axis_options[:] = first[:1]
    xyz.register()
    assert [option.label for option in plot.axis_options] == ["Nothing", *LABELS]


def test_another_kind_of_plot_is_left_alone(plot, caplog):
    del plot.AxisOption
    xyz.register()
    assert len(plot.axis_options) == 1
    assert "X/Y/Z" in caplog.text


def test_types_and_choices(plot):
    assert axis("delta").type is axis("mask_threshold").type is float
    assert axis("start_step").type is axis("start_layer").type is int
    assert axis("fusion").choices() == list(fields()["fusion"].choices)
    assert axis("inject").choices() == ["true", "false"]
    assert axis("foreground_word").choices is None
    for name in ("fusion", "inject"):
        option = axis(name)
        option.confirm(None, option.choices())


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("fusion", "pix", "pix"),
        ("fusion", " PIX+Channel ", "pix+channel"),
        ("delta", "0.5", 0.5),
        ("delta", "1", 1.0),
        ("delta", "0.60000000000000009", 0.6),
        ("inject", "false", False),
        ("inject", "False", False),
        ("inject", "TRUE", True),
        ("start_step", "3", 3),
        ("start_layer", "6", 6),
        ("foreground_word", "red star", "red star"),
        ("foreground_word", "50%25", "50%25"),
        ("foreground_word", "", ""),
        ("mask_threshold", "0", 0.0),
    ],
)
def test_a_cell_has_its_value_and_is_on(name, text, value):
    axes = cell(name, text).cross_controlnet_axes
    assert axes == {name: value}
    assert type(axes[name]) is type(value)
    request = read([False], axes)
    assert request.problem is None
    assert request.settings == Settings(enabled=True, **{name: value})


def test_axes_add_up_and_cells_do_not_share():
    p = types.SimpleNamespace()
    first = cell("delta", "0.1", p)
    both = cell("start_step", "7", first)
    assert first.cross_controlnet_axes == {"delta": 0.1}
    assert both.cross_controlnet_axes == {"delta": 0.1, "start_step": 7}
    assert not hasattr(p, "cross_controlnet_axes")


@pytest.mark.parametrize(
    ("name", "xs", "message"),
    [
        ("fusion", ["pix", "pixel"], "'pixel' is refused"),
        ("delta", [0.5, 1.5], "from 0 to 1"),
        ("delta", [float("nan")], "delta"),
        ("inject", ["maybe"], "true or false"),
        ("start_step", [-1], "from 0 to 150"),
        ("start_layer", [41], "from 0 to 40"),
        ("foreground_word", ["x" * 500], "at most 200 characters"),
        ("mask_threshold", [2.0], "mask_threshold"),
        ("fusion", [], "no value"),
        ("delta", [], "no value"),
    ],
)
def test_a_bad_value_is_refused_before_the_grid_begins(name, xs, message):
    option = axis(name)
    with pytest.raises(RefusedError, match=message) as caught:
        option.confirm(None, xs)
    assert option.label in str(caught.value)
    # What the WebUIs' API makes its answer of.
    assert vars(caught.value).items() >= {"status_code": 422, "detail": str(caught.value)}.items()


def test_the_plot_s_range_may_overshoot_by_one(caplog):
    xs = [0.0, 0.25, 0.5, 0.75, 1.0, 1.25]
    axis("delta").confirm(None, xs)
    assert xs == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert "1.25 is left out" in caplog.text
    for refused in ([0.5, 1.25], [0.0, 0.5, 1.5], [0.0, 1.0, 1.25]):
        with pytest.raises(RefusedError, match="delta"):
            axis("delta").confirm(None, refused)


def test_the_label_of_an_empty_word_says_what_it_does():
    option = axis("foreground_word")
    assert option.format_value(None, option, "") == "[CCN] Foreground word: (automatic)"
    assert option.format_value(None, option, "star") == "[CCN] Foreground word: star"
