"""Hooks on shared objects: in their own thread only, taken away in any order."""

import copy
import inspect
import threading
from contextlib import ExitStack

import pytest
import torch

from lib_ccn.hooks import (
    AttentionCalls,
    answered,
    compiled_within,
    free_copy,
    in_this_thread,
    listen,
    put_in_front,
)
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


def test_hooks_that_come_and_go_together():
    layers, heard = [torch.nn.Linear(2, 2) for _ in range(3)], []
    other = layers[0].register_forward_hook(lambda *_: heard.append("other"))
    takes_away = [
        listen([(layer, lambda *_, n=n, who=who: heard.append((who, n))) for n, layer in pairs])
        for who, pairs in (("a", list(enumerate(layers))), ("b", list(enumerate(layers[1:], 1))))
    ]
    for layer in layers:
        layer(torch.ones(1, 2))
    assert heard == ["other", ("a", 0), ("a", 1), ("b", 1), ("a", 2), ("b", 2)]
    for undo in (*takes_away, *takes_away):  # again does no harm
        undo()
    assert [len(layer._forward_hooks) for layer in layers] == [1, 0, 0]
    other.remove()
    assert not any(layer._forward_hooks for layer in layers)


def test_a_listeners_result_is_the_modules():
    layer = torch.nn.Linear(2, 2)
    undo = listen([(layer, lambda _module, args, own: own + args[0])])
    x = torch.ones(1, 2)
    changed = layer(x)
    undo()
    assert torch.equal(changed, layer(x) + x)


class TestAttentionCalls:
    """What stands in for torch's attention function."""

    qkv = tuple(torch.randn(1, 2, 4, 8) for _ in range(3))

    def ask(self, **more):
        return torch.nn.functional.scaled_dot_product_attention(*self.qkv, **more)

    def test_it_answers_in_its_thread(self):
        own = self.ask()
        with AttentionCalls(lambda attend, *qkv: attend(*qkv) + 1):
            assert torch.equal(self.ask(), own + 1)
            assert torch.equal(elsewhere(self.ask), own)
        assert torch.equal(self.ask(), own)

    def test_a_function_that_a_host_put_in_place_of_torchs_is_heard(self, monkeypatch):
        own, function = self.ask(), torch.nn.functional.scaled_dot_product_attention
        monkeypatch.setattr(
            torch.nn.functional, "scaled_dot_product_attention", lambda *qkv: function(*qkv) * 2
        )
        with AttentionCalls(lambda attend, *qkv: attend(*qkv) + 1):
            assert torch.equal(self.ask(), (own + 1) * 2)

    def test_what_others_compiled_is_not_compiled_anew(self):
        made = []
        compiled = torch.compile(self.ask, backend=lambda graph, _: made.append(1) or graph.forward)
        own = compiled()
        with AttentionCalls(lambda attend, *qkv: attend(*qkv) + 1):
            assert torch.equal(elsewhere(compiled), own)
        assert made == [1]

    @pytest.mark.parametrize("named", [False, True])
    def test_other_arguments_reach_the_function(self, named):
        query, key, value = self.qkv
        arguments = {"query": query, "key": key, "value": value} if named else {}
        given = () if named else self.qkv
        own = torch.nn.functional.scaled_dot_product_attention(*given, **arguments, scale=0.3)
        with AttentionCalls(lambda attend, *qkv: attend(*qkv)):
            found = torch.nn.functional.scaled_dot_product_attention(*given, **arguments, scale=0.3)
        assert torch.equal(found, own)
        assert not torch.equal(own, self.ask())

    @pytest.mark.parametrize("more", [{"attn_mask": torch.eye(4).bool()}, {"is_causal": True}])
    def test_a_call_with_a_mask_is_left_alone_and_counted(self, more):
        own = self.ask(**more)
        with AttentionCalls(lambda *_: 1 / 0) as calls:
            assert torch.equal(self.ask(**more), own)
        assert calls.masked == 1

    def test_nothing_stays_after_an_error(self):
        function = torch.nn.functional.scaled_dot_product_attention
        with pytest.raises(ZeroDivisionError), AttentionCalls(lambda *_: 1 / 0):
            self.ask()
        assert torch.nn.functional.scaled_dot_product_attention is function

    def test_two_sessions_in_two_threads(self):
        """Each has its own answer, whichever ends first."""
        own, inside, go_on, found = self.ask(), threading.Event(), threading.Event(), []

        def other():
            with AttentionCalls(lambda attend, *qkv: attend(*qkv) * 3):
                inside.set()
                go_on.wait(10)
                found.append(self.ask())

        thread = threading.Thread(target=other)
        with AttentionCalls(lambda attend, *qkv: attend(*qkv) * 2):
            thread.start()
            inside.wait(10)
            assert torch.equal(self.ask(), own * 2)
        go_on.set()
        thread.join()
        assert torch.equal(found[0], own * 3)
        assert torch.equal(self.ask(), own)


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
