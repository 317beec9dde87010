"""Hooks on shared objects: in their own thread only, taken away in any order."""

import copy
import inspect
import threading
from contextlib import ExitStack

import pytest
import torch

from lib_ccn.hooks import answered, compiled_within, free_copy, in_this_thread, put_in_front
from lib_ccn.recorder import CrossAttentionRecorder


class Greeter:
    def greet(self, name):
        return f"hello {name}"


def louder(own, name):
    return own(name) + "!"


def elsewhere(call):
    """The result of a call in another thread."""
    results = []
    thread = threading.Thread(target=lambda: results.append(call()))
    thread.start()
    thread.join()
    return results[0]


def test_another_thread_gets_the_methods_own_answer():
    greeter = Greeter()
    with answered(greeter, "greet", louder):
        assert greeter.greet("you") == "hello you!"
        assert elsewhere(lambda: greeter.greet("you")) == "hello you"
        assert list(inspect.signature(greeter.greet).parameters) == ["name"]
    assert "greet" not in vars(greeter)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (1, 2, 0), (0, 2, 1)])
@pytest.mark.parametrize("own", [False, True], ids=["of the class", "of the object"])
def test_answers_are_taken_out_in_any_order(order, own):
    greeter = Greeter()
    if own:
        greeter.greet = lambda name: f"hi {name}"
    before = dict(vars(greeter))
    stacks = [ExitStack() for _ in order]
    for number, stack in enumerate(stacks):
        stack.enter_context(
            answered(greeter, "greet", lambda own, name, n=number: f"{own(name)} {n}")
        )
    left = {0, 1, 2}
    for number in order:
        said = " ".join(map(str, sorted(left)))
        assert greeter.greet("you").endswith(f"you {said}")
        stacks[number].close()
        left.remove(number)
    assert vars(greeter) == before


def test_a_hook_of_one_thread():
    layer, heard = torch.nn.Linear(2, 2), []
    layer.register_forward_hook(in_this_thread(lambda *_: heard.append(1)))
    elsewhere(lambda: layer(torch.ones(1, 2)))
    assert not heard
    layer(torch.ones(1, 2))
    assert heard == [1]


def test_a_recorder_hears_the_thread_that_began_the_call():
    unet = torch.nn.Module()
    unet.attn2 = attention = torch.nn.Module()
    attention.heads = 1
    attention.to_q, attention.to_k = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

    def ask():
        attention.to_q(torch.ones(1, 16, 4))
        attention.to_k(torch.ones(1, 3, 4))

    with CrossAttentionRecorder(unet) as recorder:
        recorder.begin_call((16, 16), [0])
        elsewhere(ask)
        assert recorder.take() is None
        ask()
        assert recorder.take().shape == (1, 3, 4, 4)


def test_what_compilation_took_in():
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Sequential(torch.nn.ReLU()))
    assert not compiled_within(network)
    inner = network[1]
    inner.compile(backend="eager")
    assert compiled_within(network) == set(inner.modules())
    assert not compiled_within(network[0])
    wrapped = torch.compile(copy.copy(network), backend="eager")
    assert compiled_within(wrapped) >= {network[0], inner}


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

    def test_a_copy_of_the_owner_is_freed(self):
        owner = self.Owner()
        put_in_front(owner, "greet", lambda own, name: own(name) + "!")
        for one in (copy.copy(owner), copy.deepcopy(owner)):
            assert one.greet is owner.greet
            free_copy(one, "greet")
            assert one.greet("you") == "hello you"
            assert one.__dict__ == {}
        free_copy(owner, "greet")
        assert owner.greet("you") == "hello you!"
