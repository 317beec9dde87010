"""One sampling: whose rows are whose, steps, errors, and methods put in front."""

import re
from types import SimpleNamespace

import pytest
import torch

from lib_ccn.hosts.a1111 import RowClock
from lib_ccn.hosts.in_front import put_in_front
from lib_ccn.settings import Settings, SettingsError
from lib_ccn.units import Role, Unit

from .stand_ins import a_sampling, conditioning


class TestRowClock:
    def test_one_call_for_all(self):
        clock = RowClock(a_sampling(conditioning([[(1, 1)]], [[(1, 1)]])))
        pictures, rows = clock.next_call(4)
        assert pictures == [0, 1, 0, 1]
        assert rows == {(0, 0): 0, (1, 0): 1}

    def test_several_sub_prompts(self):
        clock = RowClock(a_sampling(conditioning([[(1, 1)], [(1, 2)]], [[(1, 1)], [(1, 2)]])))
        pictures, rows = clock.next_call(6)
        assert pictures == [0, 0, 1, 1, 0, 1]
        assert rows == {(0, 0): 0, (0, 1): 1, (1, 0): 2, (1, 1): 3}

    def test_halves_apart(self):
        sampling = a_sampling(conditioning([[(1, 1)]], [[(1, 1)]]))
        clock = RowClock(sampling)
        for step in (0, 1):
            sampling.p.sampler.model_wrap_cfg.step = step
            assert clock.next_call(2) == ([0, 1], {(0, 0): 0, (1, 0): 1})
            assert clock.next_call(2) == ([0, 1], {})

    def test_more_rows_than_expected(self):
        clock = RowClock(a_sampling(conditioning([[(1, 1)]], [[(1, 1)]])))
        assert clock.next_call(6) == ([], {})


class TestSampling:
    def test_second_order_samplers_ask_twice_a_step(self):
        sampling = a_sampling(step=5)
        assert sampling.step == 5
        sampling.p.sampler.config.options["second_order"] = True
        assert sampling.step == 2

    def test_tiles_are_no_whole_picture(self):
        sampling = a_sampling()
        rows = {(0, 0): 2, (1, 0): 3}
        whole = sampling.call((8, 8), [0, 1, 0, 1], rows)
        assert whole.whole
        assert list(whole.conditional) == [2, 3]
        assert not sampling.call((4, 8), [0, 1, 0, 1], rows).whole
        assert not sampling.call((8, 8), [0, 1, 2, 3], rows).whole, "more pictures than sampled"
        assert not sampling.call((8, 8), [], {}).whole

    def test_a_batch_in_pieces_is_read_piece_by_piece(self):
        sampling = a_sampling(conditioning([[(1, 1)], [(1, 2)]], [[(1, 1)], [(1, 2)]]))
        clock = RowClock(sampling)
        calls = [sampling.call((8, 8), *clock.next_call(2)) for _ in range(3)]
        assert all(call.whole and call.total == 2 for call in calls)
        assert [list(call.conditional) for call in calls] == [[0], [0], []]
        assert [list(call.pictures) for call in calls] == [[0, 0], [1, 1], [0, 1]]

    def test_everything_is_undone_even_if_something_cannot_be(self, caplog):
        sampling, done = a_sampling(), []
        sampling.on_close += [lambda: done.append(1), lambda: 1 / 0, lambda: done.append(3)]
        sampling.close()
        sampling.close()
        assert done == [3, 1]
        assert "could not clean up" in caplog.text

    def test_nothing_large_is_kept_when_it_is_over(self):
        sampling = a_sampling(conditioning([[(1, 1)]]))
        sampling.end()
        sampling.end()
        assert sampling.p is None
        assert sampling.cond is None
        assert sampling.begin(torch.nn.Module(), []) is None
        assert sampling.step == 0

    @pytest.mark.parametrize("name", ["foreground_unit", "background_unit"])
    def test_a_named_unit_of_the_other_pass_is_automatic(self, name):
        sampling = a_sampling()
        sampling.p.sd_model = SimpleNamespace()
        sampling.settings = Settings(inject=False, strict=True, **{name: 0})
        sampling.resting = {0}
        units = [Unit(torch.nn.Module(), number=1), Unit(torch.nn.Module(), number=2)]
        session = sampling.begin(torch.nn.Module(), units)
        assert [unit.role for unit in units] == [Role.FOREGROUND, Role.BACKGROUND]
        assert "unit 0 is not for this pass" in session.notes[-1]

    def test_a_named_unit_that_is_not_there_is_an_error(self):
        for numbers, allowed in (((1, 2), r"'auto' or one of \[1, 2\]"), ((-1, -2), "not sure")):
            sampling = a_sampling()
            sampling.p.sd_model = SimpleNamespace()
            sampling.settings = Settings(inject=False, foreground_unit=0)
            units = [Unit(torch.nn.Module(), number=number) for number in numbers]
            assert sampling.begin(torch.nn.Module(), units) is None
            assert re.search(allowed, sampling.aside)

    def test_errors_are_kept_or_raised(self):
        sampling = a_sampling()
        sampling.fail(RuntimeError("oh no"))
        assert sampling.aside == "RuntimeError: oh no"
        strict = a_sampling()
        strict.settings = Settings(strict=True)
        error = SettingsError("delta", 2, "less")
        with pytest.raises(SettingsError):
            strict.fail(error)
        assert strict.failed_with(error)
        assert not strict.failed_with(RuntimeError("the host's"))


class TestInFront:
    class Owner:
        def greet(self, name):
            return f"hello {name}"

    def test_is_undone(self):
        owner = self.Owner()
        undo = put_in_front(owner, "greet", lambda own, name: own(name) + "!")
        assert owner.greet("you") == "hello you!"
        assert self.Owner().greet("you") == "hello you", "only this instance"
        undo()
        assert owner.greet("you") == "hello you"
        assert owner.__dict__ == {}

    def test_what_was_there_comes_back(self):
        owner = self.Owner()
        owner.greet = theirs = lambda name: "hi"
        put_in_front(owner, "greet", lambda own, name: own(name) + "!")()
        assert owner.greet is theirs

    def test_what_others_put_over_it_stays(self):
        owner = self.Owner()
        undo = put_in_front(owner, "greet", lambda own, name: own(name) + "!")
        ours = owner.greet
        owner.greet = theirs = lambda name: ours(name) + "?"
        undo()
        assert owner.greet is theirs
        assert owner.greet("you") == "hello you?"

    def test_what_stays_goes_on_behind_others(self):
        owner = self.Owner()
        undo = put_in_front(owner, "greet", lambda own, name: own(name) + "!", stays=True)
        ours = owner.greet
        owner.greet = lambda name: ours(name) + "?"
        undo()
        assert owner.greet("you") == "hello you!?"
        del owner.greet
        put_in_front(owner, "greet", lambda own, name: own(name) + "!", stays=True)()
        assert owner.greet("you") == "hello you"
