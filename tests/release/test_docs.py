"""What README and docs say: links lead somewhere, commands parse, names exist, constants are the code's."""

from __future__ import annotations

import ast
import itertools
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
import yaml
from test_import_directions import PUBLISH_FLOOR

from harness.cli.main import app
from harness.publish import thresholds
from harness.quantize import presets, resolve
from harness.quantize.rounding import uniform_grid
from harness.score.corpora import catalogue
from harness.score.metrics.formulas import METRICS, PRIMARY
from harness.submit.manifest import load as manifest
from harness.unlearn import recipes

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "THIRD_PARTY.md")),
        *ROOT.glob("docs/**/*.md"),
    ]
)
COMMAND: Any = typer.main.get_command(app)
SHIPPED = {path.parent.name for path in ROOT.glob("submissions/*/submission.yaml")}

_FENCE = re.compile(r"^[ ]*```(\w*)\n(.*?)^[ ]*```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
_LINK = re.compile(r"(?:\[[^\]\[]*\]\(|\b(?:src|srcset|href)=\")([^)\"\s]+)")
# What a reader is to replace, with something that stands for it.
_PLACEHOLDERS = {"RECIPE": "npo", "FOLDER": "submissions/my-entry", "DIR": "data"}


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def page_id(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, *languages: str) -> list[str]:
    return [body for language, body in _FENCE.findall(text(page)) if language in languages]


def inline(page: Path) -> list[str]:
    return [" ".join(code.split()) for code in _INLINE.findall(_FENCE.sub("", text(page)))]


def quoted(page: Path, program: str) -> list[str]:
    """Returns every command of a program that a page quotes, with placeholders filled in.

    Settings before it (``NAME=value``) are left out, and a container's program is that of its image.
    """
    whole = [re.sub(r"\\\n\s*", " ", block) for block in blocks(page, "bash", "sh", "")]
    lines = [line.split("  #")[0].strip() for block in whole for line in block.splitlines()]
    found = []
    for code in (*lines, *inline(page)):
        for part in re.split(r" (?:&&|;|\|) ", code):
            plain = re.sub(rf"^(?:[A-Z_]+=\S+ )*(?:docker run .* ({program})(?::[\w.]+)? )?", r"\1 ", part).strip()
            if plain.startswith(f"{program} "):
                found.append(" ".join(_PLACEHOLDERS.get(word, word) for word in plain.split()))
    return found


def anchors(page: Path) -> set[str]:
    """Returns the anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ +(.+?)\s*$", _FENCE.sub("", text(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def expand(name: str) -> list[str]:
    """Returns the names that braces stand for: ``{8,4}``, ``{2..8}``; ``{N}`` is any number."""
    parts = re.split(r"\{([^}]*)\}", name)
    choices = [[part] if index % 2 == 0 else _choices(part) for index, part in enumerate(parts)]
    return ["".join(chosen) for chosen in itertools.product(*choices)]


def _choices(braces: str) -> list[str]:
    if braces == "N":
        return ["1", "32", "100"]
    if ".." in braces:
        first, last = map(int, braces.split(".."))
        return [str(number) for number in range(first, last + 1)]
    return braces.split(",")


def _parse(line: str) -> tuple[str, dict[str, Any]]:
    """Returns a quench command's name and parameters; nothing is run."""
    command, words = COMMAND, shlex.split(line)[1:]
    context = command.make_context("quench", ["--help"], resilient_parsing=True)
    while hasattr(command, "commands"):
        # `quench backends` is a command of its own and holds others.
        if command.invoke_without_command and (not words or words[0].startswith("-")):
            break
        assert words, f"{line!r} names no command"
        assert words[0] in command.commands, f"{line!r}: there is no command {words[0]!r}"
        command = command.commands[words.pop(0)]
    parsed = command.make_context(command.name, words, parent=context)
    return str(command.name), dict(parsed.params)


def _commands() -> list[Any]:
    return [
        pytest.param(line, id=f"{page_id(page)}:{line}")
        for page in PAGES
        # The reference of commands only names them; its examples are those of their help, which a test below parses.
        if page != ROOT / "docs" / "cli.md"
        for line in dict.fromkeys(quoted(page, "quench"))
        # A sentence may name several commands, or say "a writing command such as `quench run`".
        if "..." not in line
    ]


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_relative_link_leads_to_a_file_and_its_anchor_to_a_heading(page: Path) -> None:
    for target in _LINK.findall(_FENCE.sub("", text(page))):
        if re.match(r"[a-z]+:", target):
            continue
        place, _, anchor = target.partition("#")
        file = (page.parent / place).resolve() if place else page
        assert file.exists(), f"{page_id(page)} links to {target}, which is not there"
        assert file.is_relative_to(ROOT), f"{page_id(page)} links out of the repository: {target}"
        if anchor:
            assert anchor in anchors(file), f"{page_id(page)}: {place} has no heading for #{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_link_to_the_web_is_encrypted(page: Path) -> None:
    schemes = {target.split(":")[0] for target in _LINK.findall(text(page)) if re.match(r"[a-z]+:", target)}
    assert schemes <= {"https"}


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_a_page_has_one_title_closed_fences_and_no_two_headings_alike(page: Path) -> None:
    prose = _FENCE.sub("", text(page))
    assert "```" not in prose, "a code block is not closed"
    assert len(re.findall(r"^# ", prose, re.MULTILINE)) == 1
    assert prose.startswith("# ")
    headings = re.findall(r"^## (.+)$", prose, re.MULTILINE)
    assert len(headings) == len(set(headings))


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_tables_have_the_same_number_of_columns_in_every_row(page: Path) -> None:
    for table in re.findall(r"(?:^\|.*\|\n)+", text(page), re.MULTILINE):
        rows = [re.sub(r"`[^`]*`", "code", row).count("|") for row in table.splitlines()]
        assert len(set(rows)) == 1, table
        assert re.fullmatch(r"[|:\- ]+", table.splitlines()[1]), table


def test_the_readme_links_every_page_of_docs_directly_or_over_another_page() -> None:
    seen, waiting = set[Path](), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        seen.add(page)
        links = {(page.parent / target.split("#")[0]).resolve() for target in _LINK.findall(text(page))}
        waiting += [link for link in links - seen if link.suffix == ".md" and link.is_file()]
    entry_points = {page for page in PAGES if page.parent == ROOT / "docs"}
    assert entry_points <= seen


@pytest.mark.parametrize("line", _commands())
def test_a_quoted_quench_command_has_a_command_and_options_of_that_name(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # `quench unlearn` alone names a command and is no call of it: only whole calls have to parse.
    words = line.split()[1:]
    if len(words) == 1 and words[0] in COMMAND.commands:
        return
    if words[0].startswith("--"):
        assert words[0] in {"--help", *(name for parameter in COMMAND.params for name in parameter.opts)}
        return
    name, options = _parse(line)
    for quantizer in filter(None, str(options.get("quantizers") or "").split(",")):
        if quantizer != "4bit":  # quoted as what is refused
            assert resolve(quantizer).name == quantizer
    if name == "unlearn":
        # A path is that of a file here.
        assert options["recipe"] in recipes.recipe_names() or (ROOT / options["recipe"]).is_file()
        assert options["target"] in SHIPPED


def test_enough_commands_are_quoted_for_the_test_above_to_mean_something() -> None:
    named = {line.split()[1] for page in PAGES for line in quoted(page, "quench")}
    assert {"validate", "run", "show", "render", "unlearn", "mini", "backends"} <= named


def test_a_command_is_quoted_without_what_stands_before_it(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "`A=1 B=x quench show`, `cd x && quench run a  b`\n```bash\n"
        'docker run -v "$PWD:/b" quench:cuda plan \\\n  a  # why\nmake site\n```\n', encoding="utf-8",
    )  # fmt: skip
    assert sorted(quoted(page, "quench")) == ["quench plan a", "quench run a b", "quench show"]


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_option_that_a_page_names_alone_is_one_of_some_command(page: Path) -> None:
    known = {name for leaf in _leaves(COMMAND) for parameter in leaf.params for name in getattr(parameter, "opts", ())}
    # Of other programs, named where their commands are.
    known |= {"--build-arg", "--gpus", "--user", "--help", "--network"}
    for code in inline(page):
        if code.startswith("--"):
            assert code.split()[0].split("=")[0] in known, f"{page_id(page)} names {code}, which no command takes"


@pytest.mark.parametrize("line", ["quench runn", "quench run --workerz 2", "quench mini bild", "quench run --limit 0"])
def test_a_command_that_does_not_exist_would_be_noticed(line: str) -> None:
    with pytest.raises(
        (AssertionError, Exception), match=r"no command|No such option|Invalid value|greater than or equal to 1"
    ):
        _parse(line)


def _examples(command: Any, path: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    inner = getattr(command, "commands", {})
    own = [(" ".join(path), example) for example in re.findall(r"`(quench [^`]+)`", command.epilog or "")]
    return own + [found for name, child in inner.items() for found in _examples(child, (*path, name))]


@pytest.mark.parametrize(("command", "example"), _examples(COMMAND))
def test_the_examples_in_a_command_s_help_are_calls_of_that_command(
    command: str, example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other-machine" / "results.records").mkdir(parents=True)
    (tmp_path / "news.duckdb").touch()
    assert example.startswith(f"quench {command}")
    _parse(example)


def _leaves(command: Any) -> list[Any]:
    inner = getattr(command, "commands", {})
    own = [command] if not inner or command.invoke_without_command else []
    return own + [leaf for child in inner.values() for leaf in _leaves(child)]


@pytest.mark.parametrize("command", _leaves(COMMAND), ids=lambda command: command.name)
def test_every_parameter_of_a_command_is_explained(command: Any) -> None:
    assert command.help
    for parameter in command.params:
        assert parameter.name == "help" or parameter.help, f"{command.name}: {parameter.name} has no help"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_quantizer_that_a_page_names_can_be_resolved(page: Path) -> None:
    pattern = re.compile(r"(?:rtn-(?:\{[^}]+\}|\d+)bit-(?:g(?:\{[^}]+\}|\d+)|row)|bnb-\w+)(?:-sym)?")
    for code in inline(page):
        if pattern.fullmatch(code):
            for name in expand(code):
                assert resolve(name).name == name


def test_the_page_on_backends_names_every_preset() -> None:
    # A preset in this file stands with its group and symmetry, as in `gptq-{8,4}bit-g64-sym`, or as an ending: `-q4_0`.
    codes = [code for code in inline(ROOT / "docs" / "backends.md") if "{N}" not in code]
    named = {name for code in codes for name in expand(code)}
    for spec in presets():
        backend, _, ending = spec.name.partition("-")
        assert spec.name in named or (f"-{ending}" in named and any(code.startswith(backend) for code in codes)), (
            spec.name
        )


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_submission_and_task_that_a_page_names_is_shipped(page: Path) -> None:
    for code in inline(page):
        if re.fullmatch(r"mini-[a-z0-9-]+", code):
            assert code in SHIPPED, f"{page_id(page)} names {code}"
    tasks = set(re.findall(r"\bmuse_(?:mini|news|books)_\w+", text(page)))
    assert all(catalogue.resolve_tasks([task]) == (task,) for task in tasks)


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_file_of_the_repository_that_a_page_names_is_there(page: Path) -> None:
    rooms = ("harness", "tasks", "tests", "docs", "benchmarks", "leaderboard/templates", "leaderboard/static")
    for code in inline(page):
        path = code.rstrip("/")
        if re.fullmatch(rf"(?:{'|'.join(rooms)})(?:/[\w.*/-]+)?", path):
            assert list(ROOT.glob(path)), f"{page_id(page)} names {code}"


def _prose(path: Path) -> str:
    """Returns what a file tells a reader: a page as a whole, of a module its comments and docstrings."""
    if path.suffix != ".py":
        return text(path)
    texts = [
        str(node.value.value) for node in ast.walk(ast.parse(text(path)))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    ]  # fmt: skip
    return "\n".join([*re.findall(r"(?:^|\s)#.*", text(path)), *texts])


_TOPS = {path.stem for path in (ROOT / "harness").iterdir() if path.is_dir() or path.suffix == ".py"}
_MODULE_PATH = re.compile(
    rf"(?<![\w/.<-])(?:(?:harness|tests|benchmarks)/|(?=(?:{'|'.join(_TOPS)})(?:/|\.py)))[\w*/]*\w\.py\b"
)
_DOTTED = re.compile(rf"(?<![\w/.-])(?:harness\.)?((?:{'|'.join(_TOPS)})(?:\.\w+)+)")


def _stale_names(prose: str, beside: Path = ROOT) -> list[str]:
    """Returns the paths and dotted names of modules in a text, with or without ``harness``, that are not there."""
    paths = [
        name for name in _MODULE_PATH.findall(prose)
        if not any(list(folder.glob(name)) for folder in (ROOT, ROOT / "harness", beside))
    ]  # fmt: skip
    return paths + [name for name in _DOTTED.findall(prose) if not _is_there(name.split("."))]


def _is_there(parts: list[str]) -> bool:
    """Returns whether the parts of a dotted name lead to a module, or to a name in one."""
    place = ROOT / "harness"
    for index, part in enumerate(parts):
        module = place / f"{part}.py"
        if not (place / part).is_dir():
            # cli.md is a page, and pytest.py a path.
            own = module if module.is_file() else place / "__init__.py"
            rest = parts[index + 1 :] if module.is_file() else parts[index:]
            return not rest or rest[0] in ("md", "py") or bool(re.search(rf"\b{rest[0]}\b", text(own)))
        place /= part
    return True


# History names what was there then.
_READ = [page for page in PAGES if page.name != "CHANGELOG.md"] + [
    path for folder in ("harness", "benchmarks", "tests") for path in sorted((ROOT / folder).rglob("*.py"))
]


def test_pages_docstrings_and_comments_name_no_module_that_is_not_there() -> None:
    assert {page_id(path): names for path in _READ if (names := _stale_names(_prose(path), path.parent))} == {}


@pytest.mark.parametrize(
    ("prose", "stale"),
    [
        ("`score/lanes.py` and score/evaluation.py", ["score/lanes.py"]),
        ("harness/quantize/ggml.py, ``quantize/backends/ggml.py``", ["harness/quantize/ggml.py"]),
        ("tests/nowhere.py, benchmarks/nowhere.py", ["tests/nowhere.py", "benchmarks/nowhere.py"]),
        ("Start at ``cli.py``", ["cli.py"]),
        ("see ``quantize.prediction`` and quantize.proof.prove", ["quantize.prediction"]),
        ("score.metrics.SCORING_VERSION", ["score.metrics.SCORING_VERSION"]),
        ("harness.score.metrics.formulas.SCORING_VERSION, shards.nothing", ["shards.nothing"]),
        ("[cli.md](cli.md), tests/quantize/backends/test_*.py, leaderboard/x.py, my/run/x.py", []),
    ],
)
def test_a_name_of_a_module_that_moved_is_found_with_and_without_harness(prose: str, stale: list[str]) -> None:
    assert _stale_names(prose) == stale


def test_the_architecture_table_names_modules_that_are_there() -> None:
    modules = re.findall(r"`((?:\w+/)+(?:\w+|<backend>)\.py)`", text(ROOT / "docs" / "architecture.md"))
    assert len(modules) > 10
    for module in modules:
        assert list((ROOT / "harness").glob(module.replace("<backend>", "*"))) or (ROOT / module).is_file(), module


def test_the_architecture_page_draws_the_floors_of_publish_that_the_import_test_holds() -> None:
    drawn = re.search(r"^Inside `publish`, bottom up: (.+?)\.$", text(ROOT / "docs" / "architecture.md"), re.M | re.S)
    assert drawn is not None
    floors = [re.findall(r"`(\w+)`", floor) for floor in drawn[1].split("->")]
    assert {part: floor for floor, parts in enumerate(floors, 1) for part in parts} == PUBLISH_FLOOR


def test_the_readme_s_tree_shows_every_room_and_module_of_the_house_and_nothing_else() -> None:
    tree = next(block for block in blocks(ROOT / "README.md", "") if "harness/" in block)
    shown = {
        room for line in tree.splitlines() if line.startswith("  ") and ".py" not in line
        for first in [line.split("/")[0].strip()]
        for room in (first, *(f"{first}/{inner}" for inner in re.findall(r"(\w+)/", line.split("/", 1)[1])))
    }  # fmt: skip
    harness = ROOT / "harness"
    rooms = {path.parent.relative_to(harness).as_posix() for path in harness.glob("*/**/__init__.py")}
    assert shown == rooms
    assert set(re.findall(r"\w+\.py", tree)) == {path.name for path in harness.glob("*.py")} - {"__init__.py"}
    for name in re.findall(r"^(\w[\w.]*)/? ", tree, re.MULTILINE):
        assert (ROOT / name).exists(), name


def test_the_readme_counts_the_demo_grid_right() -> None:
    said = re.search(r"scores (\d+) unlearned models and their (\d+) controls\s+under (\d+) quantizers \((\d+) cells",
                     text(ROOT / "README.md"))  # fmt: skip
    assert said is not None
    entries, controls, quantizers, cells = map(int, said.groups())
    submissions = manifest.load_all(ROOT / "submissions")
    roles = [submission.role for submission in submissions.values() if submission.corpus == "mini"]
    assert (roles.count("entry"), len(roles) - roles.count("entry")) == (entries, controls)
    listed = re.search(r"^QUANTIZERS \?= (.+)$", text(ROOT / "Makefile"), re.MULTILINE)
    assert listed is not None
    assert len(listed[1].split(",")) == quantizers
    assert len(roles) * quantizers * len(PRIMARY) == cells


def test_the_readme_s_manifest_is_a_manifest(tmp_path: Path) -> None:
    (block,) = blocks(ROOT / "README.md", "yaml")
    fields = yaml.safe_load(block)
    assert set(fields) <= set(manifest.json_schema()["properties"])
    assert fields["target"] in SHIPPED
    folder = tmp_path / fields["name"]
    (folder / fields["weights"]).mkdir(parents=True)
    (folder / "submission.yaml").write_text(block, encoding="utf-8")
    loaded = manifest.load(folder)
    assert (loaded.name, loaded.kind, loaded.title) == ("my-entry", "lora_adapter", "My method, LoRA r=8")


def test_the_manifest_table_lists_every_field_and_says_which_are_needed() -> None:
    rows = re.findall(r"^\| (`.+?`) \| ([^|]*)\|", text(ROOT / "docs" / "submitting.md"), re.MULTILINE)
    needed = {name: when.strip() for names, when in rows for name in re.findall(r"`(\w+)`", names)}
    schema = manifest.json_schema()
    assert set(needed) == set(schema["properties"])
    assert set(schema["required"]) <= {name for name, when in needed.items() if when == "yes"}


def test_the_metric_tables_list_the_primary_metrics_with_their_direction() -> None:
    good = {"lower": "lower", "higher": "higher", "toward_zero": "toward zero"}
    rows = dict(re.findall(r"^\| \w+ \(`(\w+)`\) \|.*\| (.+?) \|$", text(ROOT / "README.md"), re.MULTILINE))
    assert rows == {key: good[METRICS[key].direction] for key in PRIMARY}
    shown = dict(re.findall(r"^\| `(\w+)` \| (\w+) ", text(ROOT / "docs" / "metrics.md"), re.MULTILINE))
    assert shown == {key: METRICS[key].label for key in PRIMARY}


@pytest.mark.parametrize(
    ("pattern", "value"),
    [
        (r"tau = ([\d.]+)", thresholds.TAU),
        (r"phi = ([\d.]+)", thresholds.PHI),
        (r"utility gate ([\d.]+)", thresholds.UTILITY_GATE),
        (r"utility is below ([\d.]+) of the target's", thresholds.UTILITY_GATE),
        (r"(\d+)% percentile bootstrap", thresholds.CONFIDENCE * 100),
        (r"\(([\d,]+) resamples", thresholds.RESAMPLES),
        (r"NEWS ([\d.]+) and", catalogue.load_corpus("news").reference_auc),
        (r"BOOKS ([\d.]+) \(", catalogue.load_corpus("books").reference_auc),
    ],
)
def test_a_constant_on_the_page_of_metrics_is_the_code_s(pattern: str, value: float) -> None:
    found = re.search(pattern, text(ROOT / "docs" / "metrics.md"))
    assert found is not None, f"{pattern!r} is not on the page any more"
    assert float(found[1].replace(",", "")) == pytest.approx(value)


@pytest.mark.parametrize("verdict", ["never forgot", "reverts", "holds", "unclear", "collapsed"])
def test_every_verdict_is_explained(verdict: str) -> None:
    assert verdict in thresholds.RULES
    assert f"`{verdict}`" in text(ROOT / "docs" / "metrics.md")


def _task(name: str) -> dict[str, Any]:
    corpus = name.split("_")[1]
    body = yaml.safe_load(text(ROOT / "tasks" / f"muse_{corpus}" / f"{name.split('_', 2)[2]}.yaml"))
    assert isinstance(body, dict)
    return body


@pytest.mark.parametrize(
    ("pattern", "metric", "place"),
    [
        (r"(\d+) new tokens \((\d+) on mini\), greedy, no stop", "verbmem_f", ("generation_kwargs", "max_gen_toks")),
        (r"\s(\d+) new tokens \((\d+) on mini\), greedy\. The", "knowmem_f", ("generation_kwargs", "max_gen_toks")),
    ],
)
def test_token_counts_on_the_page_of_metrics_are_the_tasks(pattern: str, metric: str, place: tuple[str, str]) -> None:
    found = re.search(pattern, text(ROOT / "docs" / "metrics.md"))
    assert found is not None
    for corpus, said in (("news", found[1]), ("books", found[1]), ("mini", found[2])):
        assert _task(f"muse_{corpus}_{metric}")[place[0]][place[1]] == int(said)


def test_the_miniature_s_numbers_are_those_of_its_data() -> None:
    page = " ".join(text(ROOT / "docs" / "muse_mini.md").split())
    data = ROOT / "tasks" / "muse_mini" / "data"

    def count(file: str) -> int:
        return len(json.loads((data / file).read_text(encoding="utf-8")))

    said = re.search(r"(\d+) VerbMem articles, (\d+) forget and (\d+) retain questions .* (\d+) texts per", page)
    assert said is not None
    files = ("verbmem/forget.json", "knowmem/forget_qa.json", "knowmem/retain_qa.json", "privleak/forget.json")
    assert [int(number) for number in said.groups()] == [count(file) for file in files]
    assert count("privleak/holdout.json") == count("privleak/forget.json")
    auc = re.search(r"its AUC is PrivLeak's reference \(([\d.]+)\)", page)
    assert auc is not None
    assert float(auc[1]) == round(catalogue.load_corpus("mini").reference_auc or 0, 3)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group", [64, 128])
@pytest.mark.parametrize("symmetric", [True, False])
def test_bits_per_weight_follow_the_formula_on_the_page_of_backends(bits: int, group: int, symmetric: bool) -> None:
    page = " ".join(text(ROOT / "docs" / "backends.md").split())
    assert "bits + (16 + bits) / group bits per weight when asymmetric, bits + 16 / group when symmetric" in page
    weight = torch.linspace(-1, 1, 8 * 128).reshape(8, 128)
    made = uniform_grid.round_to_grid(weight, bits=bits, group_size=group, symmetric=symmetric)
    assert made.bits_per_weight == pytest.approx(bits + (16 if symmetric else 16 + bits) / group)


@pytest.mark.parametrize(("group", "pattern"), [(128, r"([\d.]+) at 4 bit g128"), (64, r"([\d.]+) at g64")])
def test_the_two_worked_bits_per_weight_are_right(group: int, pattern: str) -> None:
    found = re.search(pattern, text(ROOT / "docs" / "backends.md"))
    assert found is not None
    assert float(found[1]) == pytest.approx(4 + 20 / group, abs=0.005)


def test_the_changelog_names_every_command() -> None:
    page = text(ROOT / "CHANGELOG.md")
    for name in COMMAND.commands:
        assert re.search(rf"`(?:quench )?{name}\b", page), name


def test_decisions_are_numbered_without_a_gap_and_titled_by_their_number() -> None:
    pages = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    assert [int(page.name[:4]) for page in pages] == list(range(1, len(pages) + 1))
    assert all(text(page).startswith(f"# {page.name[:4]}: ") for page in pages)
