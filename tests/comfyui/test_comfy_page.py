"""The nodes in ComfyUI's page: found by search, an example loaded, run, its report shown."""

import json
import time

import pytest
from hosts.page import start_browser

pytestmark = [pytest.mark.page, pytest.mark.timeout(1200)]

PACK = "sd-webui-cross-controlnet"
NODES = ("Apply Cross-ControlNet", "Foreground word", "Cross-ControlNet layer")
READY = """
return !!(window.app?.graph && window.LiteGraph
    && window.LiteGraph.registered_node_types['CrossControlNetApply']
    && document.querySelector('#graph-canvas'));
"""
LOAD = """
const [graph, done] = arguments;
window.app.loadGraphData(graph).then(() => done(''), error => done(String(error)));
"""
RUN = "const done = arguments[0]; window.app.queuePrompt(0).then(() => done(1));"
SHOWN = """
const node = window.app.graph.nodes.find(node => node.type === 'CrossControlNetReport');
return Boolean(node?.imgs?.length);
"""
OFFERED = """
return [...document.querySelectorAll('[role=option]')].some(
    one => one.textContent.includes(arguments[0]));
"""
CHOOSE = """
[...document.querySelectorAll('[role=option]')].find(
    one => one.textContent.includes(arguments[0])).click();
"""
TOLD = """
return window.app.graph.nodes.find(node => node.type === 'PreviewAny')
    ?.widgets?.map(widget => String(widget.value)).join(' ') ?? '';
"""


def until(true, what, seconds=240):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"after {seconds} s there is still not {what}"
        time.sleep(0.5)


def escape(page):
    """Close what lies over the graph."""
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    ActionChains(page).send_keys(Keys.ESCAPE).perform()
    time.sleep(1)


@pytest.fixture(scope="module")
def page(host):
    """ComfyUI's page in headless Chromium."""
    try:
        driver = start_browser()
    except RuntimeError as reason:
        pytest.skip(str(reason))
    driver.set_window_size(1900, 1250)
    driver.set_script_timeout(120)
    driver.get(host.url)
    until(lambda: driver.execute_script(READY), "a page", 120)
    time.sleep(3)  # it loads its default graph, and greets who is new with its templates
    escape(driver)
    yield driver
    driver.quit()


@pytest.mark.parametrize("name", NODES)
def test_found_by_search(host, page, name):
    from selenium.webdriver import ActionChains

    escape(page)
    page.execute_script("window.app.graph.clear(); window.app.canvas.setDirty(true, true);")
    canvas = page.find_element("css selector", "#graph-canvas")
    ActionChains(page).move_to_element_with_offset(canvas, 100, 200).double_click().perform()
    time.sleep(2)
    ActionChains(page).send_keys(name).perform()
    until(lambda: page.execute_script(OFFERED, name), f"{name} among what is found", 60)
    page.execute_script(CHOOSE, name)
    kinds = "return window.app.graph.nodes.map(node => node.title);"
    try:
        until(lambda: name in page.execute_script(kinds), f"a node {name}", 30)
    finally:
        page.save_screenshot(str(host.server.installation.work / "search.png"))


def smaller(workflow):
    """An example with this test's models, and pictures of 128 pixels."""
    nets = iter(("ccn-random-a.safetensors", "ccn-random-b.safetensors"))
    sizes = ("SolidMask", "MaskComposite", "FeatherMask", "EmptyLatentImage")
    for node in workflow["nodes"]:
        values = node.get("widgets_values")
        if node["type"] == "CheckpointLoaderSimple":
            values[0] = "ccn-random-sd15.safetensors"
        elif node["type"] == "ControlNetLoader":
            values[0] = next(nets)
        elif node["type"] in sizes:
            node["widgets_values"] = [v // 4 if type(v) is int and v > 8 else v for v in values]
        elif node["type"] == "KSampler":
            values[values.index(30)] = 4
    return workflow


def test_an_example_runs_and_shows_its_report(host, page):
    workflow = host.call(f"/api/workflow_templates/{PACK}/cross-controlnet.json")
    assert page.execute_async_script(LOAD, smaller(workflow)) == ""
    page.execute_script(
        "window.app.canvas.ds.scale = 0.7; window.app.canvas.ds.offset = [150, 80];"
    )
    page.execute_async_script(RUN)
    until(lambda: page.execute_script(SHOWN), "a report")
    until(lambda: "KV-Injection in" in page.execute_script(TOLD), "a summary", 30)
    time.sleep(2)
    page.save_screenshot(str(host.server.installation.work / "page.png"))
    wrong = [line["message"] for line in page.get_log("browser") if PACK in line["message"]]
    assert not wrong


def test_the_flux_example_loads(host, page):
    workflow = host.call(f"/api/workflow_templates/{PACK}/cross-controlnet-flux.json")
    assert page.execute_async_script(LOAD, workflow) == ""
    count = page.execute_script("return window.app.graph.nodes.length;")
    assert count == len(workflow["nodes"])
    assert json.dumps(workflow).count("CrossControlNet") >= 3
