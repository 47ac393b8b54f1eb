"""What mkdocs puts into pages that say `<!-- made: NAME -->`: references that are made from the code and from conf/."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from rsd.commands import reference  # noqa: E402  # of this checkout, wherever mkdocs is started

MADE = {"settings": lambda: reference.page(ROOT / "conf")}
MARK = re.compile(r"^<!-- made: (\w+) -->$", re.M)


def on_page_markdown(markdown: str, **_: object) -> str:
    """A page's text with what is made of the code in the place of its marks."""
    return MARK.sub(lambda found: MADE[found[1]](), markdown)
