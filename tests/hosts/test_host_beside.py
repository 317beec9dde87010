"""Other extensions in the same generation: queues, other machines, regions of the prompt."""

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
from hosts.cases import ABSENT, BIG, EVERYWHERE, METHOD, SUM, encoded, layered, painted_mask, using
from hosts.checks import compared
from hosts.client import TITLE, HttpError, Reply, distance, done, pixels, same
from hosts.server import DISTRIBUTED_CONFIG, DISTRIBUTED_FOLDER, DISTRIBUTED_SPEED, OWN_FOLDER
from PIL import Image

pytestmark = [pytest.mark.timeout(3000), pytest.mark.full]


def need(host, title, name):
    """Skip unless the script of this title is installed."""
    known = [known.lower() for known in host.client.call("/sdapi/v1/scripts")["txt2img"]]
    if title.lower() not in known:
        pytest.skip(f"{name} is not installed; name its folder with --beside")


@pytest.mark.families(
    "a1111", why="Agent Scheduler does not load in gradio 4, and does not know reForge's units"
)
@pytest.mark.usefixtures("settled")
class TestAgentScheduler:
    """Its queue keeps a request as JSON and a pickle, and runs it later on a thread of its own."""

    @pytest.fixture(autouse=True)
    def installed(self, host):
        try:
            host.client.call("/agent-scheduler/v1/queue")
        except HttpError:
            pytest.skip("Agent Scheduler is not installed; name its folder with --beside")

    @pytest.fixture
    def queue(self, host):
        """Runs requests by the queue, in their order."""

        def submit(body):
            found = host.client.call("/agent-scheduler/v1/queue/txt2img", body)
            return found["task_id"]

        def wait(task):
            for _ in range(600):
                status = host.client.call(f"/agent-scheduler/v1/task/{task}")["data"]["status"]
                if status in ("done", "failed", "interrupted"):
                    break
                time.sleep(0.5)
            assert status == "done", host.server.log()[-4000:]
            found = host.client.call(f"/agent-scheduler/v1/task/{task}/results")["data"]
            text = found[0]["infotext"]
            info = {"infotexts": [text], "extra_generation_params": host.client.pasted(text)}
            return Reply([pixels(picture["image"]) for picture in found], info)

        def run(*bodies):
            return [wait(task) for task in [submit(body) for body in bodies]]

        return run

    @pytest.fixture
    def body(self, host):
        """The usual request; the queue takes a unit's picture only with a mask beside it."""
        units = host.requests.two()
        for unit in units:
            unit["image"] = {"image": unit["image"], "mask": None}
        return host.requests.body(units)

    def test_as_the_direct_request(self, host, queue, first, body):
        mask = encoded(painted_mask())
        asked = [
            using(body, EVERYWHERE),
            using(body, {**METHOD, "mask_source": "image", "mask_image": mask}),
            using(body, True, "pix+channel", 0.4, True, 1, 0, "auto", "auto", "star", "all"),
            using(body, SUM),
        ]
        direct = [host.generate(one) for one in asked]
        queued = queue(*asked, body)
        for one, other in zip(direct, queued, strict=False):
            assert same(one, other)
            assert one.infotexts == other.infotexts
            assert other.enabled
            assert other.note == ""
        assert same(first, queued[-1])
        assert not queued[-1].enabled, "settings of one task are those of the next"
        assert distance(first, queued[0]) > 0

    def test_arguments_by_name(self, host, queue, body):
        """The queue lets a script's arguments be named as its `process` names them."""
        body = using(body, EVERYWHERE)
        named = {**body["alwayson_scripts"], TITLE: {"args": {"args": [EVERYWHERE]}}}
        assert same(host.generate(body), *queue({**body, "alwayson_scripts": named}))

    def test_a_refused_setting(self, queue, body):
        reply = queue(using(body, {**EVERYWHERE, "delta": 7}))[0]
        assert "delta" in reply.note.lower()


class Worker(BaseHTTPRequestHandler):
    """Another machine, as sd-webui-distributed sees it; keeps what it is asked to generate."""

    def log_message(self, *_):
        """Silent."""

    def do_GET(self):
        self.answer(self.server.answers.get(self.path.rsplit("/", 1)[-1], []))

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.path.endswith("2img"):
            self.answer({})
            return
        self.server.asked.append(body)
        said = {name: body[name] for name in ("seed", "subseed", "prompt", "negative_prompt")}
        picture = encoded(Image.new("RGB", (body["width"], body["height"]), "red"))
        answer = {"images": [picture] * body["batch_size"], "parameters": body}
        self.answer({**answer, "info": json.dumps({**said, "infotexts": ["elsewhere"]})})

    def answer(self, thing):
        data = json.dumps(thing).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class TestDistributed:
    """sd-webui-distributed sends the processing object's attributes and all arguments as JSON."""

    @pytest.fixture(autouse=True)
    def installed(self, host):
        need(host, "Distribute", "sd-webui-distributed")

    @contextmanager
    def elsewhere(self, host):
        """Another machine for half of each batch."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), Worker)
        names = host.client.call("/sdapi/v1/scripts")["txt2img"]
        scripts = [{"name": name, "is_alwayson": True, "is_img2img": False} for name in names]
        memory = {"cuda": {"system": {"free": 2**34, "total": 2**34}}}
        server.answers = {"memory": memory, "script-info": scripts}
        server.asked = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        there = {**DISTRIBUTED_SPEED, "address": "127.0.0.1", "port": server.server_port}
        workers = [*DISTRIBUTED_CONFIG["workers"], {"elsewhere": there}]
        config = {**DISTRIBUTED_CONFIG, "workers": workers}
        path = host.installation.work / "extensions" / DISTRIBUTED_FOLDER

        def prepared():
            (path / "distributed-config.json").write_text(json.dumps(config), encoding="utf-8")

        try:
            with host.restarted(OWN_FOLDER, prepared):
                yield SimpleNamespace(asked=server.asked)
        finally:
            server.shutdown()
            server.server_close()

    def test_arguments_arrive(self, host):
        mask = encoded(painted_mask())
        settings = {**METHOD, "mask_source": "image", "mask_image": mask, "show_mask": True}
        body = using(host.requests.body(), settings)
        alone = host.generate(body)
        second = host.generate({**body, "seed": body["seed"] + 1})
        with self.elsewhere(host) as worker:
            reply = host.generate({**body, "batch_size": 2})
            (asked,) = worker.asked
            assert asked["alwayson_scripts"][TITLE]["args"][0] == settings
            # ControlNet's units are sent only if they come from the page.
            units = {"ControlNet": body["alwayson_scripts"]["ControlNet"]}
            asked["alwayson_scripts"] = {**asked["alwayson_scripts"], **units}
            asked["alwayson_scripts"].pop("controlnet", None)
            asked["alwayson_scripts"].pop("Distribute", None)
        # What the other machine would make of it.
        there = host.generate(asked)
        assert same(Reply(second.pictures, {}), Reply(there.pictures, {}))
        assert there.enabled
        assert len(reply.pictures) == 2
        assert same(alone, Reply(reply.pictures[:1], {}))
        assert reply.note == ""


# Its arguments, in their order; the prompt's lines share the picture from left to right.
COUPLE = [True, False, "Basic", "\n", "Horizontal", "None", 0.5, [], "off", False, False]
LINES = "a red star above the sea\na blue boat under the sky"


@pytest.mark.usefixtures("settled")
class TestForgeCouple:
    """sd-forge-couple gives each part of the picture a line of the prompt, in the UNet."""

    @pytest.fixture(autouse=True)
    def installed(self, host):
        need(host, "Forge Couple", "sd-forge-couple")

    def coupled(self, host, **changes):
        body = host.requests.body(**{"prompt": LINES, **changes})
        body["alwayson_scripts"]["Forge Couple"] = {"args": COUPLE}
        return body

    def test_summed_and_fused(self, host, figures):
        body = self.coupled(host)
        found = compared(host, body)
        assert distance(found.plain, host.generate(host.requests.body(prompt=LINES))) > 0
        assert found.counts["fuse_residuals"] == body["steps"]
        assert found.counts["inject_keys_values"] == body["steps"] - 1
        assert found.note == ""
        figures["forge-couple, grey levels"] = round(distance(found.plain, found.fused), 1)

    @pytest.mark.parametrize("more", [{}, {"batch_size": 2}, {"negative_prompt": "blurry " * 90}])
    def test_word(self, host, more):
        """A word of the first line: the mask is the one of that line's attention."""
        body = self.coupled(host, steps=3, **more)
        host.state()
        reply = host.generate(using(body, {**METHOD, "mask_threshold": 0.3, "start_step": 0}))
        assert reply.note == ""
        assert host.state()["counts"]["inject_keys_values"] > 0

    def test_two_in_front_by_words_of_two_lines(self, host):
        body = self.coupled(host, **BIG)
        plain = host.generate(body)
        assert same(plain, host.generate(using(body, layered(ABSENT))))
        entries = ({"unit": 0, "word": "star"}, {"unit": 1, "word": "boat"})
        reply = host.generate(using(body, layered(*entries)))
        assert reply.note == ""
        assert "mask from word star (given)" in done(reply)
        assert "mask from word boat (given)" in done(reply)
        assert distance(plain, reply) > 0
