"""Shared by all tests."""

import pytest
from hypothesis import settings

# A busy machine is no reason for a property to fail.
settings.register_profile("ccn", deadline=None)
settings.load_profile("ccn")


def pytest_addoption(parser):
    group = parser.getgroup("hosts", "tests on an installed WebUI (see tests/hosts)")
    group.addoption("--webui", metavar="DIR", help="the WebUI's folder")
    group.addoption("--comfy", metavar="DIR", help="a ComfyUI's folder (see tests/comfyui)")
    group.addoption("--webui-python", metavar="PATH", help="the Python that it runs with")
    group.addoption(
        "--webui-env",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="a variable for the WebUI's environment; may be repeated",
    )
    group.addoption(
        "--webui-beside",
        metavar="DIR",
        action="append",
        default=[],
        help="another extension to install with ours; may be repeated",
    )
    group.addoption("--webui-quick", action="store_true", help="the short run")
    group.addoption("--webui-sdxl", action="store_true", help="Stable Diffusion XL, not 1.5")
    group.addoption("--webui-page", action="store_true", help="also the page, in a browser")
    group.addoption("--webui-models", action="store_true", help="also the further models")


def pytest_configure(config):
    config.addinivalue_line("markers", "full: left out of the quick host run")
    config.addinivalue_line("markers", "page: needs a browser")
    config.addinivalue_line("markers", "offline: a test of the harness, without a host")


def pytest_terminal_summary(terminalreporter):
    """Print the figures that tests have noted."""
    figures = getattr(terminalreporter.config, "ccn_figures", {})
    if figures:
        terminalreporter.section("figures")
        for name, value in figures.items():
            terminalreporter.write_line(f"{name}: {value}")


@pytest.fixture(scope="module")
def unet():
    """A tiny UNet with random weights."""
    import torch
    from tiny import tiny_unet

    torch.manual_seed(0)
    return tiny_unet().eval()


@pytest.fixture(scope="module")
def nets(unet):
    """Three ControlNets for it."""
    from tiny import tiny_controlnet

    return [tiny_controlnet(unet, seed) for seed in (1, 2, 3)]
