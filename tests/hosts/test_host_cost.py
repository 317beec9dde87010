"""What the method costs: the same generation plain and fused, in turn, as a ratio."""

import time
from collections import defaultdict

import pytest
from hosts.cases import EVERYWHERE, using

pytestmark = pytest.mark.timeout(1800)


def seconds(host, body):
    started = time.perf_counter()
    host.generate(body)
    return time.perf_counter() - started


def test_ratio_of_step_times(host, figures, quick):
    size, few, many, rounds = (128, 1, 4, 2) if quick else (256, 1, 6, 3)
    plain = host.requests.body(width=size, height=size)
    bodies = {
        "plain": plain,
        "fusion": using(plain, {**EVERYWHERE, "inject": False}),
        "method": using(plain, {**EVERYWHERE, "start_step": 0}),
    }
    for body in bodies.values():
        host.generate({**body, "steps": 1})
    took = defaultdict(list)
    for _ in range(rounds):
        for name, body in bodies.items():
            for count in (few, many):
                took[name, count].append(seconds(host, {**body, "steps": count}))
    # Whatever else the machine does only adds: the least is closest to what it costs. The
    # difference leaves out what is not a step: texts, the VAE, the request itself.
    steps = {name: (min(took[name, many]) - min(took[name, few])) / (many - few) for name in bodies}
    figures[f"step at {size}x{size}, two units, seconds"] = round(steps["plain"], 2)
    for name in ("fusion", "method"):
        ratio = steps[name] / steps["plain"]
        figures[f"step time against plain, {name}"] = f"{ratio:.2f}"
        assert ratio < 2
