"""What the README says is so."""

import re
from pathlib import Path

import pytest

from lib_ccn.settings import fields

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")


def test_the_table_of_settings_is_the_dataclass():
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", README, re.MULTILINE))
    known = {name: s.default for name, s in fields().items() if name != "enabled"}
    assert set(rows) == set(known)
    for name, shown in rows.items():
        default = known[name]
        words = {"": '""', "None": "none", "True": "true", "False": "false"}
        assert shown.strip("`") == words.get(str(default), str(default)), name


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#][^)]*)\)", README))))
def test_links_lead_somewhere(link):
    assert link.startswith("http") or (ROOT / link).exists(), link
