"""Pictures made tile by tile: the units are fused in each, and nothing is injected."""

from __future__ import annotations

import pytest
from hosts.cases import EVERYWHERE, HALVES, SUM, img2img, layered, using
from hosts.client import HttpError, distance, done, same

pytestmark = [pytest.mark.timeout(1200), pytest.mark.usefixtures("settled")]

METHODS = ("MultiDiffusion", "Mixture of Diffusers")
# Width and height of a tile, overlap, tiles in a batch; for pictures of 128x128.
WHOLE, TILES = (768, 768, 64, 4), (64, 64, 0, 4)


def _forge(method, tiles):
    return [True, method, *tiles]


def _extension(method, tiles):
    """Of multidiffusion-upscaler-for-automatic1111, which counts in latents, up to the tiles."""
    width, height, overlap, batch = tiles
    return [True, method, False, True, 128, 128, width // 8, height // 8, overlap // 8, batch]


SCRIPTS = {"multidiffusion integrated": _forge, "tiled diffusion": _extension}


@pytest.fixture
def tiled(host):
    """Makes a request of 128x128 tile by tile; skipped where no script for that is installed.

    Forge Neo has its own in img2img only.
    """
    scripts = host.client.call("/sdapi/v1/scripts")
    tabs = {tab: [name.lower() for name in scripts[tab]] for tab in ("txt2img", "img2img")}
    found = [(tab, name) for tab in tabs for name in SCRIPTS if name in tabs[tab]]
    if not found:
        pytest.skip("nothing that cuts pictures into tiles is installed")
    tab, name = found[0]

    def make(method, tiles, units=None):
        size = {"width": 128, "height": 128}
        request = host.requests
        body = (
            request.body(units, **size)
            if tab == "txt2img"
            else img2img(request, alwayson_scripts=request.body(units)["alwayson_scripts"], **size)
        )
        body["alwayson_scripts"][name] = {"args": SCRIPTS[name](method, tiles)}
        return body

    return make


def by_host(host, body):
    """The host's own picture; skipped where its tiles do not get on with any ControlNet.

    As in reForge: "'dict' object has no attribute 'cond_hint'".
    """
    assert "Cross-ControlNet" not in body["alwayson_scripts"]
    try:
        return host.generate(body)
    except HttpError as error:
        pytest.skip(f"the host's own tiles fail with ControlNets, without us: {error}")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("tiles", [WHOLE, TILES], ids=["one tile", "four tiles"])
def test_two_units(host, tiled, method, tiles):
    body = tiled(method, tiles)
    plain = by_host(host, body)
    assert same(host.generate(using(body, SUM)), plain), "our plain sum is not the host's"
    host.state()
    fused = host.generate(using(body, EVERYWHERE))
    counts = host.state()["counts"]
    assert counts["fuse_residuals"] > 0
    assert distance(plain, fused) > 0
    if tiles is WHOLE:  # a single tile is the whole picture
        assert counts["inject_keys_values"] > 0
        assert fused.note == ""
    else:
        assert counts["inject_keys_values"] == 0
        assert fused.note == "the UNet works on tiles: nothing is injected"


@pytest.mark.parametrize("inject", [False, True])
def test_layers_in_tiles_are_the_hosts_sum(host, tiled, inject):
    """Where a tile lies is not known: nobody has a place in it, and the text says so."""
    body = tiled("MultiDiffusion", TILES)
    plain = by_host(host, body)
    reply = host.generate(using(body, layered(*HALVES, inject=inject)))
    assert same(plain, reply)
    assert "the UNet works on tiles" in reply.note
    assert "layers, but all added up" in done(reply)


def test_hints_of_several_sizes(host, tiled):
    units = [
        host.requests.unit("a", 1),
        host.requests.unit("b", 2, image=host.requests.picture(2, 192)),
    ]
    body = tiled("MultiDiffusion", TILES, units)
    plain = by_host(host, body)
    assert same(host.generate(using(body, SUM)), plain)
    assert distance(plain, host.generate(using(body, EVERYWHERE))) > 0


def test_one_unit(host, tiled):
    """Nothing to fuse; the host's own list stays as it is."""
    body = tiled("MultiDiffusion", WHOLE, [host.requests.unit()])
    plain = by_host(host, body)
    reply = host.generate(using(body, EVERYWHERE))
    assert "fewer than two" in reply.note
    assert same(plain, reply)
