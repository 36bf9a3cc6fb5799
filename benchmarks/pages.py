"""Tables in documents, between `<!-- benchmark: NAME -->` and `<!-- end of benchmark -->`."""

from __future__ import annotations

import re


def filled(text: str, name: str, table: str) -> str:
    """The page with a table between its markers."""
    pattern = rf"(<!-- benchmark: {name} -->\n).*?(<!-- end of benchmark -->)"
    page, count = re.subn(pattern, lambda found: f"{found[1]}\n{table}\n\n{found[2]}", text, flags=re.DOTALL)
    if count != 1:
        raise SystemExit(f"the page has {count} places '<!-- benchmark: {name} -->'; it needs one")
    return page
