"""Fills a page's template; whatever comes from a user's files is escaped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs


def fill(name: str, **values: Any) -> str:
    """Return the page of a template in this folder, with plotly within.

    :param values: what the template names; one that is missing is an error
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name).render(plotly_js=Markup(get_plotlyjs()), **values)
