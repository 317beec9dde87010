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


def figures(path):
    """The table of what each rule keeps, as rows of cells."""
    text = (ROOT / path).read_text("utf-8")
    table = text.partition("| method | object kept (IoU)")[2].partition("\n\n")[0]
    return [row.strip("| ").split(" | ") for row in table.splitlines()[2:]]


@pytest.mark.parametrize("path", ["models/demo/README.md", "training/card.md"])
def test_the_model_card_has_the_readmes_figures(path):
    assert figures("README.md")
    assert figures(path) == figures("README.md")


def test_the_figures_are_those_that_were_measured():
    measured = (ROOT / "benchmarks/FIDELITY.md").read_text("utf-8").partition("<!-- results")[2]
    names = {"plain sum": "Plain sum", "mean": "Mean (", "MaxFusion": "MaxFusion (output"}
    names["layers"] = "Layers (this"
    for method, *shown in figures("README.md"):
        name = names.get(method.partition(" (")[0], method.partition(" (")[0])
        row = measured.partition(f"\n| {name}")[2].partition("\n")[0]
        found = re.findall(r"(\d\.\d+) ±", row)[:2]
        for one, other in zip(shown, found, strict=True):
            assert abs(float(one) - float(other)) < 0.0051, (method, one, other)


def test_python_snippets_can_be_compiled():
    for path in ("README.md", "docs/tutorial.md", "models/demo/README.md"):
        text = (ROOT / path).read_text("utf-8")
        for snippet in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
            compile(snippet, path, "exec")
