import pytest

from comparison.fake_webui import FakeWebUI


@pytest.fixture
def server():
    """A WebUI that has everything but a ControlNet for segmentation maps."""
    with FakeWebUI() as made:
        yield made
