"""Graphs in which something is wrong: refused with a reason that names it, or sampled."""

import json

import numpy as np
import pytest
from comfyui.client import RefusedError
from comfyui.graphs import APPLY
from comfyui.malformed import malformed

pytestmark = pytest.mark.timeout(3000)


def without_ours(graph):
    """The same graph, our node taken out of it."""
    nodes = json.loads(json.dumps(graph.nodes))
    for name, node in list(nodes.items()):
        if node["class_type"] == APPLY:
            behind = {0: node["inputs"]["positive"], 1: node["inputs"]["negative"]}
            for other in nodes.values():
                for key, value in other["inputs"].items():
                    if isinstance(value, list) and value[0] == name and value[1] in behind:
                        other["inputs"][key] = behind[value[1]]
            del nodes[name]
    gone = ("CrossControlNetReport", "CCNProbeReport")
    return {name: node for name, node in nodes.items() if node["class_type"] not in gone}


@pytest.mark.usefixtures("settled")
def test_generated(host, figures, request):
    count = 26 if request.config.getoption("--webui-quick") else 117
    refused, taken, wrong = 0, 0, []
    for number, case in enumerate(malformed(count)):
        try:
            done = host.run(case.graph)
        except RefusedError as error:
            refused += 1
            if not case.refused or case.refused not in error.details:
                wrong.append((number, "refused", error.details[:300]))
            continue
        except AssertionError as error:
            wrong.append((number, "failed", str(error)[-300:]))
            continue
        taken += 1
        latents = done.kept()
        if case.refused or not np.isfinite(latents).all():
            wrong.append((number, "taken", case.refused))
        elif case.says not in done.summary:
            wrong.append((number, "no reason", case.says, done.summary))
        elif case.plain and not np.array_equal(latents, host.run(without_ours(case.graph)).kept()):
            wrong.append((number, "another picture than the host's own"))
    figures["malformed graphs"] = (
        f"{count}: {refused} refused by ComfyUI with a reason, {taken} sampled with one, "
        f"{len(wrong)} wrong"
    )
    assert not wrong
