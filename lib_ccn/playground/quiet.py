"""Keeping the known noise of diffusers and transformers out of a command's output."""

from __future__ import annotations

import logging
import warnings

# Advice about packages that nothing here needs, and a warning about no module at all. Everything
# else is still said.
_NOISE = (
    "requires torchvision",
    "`accelerate` was not found",
    "that should be kept in float32: []",
    "The conditionings will be fixed across the prompts",  # SDXL's, of conditions that are not
)


def _says_something(record: logging.LogRecord) -> bool:
    return not any(noise in record.getMessage() for noise in _NOISE)


def silence_libraries() -> None:
    """Hide the libraries' loading bars and hints; call it before their pipelines are imported."""
    import diffusers.utils.logging
    import transformers.utils.logging

    # The first is said by one of diffusers' own modules to another; the second names an argument
    # that all of its versions know.
    warnings.filterwarnings("ignore", "`FluxPosEmbed` is deprecated", FutureWarning)
    warnings.filterwarnings("ignore", "`torch_dtype` is deprecated", FutureWarning)
    for library in (diffusers, transformers):
        library.utils.logging.get_logger(library.__name__)  # makes its handler
        library.utils.logging.disable_progress_bar()
        for handler in logging.getLogger(library.__name__).handlers:
            handler.addFilter(_says_something)
