"""The playground behind its page: what it reads, makes, records and shows."""

import importlib
import os
import re
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from demo.command_line import keep_to_this_machine
from demo.demo_model import generate, load_pipeline
from demo.examples import bundled_examples, two_object_examples
from demo.figures import decision_image, to_image
from demo.options import data_folder, parse_page
from demo.page_run import (
    FIRST,
    FUSED,
    SUM,
    Cancelled,
    Layer,
    Order,
    OrderError,
    Outcome,
    Record,
    Studio,
    UnitOrder,
    finished,
    make_first,
)
from lib_ccn.fusion import channel_fusion, pix_fusion
from lib_ccn.hosts.diffusers import cross_controlnet
from lib_ccn.rules import AVERAGED
from lib_ccn.settings import Settings, SettingsError
from lib_ccn.webui.presets import PresetStore
from lib_ccn.winners import AVERAGED_COLOUR, COLOURS, winners

keep_to_this_machine(os.environ)
pytest.importorskip("gradio", reason="gradio is not installed (requirements/playground.txt)")
page = importlib.import_module("demo.page")
controls = importlib.import_module("demo.page_controls")
views = importlib.import_module("demo.page_events")

NAMES = ("outline", "regions")
STEPS = 3


@pytest.fixture(scope="module")
def studio():
    return Studio(load_pipeline(), NAMES)


@pytest.fixture(scope="module")
def order():
    example = bundled_examples()[0]
    return Order(
        prompt=example.prompt,
        negative_prompt="",
        seed=4,
        steps=STEPS,
        guidance_scale=3.0,
        units=(UnitOrder(0, 0, example.foreground), UnitOrder(1, 1, example.background)),
        settings=Settings(
            enabled=True, foreground_word=example.word, start_step=1, mask_reduction=2, strict=True
        ),
    )


@pytest.fixture(scope="module")
def outcome(studio, order):
    return studio.make(order)


def pixels(image):
    return np.asarray(image).astype(int)


class TestOptions:
    @pytest.mark.parametrize("port", ["80", "65536", "x", "-1"])
    def test_a_port_that_cannot_be_is_refused(self, port, capsys):
        with pytest.raises(SystemExit) as left:
            parse_page([f"--port={port}"])
        assert left.value.code == 2
        assert "--port" in capsys.readouterr().err

    def test_controlnets_add_up(self):
        given = parse_page(["--controlnet", "a", "--controlnet", "b", "--port", "7999"])
        assert given.controlnets == ["a", "b"]
        assert given.port == 7999

    @pytest.mark.parametrize(
        ("platform", "variables", "folder"),
        [
            ("linux", {"XDG_DATA_HOME": "/data"}, Path("/data/cross-controlnet")),
            ("linux", {}, Path.home() / ".local/share/cross-controlnet"),
            ("darwin", {}, Path.home() / "Library/Application Support/cross-controlnet"),
            ("win32", {"LOCALAPPDATA": "/local"}, Path("/local/cross-controlnet")),
        ],
    )
    def test_presets_lie_where_the_system_keeps_data(self, platform, variables, folder):
        assert data_folder(variables, platform) == folder


class TestStart:
    def test_nothing_of_gradio_telephones_or_goes_through_a_proxy(self):
        variables = {"no_proxy": "example.org"}
        keep_to_this_machine(variables)
        assert variables["GRADIO_ANALYTICS_ENABLED"] == "False"
        assert variables["no_proxy"].split(",") == ["example.org", "127.0.0.1"]
        assert variables["NO_PROXY"] == "127.0.0.1"

    def test_the_first_start_saves_the_values_it_shows(self, tmp_path):
        store = PresetStore(tmp_path / "new")
        name = page.starting_preset(store, bundled=True)
        values = store.load(name)
        assert (values["start_step"], values["mask_reduction"]) == ("auto", 2)

    def test_a_model_of_ones_own_starts_as_the_paper(self, tmp_path):
        store = PresetStore(tmp_path / "new")
        assert page.starting_preset(store, bundled=False) == "Paper (SD 1.5)"
        assert not store.folder.exists()

    def test_a_preset_changed_by_the_user_stays(self, tmp_path):
        store = PresetStore(tmp_path)
        name = page.starting_preset(store, bundled=True)
        store.save(name, {"delta": 0.2})
        assert page.starting_preset(store, bundled=True) == name
        assert store.load(name)["delta"] == 0.2

    def test_a_folder_that_cannot_be_written_costs_the_preset_alone(self, tmp_path, capsys):
        file = tmp_path / "file"
        file.write_text("")
        assert page.starting_preset(PresetStore(file / "below"), bundled=True) == ""
        assert "cannot be saved" in capsys.readouterr().err


class TestFirst:
    def test_the_finished_example_is_what_the_page_makes(self):
        made = make_first()
        for shipped, own in zip(finished(), (made.plain, made.fused), strict=True):
            assert np.abs(pixels(shipped) - pixels(own)).mean() < 1

    def test_it_is_small(self):
        sizes = [path.stat().st_size for path in FIRST.iterdir()]
        assert sum(sizes) < 20_000


class TestConditions:
    def test_what_the_editor_shows_is_read_back_exactly(self):
        condition = (bundled_examples()[0].background * 255).round() / 255
        value = controls.editor_value(controls.shown_condition(condition))
        assert value["background"].size == (512, 512)
        assert torch.allclose(controls.read_condition(value, 64), condition, atol=1e-6)

    def test_strokes_on_nothing_lie_on_black(self):
        canvas = Image.new("RGBA", (512, 512), (255, 255, 255, 0))
        canvas.paste((255, 255, 255, 255), (0, 0, 256, 512))
        read = controls.read_condition({"background": None, "layers": [], "composite": canvas}, 64)
        assert read[:, :, :32].min() == 1
        assert read[:, :, 32:].max() == 0

    @pytest.mark.parametrize(
        "value",
        [
            None,
            controls.editor_value(None),
            controls.editor_value(Image.new("RGBA", (9, 9), (0, 0, 0, 0))),
        ],
    )
    def test_an_empty_editor_is_no_condition(self, value):
        assert controls.read_condition(value, 64) is None

    @pytest.mark.parametrize(("mode", "white"), [("I;16", 65535), ("I", 65535), ("F", 1.0)])
    def test_a_deep_map_keeps_its_range(self, mode, white):
        kind = {"I;16": "<u2", "I": "<i4", "F": "<f4"}[mode]
        ramp = torch.linspace(0, 1, 64).expand(64, 64)
        values = (ramp * white).numpy().astype(kind)
        read = controls.read_condition(
            controls.editor_value(Image.frombytes(mode, (64, 64), values.tobytes())), 64
        )
        assert (read - ramp).abs().max() < 1 / 255

    @pytest.mark.parametrize("error", [RuntimeError, NotImplementedError, SyntaxError, KeyError])
    def test_what_cannot_be_decoded_is_refused_by_its_number(self, error, monkeypatch):
        def load(*_):
            raise error("as a test")

        picture = Image.new("RGB", (8, 8))
        monkeypatch.setattr(picture, "getexif", load)
        with pytest.raises(OrderError, match=r"Condition 1 cannot be used: .*as a test"):
            controls.read_order(
                ("a star", "", 1, 3, 3.0), [(False, "", None), (True, "outline", picture)],
                (True,), NAMES, 64,
            )  # fmt: skip

    @pytest.mark.parametrize("mode", ["L", "P", "RGB", "CMYK", "I;16"])
    @pytest.mark.parametrize("size", [(300, 100), (1, 1), (100, 333)])
    def test_any_picture_becomes_a_square_of_the_model(self, mode, size):
        read = controls.read_condition(controls.editor_value(Image.new(mode, size)), 64)
        assert read.shape == (3, 64, 64)


class TestOrders:
    def read(self, basics=("a star", "", 1, 3, 3.0), units=None, method=(True,)):
        grey = controls.editor_value(Image.new("RGB", (64, 64), (128, 128, 128)))
        if units is None:
            units = [(True, "outline", grey), (False, "outline", None), (True, "regions", grey)]
        return controls.read_order(basics, units, method, NAMES, 64)

    def test_units_keep_their_numbers_and_nets(self):
        order = self.read()
        assert [(u.number, u.net) for u in order.units] == [(0, 0), (2, 1)]
        assert order.settings.enabled

    def test_switched_off_there_is_no_method(self):
        assert self.read(method=(False,)).settings is None

    @pytest.mark.parametrize(
        ("place", "value", "name"),
        [
            (2, -1, "Seed"),
            (2, None, "Seed"),
            (2, 2**32, "Seed"),
            (2, 0.5, "Seed"),
            (3, 0, "Steps"),
            (3, 101, "Steps"),
            (3, float("nan"), "Steps"),
            (4, 0.5, "Guidance"),
            (4, "much", "Guidance"),
            (4, float("inf"), "Guidance"),
        ],
    )
    def test_a_control_out_of_range_is_named(self, place, value, name):
        basics = ["a star", "", 1, 3, 3.0]
        basics[place] = value
        with pytest.raises(OrderError, match=name):
            self.read(basics)

    def test_an_empty_condition_is_named(self):
        with pytest.raises(OrderError, match="Condition 1 is empty"):
            self.read(units=[(False, "outline", None), (True, "outline", None)])

    def test_an_unknown_controlnet_is_named(self):
        grey = controls.editor_value(Image.new("RGB", (8, 8)))
        with pytest.raises(OrderError, match="no ControlNet 'other'"):
            self.read(units=[(True, "other", grey)])

    def test_a_refused_setting_is_named(self):
        with pytest.raises(OrderError, match="delta"):
            self.read(method=({"delta": 3},))


class TestDecisions:
    @pytest.mark.parametrize("count", [2, 3])
    def test_channels_are_what_channel_fusion_takes(self, count):
        units = [torch.randn(1, 64, 8, 8) * torch.rand(1, 64, 1, 1) for _ in range(count)]
        fused, decided = channel_fusion(units, 0.7)[0], winners(units, 0.7, channel_fusion)[0]
        assert set(decided.tolist()) == {AVERAGED, *range(count)}
        for channel, winner in enumerate(decided.tolist()):
            taken = [torch.equal(fused[channel], unit[0, channel]) for unit in units]
            assert taken == [winner == place for place in range(count)]

    def test_what_is_recorded_is_what_is_fused(self, studio, order, outcome, monkeypatch):
        seen = {}
        own = Record._keep

        def keep(record, session, outputs):
            own(record, session, outputs)
            seen[record.step] = [[r[-1:] for r in outputs[unit]] for unit in session.units]

        monkeypatch.setattr(Record, "_keep", keep)
        record = studio.make(order).record
        assert sorted(record.decisions) == list(range(STEPS))
        for step, (first, second) in seen.items():
            for layer, decided in zip(record.layers, record.decisions[step], strict=True):
                pair = [first[layer.number], second[layer.number]]
                if layer.is_middle:
                    assert torch.equal(decided, winners(pair, 0.7, channel_fusion)[0])
                    continue
                fused = pix_fusion(pair, 0.7)[0]
                for place, unit in enumerate(pair):
                    won = decided == place
                    assert torch.equal(fused[:, won], unit[0][:, won])
                assert torch.equal(decided, winners(pair, 0.7)[0])


class TestStudio:
    def test_the_plain_sum_is_the_pipelines_own(self, studio, order, outcome):
        conditions = [unit.condition[None] for unit in order.units]
        own = generate(studio.pipe, [order.prompt], [order.seed], conditions, steps=STEPS)[0]
        assert np.array_equal(pixels(outcome.plain), pixels(to_image(own)))

    def test_the_other_picture_is_the_methods_from_the_same_noise(self, studio, order, outcome):
        conditions = [unit.condition[None] for unit in order.units]
        with cross_controlnet(studio.pipe, order.settings):
            own = generate(studio.pipe, [order.prompt], [order.seed], conditions, steps=STEPS)[0]
        assert np.array_equal(pixels(outcome.fused), pixels(to_image(own)))
        assert not np.array_equal(pixels(outcome.fused), pixels(outcome.plain))

    def test_with_the_sum_both_are_alike(self, studio, order):
        made = studio.make(replace(order, settings=Settings(fusion="sum", inject=False)))
        assert np.array_equal(pixels(made.fused), pixels(made.plain))

    def test_masks_come_from_the_step_before(self, outcome):
        assert sorted(outcome.record.fronts) == [1, 2]
        ((unit, mask),) = outcome.record.fronts[2]
        assert (unit, mask.dtype) == (0, torch.bool)
        assert "KV-Injection" in outcome.notes

    def test_switched_off_there_is_only_the_sum(self, studio, order, outcome):
        made = studio.make(replace(order, settings=None))
        assert made.fused is None
        assert not made.record.decisions
        assert np.array_equal(pixels(made.plain), pixels(outcome.plain))

    def test_the_sum_is_made_again_only_where_it_changes(self, studio, order):
        def stages(order):
            seen = []
            studio.make(order, lambda progress: seen.append((progress.stage, progress.share)))
            assert seen[-1][1] == 1
            return [stage for stage, _ in seen]

        studio.make(order)
        assert stages(replace(order, settings=Settings(delta=0.2))) == [FUSED] * STEPS
        assert stages(replace(order, seed=5)) == [SUM] * STEPS + [FUSED] * STEPS

    def test_one_unit_is_too_few(self, studio, order):
        with pytest.raises(OrderError, match="Two ControlNets"):
            studio.make(replace(order, units=order.units[:1]))

    def test_units_are_chosen_by_their_number_on_the_page(self, studio, order):
        units = (order.units[0], replace(order.units[1], number=2))
        settings = order.settings.replace(foreground_unit=2)
        made = studio.make(replace(order, units=units, settings=settings))
        assert "controlnet-regions (foreground)" in made.notes
        with pytest.raises(SettingsError, match=r"\[0, 2\]"):
            studio.make(
                replace(order, units=units, settings=Settings(foreground_unit=1)),
            )

    def test_two_conditions_may_share_a_controlnet(self, studio, order):
        units = (*order.units, UnitOrder(2, 1, order.units[1].condition.flip(-1)))
        made = studio.make(replace(order, units=units))
        assert made.names == ("outline", "regions", "regions")
        assert 2 in torch.cat([d.flatten() for d in made.record.decisions[0]])

    def test_layers_are_of_the_units_by_their_numbers_on_the_page(self, studio, order):
        example = two_object_examples()[0]
        one, two, rest = example.conditions
        units = (UnitOrder(0, 1, rest), UnitOrder(2, 0, two), UnitOrder(3, 0, one))
        settings = order.settings.replace(
            foreground_word="", fusion="layers", inject=False, layers="3 star, 2 triangle"
        )
        given = replace(order, prompt=example.prompt, units=units, settings=settings)
        made = studio.make(given)
        assert [unit for unit, _mask in made.record.fronts[2]] == [2, 1]
        assert not (made.record.fronts[2][0][1] & made.record.fronts[2][1][1]).any()
        assert {int(d.max()) for d in made.record.decisions[0]} == {AVERAGED}, "no place yet"
        assert {int(v) for d in made.record.decisions[2] for v in d.unique()} >= {AVERAGED, 2}
        picture, said = views.mask_view(made, 2)
        assert picture.size == (512, 512)
        assert re.search(r"\d+% for unit 3, \d+% for unit 2.*used by layers", said)
        assert "no mask yet" in views.mask_view(made, 0)[1]
        assert "all added up" in views.winner_note(made, 2, 0)
        with pytest.raises(SettingsError, match=r"layers = 1 .*one of \[0, 2, 3\], which are on"):
            studio.make(replace(given, settings=settings.replace(layers="3 star, 1 triangle")))

    @pytest.mark.parametrize("after", [1, STEPS + 1])
    def test_cancelled_it_ends_and_leaves_nothing(self, studio, order, outcome, after):
        studio._plain = None
        seen = []
        with pytest.raises(Cancelled):
            studio.make(order, seen.append, lambda: len(seen) >= after)
        assert len(seen) == after
        again = studio.make(order)
        assert np.array_equal(pixels(again.fused), pixels(outcome.fused))

    def test_two_at_once_take_turns(self, studio, order):
        studio._plain = None
        seen = []

        def make(seed):
            studio.make(replace(order, seed=seed), lambda _: seen.append(seed))

        threads = [threading.Thread(target=make, args=(seed,)) for seed in (7, 8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert seen in ([7] * 6 + [8] * 6, [8] * 6 + [7] * 6)

    def test_a_missing_mask_image_is_refused_where_it_is_needed(self, studio, order):
        with pytest.raises(SettingsError, match="mask_image"):
            studio.make(replace(order, settings=Settings(mask_source="image")))
        plain = Settings(mask_source="image", inject=False, fusion="sum")
        assert studio.make(replace(order, settings=plain)).fused is not None


class TestViews:
    @pytest.mark.parametrize(("step", "used"), [(1, "used by"), (2, "used by"), (0, "no mask yet")])
    def test_an_automatic_start_is_counted_in_the_orders_steps(self, outcome, step, used):
        settings = outcome.order.settings.replace(start_step="auto")
        automatic = replace(outcome, order=replace(outcome.order, settings=settings))
        assert used in views.mask_view(automatic, step)[1]

    def test_a_mask_is_shown_where_there_is_one(self, outcome):
        image, note = views.mask_view(outcome, 2)
        assert image.size == (512, 512)
        assert "used by KV-Injection" in note
        _, none = views.mask_view(outcome, 0)
        assert "no mask yet" in none

    def test_a_layer_is_coloured_by_its_winners(self):
        decided = torch.tensor([[0, 1], [AVERAGED, 2]], dtype=torch.int8)
        shown = pixels(decision_image(decided)).reshape(4, 3).tolist()
        expected = [COLOURS[0], COLOURS[1], AVERAGED_COLOUR, COLOURS[2]]
        assert shown == [list(colour) for colour in expected]

    def test_channels_fill_a_square(self):
        decided = torch.zeros(5, dtype=torch.int8)
        shown = pixels(decision_image(decided))
        assert shown.shape == (2, 3, 3)
        assert shown[1, 2].tolist() == [255, 255, 255]

    def test_the_legend_has_everyones_share(self, order):
        layer = Layer(0, 8, 2, 2, is_middle=False)
        decided = torch.tensor([[0, 1], [1, AVERAGED]], dtype=torch.int8)
        record = Record([layer], {0: [decided]})
        grey = Image.new("RGB", (8, 8))
        outcome = Outcome(order, grey, grey, record, ("<b>", "regions"), "", 0.0)
        note = views.winner_note(outcome, 0, 0)
        assert "0: &lt;b&gt; <b>25%</b>" in note
        assert "1: regions <b>50%</b>" in note
        assert "averaged, as they agree <b>25%</b>" in note

    def test_other_rules_are_told_apart(self, outcome):
        assert "would decide" not in views.winner_note(outcome, 1, 0)
        settings = outcome.order.settings.replace(fusion="mean")
        other = replace(outcome, order=replace(outcome.order, settings=settings))
        assert "would decide" in views.winner_note(other, 1, 0)

    def test_every_layer_is_in_the_gallery(self, outcome):
        shown = views.layer_gallery(outcome, 1)
        assert len(shown) == len(outcome.record.layers) == 7
        assert shown[-1][1] == "middle, 128 channels"

    @pytest.mark.parametrize(("share", "percent"), [(-1, 0), (0.5, 50), (2, 100)])
    def test_a_bar_has_two_ends(self, share, percent):
        assert f'aria-valuenow="{percent}"' in views.bar(share, "x")

    def test_text_cannot_be_markup(self):
        assert "<script>" not in views.wrong("<script>") + views.bar(0, "<script>")

    def test_names_are_short_and_apart(self):
        given = ["controlnet-outline", "control_v11p_sd15_canny", "net", "net"]
        assert views.short_names(given) == ["outline", "v11p_sd15_canny", "net (2)", "net (3)"]
