"""The charts of the pages, drawn as SVG without a browser."""
