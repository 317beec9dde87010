"""What the two routes answer, and whom."""

import json

import pytest

from lib_ccn.settings import fields
from lib_ccn.webui import api
from lib_ccn.webui.presets import BUILT_IN, PresetStore


@pytest.fixture
def store(tmp_path):
    store = PresetStore(tmp_path)
    store.save("mine", {"delta": 0.4, "foreground_word": "star"})
    (tmp_path / "broken.json").write_text("{")
    return store


def test_the_schema_is_that_of_the_settings_and_a_preset():
    properties = api.schema()["properties"]
    assert set(properties) == {"version", "preset", *fields()}
    assert properties["preset"]["type"] == "string"
    assert properties["enabled"]["default"] is True
    assert fields()["enabled"].default is False
    json.dumps(api.schema(), allow_nan=False)


def test_presets_are_listed_with_their_settings_and_problems(store):
    answer = api.presets(store)
    json.dumps(answer, allow_nan=False)
    assert [preset["name"] for preset in answer["presets"]] == [*BUILT_IN, "mine"]
    for preset in answer["presets"]:
        assert preset["built_in"] is (preset["name"] in BUILT_IN)
        assert preset["settings"] == store.load(preset["name"])
    assert answer["presets"][0]["description"]
    assert len(answer["problems"]) == 1
    assert "broken.json" in answer["problems"][0]


@pytest.fixture
def client(store):
    pytest.importorskip("fastapi")
    from fastapi import FastAPI
    from fastapi.testclient import TestClient

    def make(api_auth=None):
        app = FastAPI()
        api.add_routes(app, lambda: store, api_auth)
        count = len(app.routes)
        api.add_routes(app, lambda: store, api_auth)
        assert len(app.routes) == count
        return TestClient(app)

    return make


def test_routes(client, store):
    assert client().get("/cross-controlnet/v1/schema").json() == api.schema()
    assert client().get("/cross-controlnet/v1/presets").json() == api.presets(store)
    assert client().post("/cross-controlnet/v1/presets").status_code == 405


@pytest.mark.parametrize("path", ["schema", "presets"])
def test_routes_ask_for_the_password_of_the_webui_s_api(client, path):
    get = client("ann:secret,bob:pass:wörd").get
    url = f"/cross-controlnet/v1/{path}"
    assert get(url).status_code == 401
    assert get(url).headers["www-authenticate"] == "Basic"
    for refused in (("ann", "wrong"), ("ann", ""), ("eve", "secret"), ("bob", "pass")):
        assert get(url, auth=refused).status_code == 401
    assert get(url, auth=("ann", "sécret")).status_code == 401
    assert get(url, auth=("ann", "secret")).status_code == 200
