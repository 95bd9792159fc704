from __future__ import annotations

import json
from pathlib import Path

import yaml

from harness.publish.pages import submit as submit_page
from harness.submit.manifest.fields import json_schema
from harness.submit.manifest.init import SCHEMA_FILE


def test_every_field_of_the_schema_is_on_the_page_with_its_words(site: Path) -> None:
    source = (site / "submit.html").read_text(encoding="utf-8")
    schema = json_schema()
    for name, found in schema["properties"].items():
        assert f"<code>{name}</code>" in source
        assert found["description"].split("`")[0].split("'")[0] in source


def test_what_is_needed_is_read_from_the_schema() -> None:
    needed = {field.name: field.needed for field in submit_page.fields(json_schema())}
    assert {name for name, when in needed.items() if when == "always"} == set(json_schema()["required"])
    assert needed["target"] == "role: entry"
    assert needed["base_model"] == "kind: lora_adapter"
    assert needed["revision"] == "weights: hf://…"
    assert needed["notes"] == ""


def test_the_schema_can_be_downloaded_from_the_site(site: Path) -> None:
    copied = json.loads((site / SCHEMA_FILE).read_text(encoding="utf-8"))
    assert copied["required"] == json_schema()["required"]


def test_the_example_names_only_fields_there_are_and_all_that_are_needed(site: Path) -> None:
    source = (site / "submit.html").read_text(encoding="utf-8")
    example = yaml.safe_load(source.split("<h2>An example</h2>\n<pre><code>")[1].split("</code>")[0])
    assert set(example) <= set(json_schema()["properties"])
    needed = {
        field.name for field in submit_page.fields(json_schema())
        if field.needed in ("always", f"kind: {example['kind']}", "role: entry")
    }  # fmt: skip
    assert needed <= set(example)
