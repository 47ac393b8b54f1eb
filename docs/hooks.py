"""What mkdocs puts into pages that say `<!-- made: NAME -->`: references that are made from the code and from conf/."""

import json
import re
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from rsd.commands import programs, records, reference  # noqa: E402  # of this checkout, wherever mkdocs is started

MADE = {
    "settings": lambda: reference.page(ROOT / "conf"),
    "records": records.page,
    "programs": lambda: programs.page(ROOT),
}
MARK = re.compile(r"^<!-- made: (\w+) -->$", re.M)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The site's files, with a schema of each record."""
    for file in records.RECORDS:
        content = json.dumps(records.record_schema(file), indent=1, ensure_ascii=False)
        files.append(File.generated(config, f"reference/schemas/{records.schema_name(file)}", content=content))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """A page's text with what is made of the code in the place of its marks."""
    return MARK.sub(lambda found: MADE[found[1]](), markdown)
