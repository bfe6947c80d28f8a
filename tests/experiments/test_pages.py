"""Pages of measurements: text written by hand, tables by script."""

import json

from experiments.reference.rounding import agree, sound
from experiments.studies import blocks, frameworks
from experiments.studies.pages import DOCS, write_section


def test_a_section_is_replaced_and_its_surroundings_stay(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- a -->\nold\n<!-- end -->\nbetween\n<!-- b -->\n<!-- end -->\n")
    write_section(page, "a", ["new", "lines"])
    write_section(page, "b", ["filled"])
    assert page.read_text() == (
        "before\n<!-- a -->\nnew\nlines\n<!-- end -->\nbetween\n<!-- b -->\nfilled\n<!-- end -->\n"
    )
    write_section(tmp_path / "new.md", "a", ["first"])
    assert (tmp_path / "new.md").read_text() == "<!-- a -->\nfirst\n<!-- end -->\n"


def test_the_page_of_blocks_has_the_rows_of_its_file():
    rows = json.loads((DOCS / "blocks.json").read_text())
    table = "".join(f"{line}\n" for line in blocks.table(rows))
    assert f"<!-- table -->\n{table}<!-- end -->\n" in (DOCS / "blocks.md").read_text()


def test_the_page_of_frameworks_has_the_rows_of_its_file():
    rows = json.loads((DOCS / "frameworks.json").read_text())
    table = "".join(f"{line}\n" for line in frameworks.table(rows))
    assert table in (DOCS / "frameworks.md").read_text()
    assert set(rows) <= set(frameworks.models())
    assert rows
    for row in (row for packages in rows.values() for row in packages.values()):
        assert row["params"] == row["params_there"]
        assert row["params_fused"] == row["params_fused_there"] or not row["params_fused_there"]
        found = [row[key] for key in frameworks.ERRORS]
        assert agree(*found) or not sound(found[0])
