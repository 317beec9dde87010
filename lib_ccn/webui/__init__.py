"""The extension inside a WebUI: page, presets, API, X/Y/Z and the way of one generation."""
