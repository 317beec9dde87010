"""The example workflows: offered by the templates menu, of nodes and sockets that there are."""

import pytest
from hosts.server import OWN_FOLDER, ROOT

EXAMPLES = sorted(path.stem for path in (ROOT / "example_workflows").glob("*.json"))


def test_they_are_in_the_menu(host):
    assert sorted(host.call("/api/workflow_templates")[OWN_FOLDER]) == EXAMPLES
    assert len(EXAMPLES) == 2


@pytest.mark.parametrize("name", EXAMPLES)
def test_its_nodes_are_there(host, name):
    known = host.call("/object_info")
    workflow = host.call(f"/api/workflow_templates/{OWN_FOLDER}/{name}.json")
    assert (ROOT / "example_workflows" / f"{name}.jpg").is_file()
    by_id = {node["id"]: node for node in workflow["nodes"]}
    for node in workflow["nodes"]:
        described = known[node["type"]]["input"]
        names = {*described.get("required", {}), *described.get("optional", {})}
        assert {one["name"] for one in node["inputs"]} <= names, node["type"]
    assert {"CrossControlNetApply", "CrossControlNetWord", "CrossControlNetReport"} <= {
        node["type"] for node in workflow["nodes"]
    }
    for _id, source, slot, target, socket, kind in workflow["links"]:
        assert by_id[source]["outputs"][slot]["type"] == kind or kind == "*"
        assert by_id[target]["inputs"][socket]["link"] is not None
