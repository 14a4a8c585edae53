"""Render report.html: one self-contained page per run, without scripts or external resources."""

import base64
from typing import Any

from jinja2 import Environment

TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1f24; max-width: 56rem;
       margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
img { max-width: 100%; height: auto; }
table { border-collapse: collapse; }
td, th { text-align: left; padding: .15rem 1.5rem .15rem 0; vertical-align: top; }
td:first-child { color: #57606a; white-space: nowrap; }
pre { background: #f6f8fa; padding: 1rem; overflow-x: auto; font-size: .85rem; }
.verdict { border-left: 4px solid #c2410c; padding: .25rem 1rem; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<p class="verdict">{{ verdict }}</p>
<table>
{% for name, value in facts %}<tr><td>{{ name }}</td><td>{{ value }}</td></tr>
{% endfor %}</table>
<h2>Loss</h2>
<img alt="Training and held-out loss over the epochs, and the constant baseline" src="{{ losses }}">
<h2>Held-out samples</h2>
<img alt="Original, masked input, target and prediction of held-out images" src="{{ samples }}">
<h2>Settings</h2>
<pre>{{ settings }}</pre>
</body>
</html>
"""


def render_page(
    title: str,
    verdict: str,
    facts: list[tuple[str, Any]],
    losses_png: bytes,
    samples_png: bytes,
    settings: str,
) -> str:
    """Return the page as HTML with embedded images."""
    return (
        Environment(autoescape=True, trim_blocks=False)
        .from_string(TEMPLATE)
        .render(
            title=title,
            verdict=verdict,
            facts=facts,
            losses=_embedded(losses_png),
            samples=_embedded(samples_png),
            settings=settings,
        )
    )


def _embedded(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
