"""Pages of the documentation that show commands."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("[eh]*/*.md"))]


def commands(page: Path) -> list[str]:
    """Return the commands that a page shows, without comments and repetitions."""
    lines = re.findall(r"^\$ (.*)$", page.read_text(), re.MULTILINE)
    return list(dict.fromkeys(line.split(" # ")[0].strip() for line in lines))
