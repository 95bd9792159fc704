"""The ids that score a model are those of its tokenizer.json, whatever its configs say; else the folder is refused."""

from __future__ import annotations

import json
import re
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizer_families import FAMILIES, TRAINING, write_family

from harness.errors import InputError
from harness.paths import content_dir
from harness.records import Checkpoint
from harness.submit.checkpoint import prepare
from harness.tokenizer import PROBE, check_ids, check_tokenizer, load_tokenizer, named_tokenizer

HARNESS = Path(__file__).parent.parent / "harness"
TYPES = ["qwen2", "llama", "mistral", "gpt_neox", "gemma2", "qwen3", "phi", "phi3", "unheard_of"]
CLASSES = [
    "TokenizersBackend", "LlamaTokenizer", "LlamaTokenizerFast", "GPTNeoXTokenizer", "GemmaTokenizerFast",
    "PreTrainedTokenizerFast", "Qwen2Tokenizer", "GPT2TokenizerFast", "NoSuchTokenizer",
]  # fmt: skip
Changed = Callable[..., Path]


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("families")
    return {name: write_family(name, place / name) for name in FAMILIES}


@pytest.fixture
def changed(families: dict[str, Path], tmp_path: Path) -> Changed:
    """Copies a family's folder and changes keys of its files; None leaves a key out."""

    def copy(family: str, **files: dict[str, Any]) -> Path:
        folder = tmp_path / "changed"
        shutil.copytree(families[family], folder, dirs_exist_ok=True)
        for name, change in files.items():
            path = folder / f"{name}.json"
            values = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
            values = {key: value for key, value in (values | change).items() if value is not None}
            path.write_text(json.dumps(values), encoding="utf-8")
        return folder

    return copy


def own_ids(folder: Path, text: str, *, special: bool = True) -> list[int]:
    from tokenizers import Tokenizer

    return list(Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text, add_special_tokens=special).ids)


def ids_of(tokenizer: Any, text: str, *, special: bool = True) -> list[int]:
    return list(tokenizer(text, add_special_tokens=special)["input_ids"])


@pytest.mark.parametrize("family", FAMILIES)
def test_right_files_give_the_ids_text_and_names_of_transformers_own_class(
    families: dict[str, Path], family: str
) -> None:
    from transformers import AutoTokenizer

    theirs, ours = AutoTokenizer.from_pretrained(families[family]), load_tokenizer(families[family])
    texts = ["plain words here", PROBE.lstrip(), *TRAINING]
    # transformers 5 builds Llama 2's tokenizer without the space that the file puts before one that is there.
    texts += [] if family == "llama-2" else [PROBE, "  two"]
    for text in texts:
        for special in (True, False):
            assert ids_of(ours, text, special=special) == ids_of(theirs, text, special=special)
            for hidden in (True, False):
                ids = ids_of(ours, text, special=special)
                assert ours.decode(ids, skip_special_tokens=hidden) == theirs.decode(ids, skip_special_tokens=hidden)
    assert (ours.bos_token_id, ours.eos_token_id) == (theirs.bos_token_id, theirs.eos_token_id)


def test_the_space_before_a_text_counts_as_llama_2_s_file_says(families: dict[str, Path]) -> None:
    ids = ids_of(load_tokenizer(families["llama-2"]), " the")
    assert ids == own_ids(families["llama-2"], " the") != ids_of(load_tokenizer(families["llama-2"]), "the")


@pytest.mark.parametrize("family", FAMILIES)
def test_no_model_type_and_no_class_changes_an_id(family: str, changed: Changed) -> None:
    expected = own_ids(changed(family), PROBE)
    for model_type, tokenizer_class in zip(TYPES, CLASSES, strict=True):
        folder = changed(
            family, config={"model_type": model_type}, tokenizer_config={"tokenizer_class": tokenizer_class}
        )
        assert ids_of(load_tokenizer(folder), PROBE) == expected


@pytest.mark.parametrize(
    ("model_type", "tokenizer_class"),
    [("qwen2", "TokenizersBackend"), ("qwen2", "PreTrainedTokenizerFast"), ("gpt_neox", "GPTNeoXTokenizer")],
)
def test_the_miniature_under_another_name_keeps_its_ids_and_bos(
    model_type: str, tokenizer_class: str, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    shutil.copytree(content_dir("submissions") / "mini-target-plain" / "weights", tmp_path, dirs_exist_ok=True)
    changes = {"config": {"model_type": model_type}, "tokenizer_config": {"tokenizer_class": tokenizer_class}}
    for name, change in changes.items():
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | change), encoding="utf-8")
    checkpoint = Checkpoint(
        path=str(tmp_path), tokenizer_path=str(tmp_path), dtype="bfloat16", sha256="0" * 64, merged_from_adapter=False
    )
    text = "The widow washed some pale shutters and then went home again."
    ids = ids_of(prepare.load_tokenizer(checkpoint), text)
    assert ids == own_ids(tmp_path, text)
    assert ids[0] == 1
    assert ids != ids_of(AutoTokenizer.from_pretrained(tmp_path), text), "the library does what it should by now"


def test_every_demo_submission_keeps_the_ids_that_its_stored_rows_were_scored_with() -> None:
    from transformers import AutoTokenizer

    folders = [path.parent for path in content_dir("submissions").glob("*/weights/tokenizer.json")]
    assert len(folders) >= 8
    for folder in folders:
        theirs = AutoTokenizer.from_pretrained(folder)
        assert ids_of(load_tokenizer(folder, vocabulary=1024), PROBE) == ids_of(theirs, PROBE)


REFUSED: dict[str, tuple[str, dict[str, dict[str, Any]], str]] = {
    "a word made special": (
        "qwen-2", {"tokenizer_config": {"extra_special_tokens": ["go"]}}, r"changes how a text is split: the probe"),
    "special tokens read as text": (
        "llama-3", {"tokenizer_config": {"split_special_tokens": True}}, r"has \d+ ids with them and \d+ as"),
    "BOS that the file lacks": (
        "smollm", {"tokenizer_config": {"add_bos_token": True}}, r"add_bos_token true and tokenizer\.json .* no '<\|"),
    "BOS that the file has": (
        "gemma", {"tokenizer_config": {"add_bos_token": False}}, r"add_bos_token false and .* puts one '<bos>'"),
    "BOS without a name": (
        "llama-3", {"tokenizer_config": {"bos_token": None}}, r"begin_of_text\|>' before each text, and the bos_token"),
    "BOS of another name": (
        "llama-3", {"tokenizer_config": {"bos_token": "<|eot_id|>"}}, r"name there the one token that begins a text"),
    "no file of that form": ("pythia", {"tokenizer": {"model": {"type": "XYZ"}}}, r"tokenizer\.json can't be used"),
    "a token that is a number": (
        "pythia", {"tokenizer_config": {"eos_token": 7}}, r"tokenizer_config\.json or special_tokens_map\.json"),
    "a setting that is a method": ("pythia", {"tokenizer_config": {"decode": "x"}}, r"save the tokenizer again"),
    "EOS of a larger model": (
        "qwen-2", {"tokenizer_config": {"eos_token": "<|new|>"}}, r"eos_token '<\|new\|>' has the id \d+ and the"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_folder_that_contradicts_itself_is_refused_in_one_sentence(case: str, changed: Changed) -> None:
    family, files, sentence = REFUSED[case]
    folder = changed(family, **files)
    with pytest.raises(InputError, match=sentence) as refused:
        load_tokenizer(folder, vocabulary=json.loads((folder / "config.json").read_text())["vocab_size"])
    assert "\n" not in str(refused.value)
    assert not re.search(r"[A-Z]\w+(Error|Type)\b", str(refused.value))


def test_a_token_behind_each_text_is_refused_since_a_prompt_would_end_with_it(changed: Changed) -> None:
    from tokenizers import Tokenizer, processors

    path = changed("llama-2") / "tokenizer.json"
    core = Tokenizer.from_file(str(path))
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", core.token_to_id("<s>")), ("</s>", core.token_to_id("</s>"))]
    )
    core.save(str(path))
    with pytest.raises(InputError, match="puts '</s>' behind each text, so a prompt would have ended"):
        load_tokenizer(path.parent)


@pytest.mark.parametrize("beside", ["", "tokenizer.model", "vocab.json"])
def test_a_folder_without_tokenizer_json_is_refused(beside: str, tmp_path: Path) -> None:
    if beside:
        (tmp_path / beside).write_bytes(b"{}")
    with pytest.raises(InputError, match="holds no tokenizer.json" + (rf" \({beside} alone" if beside else ":")):
        load_tokenizer(tmp_path)


def test_a_tokenizer_of_a_larger_model_is_refused_before_any_text(families: dict[str, Path]) -> None:
    rows = json.loads((families["pythia"] / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    with pytest.raises(InputError, match=rf"has {rows} tokens and the model's embedding {rows - 1} rows \(vocab_size"):
        check_tokenizer(families["pythia"], rows - 1)
    assert check_tokenizer(families["pythia"], rows)[1] == []


def test_added_tokens_that_the_model_was_not_resized_for_are_accepted_until_a_text_holds_one(changed: Changed) -> None:
    tokens = {"extra_special_tokens": ["<image>"], "pad_token": "[PAD]"}
    folder = changed("mistral", tokenizer_config=tokens)
    rows = json.loads((folder / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    tokenizer = load_tokenizer(folder, vocabulary=rows)
    assert tokenizer.pad_token_id is None
    assert ids_of(tokenizer, PROBE) == own_ids(folder, PROBE)
    check_ids([ids_of(tokenizer, PROBE), []], tokenizer, rows)
    with pytest.raises(
        InputError, match=rf"holds the token '<image>' with the id {rows + 1}, and the model's embedding"
    ):
        check_ids([[1], ids_of(tokenizer, "an <image> here")], tokenizer, rows)


def test_a_text_that_the_embedding_has_no_row_for_is_refused_while_it_is_scored(
    changed: Changed, tmp_path: Path
) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    from harness.score.model.language_model import QuenchLM

    folder = changed("mistral", tokenizer_config={"extra_special_tokens": ["<image>"]})
    rows = json.loads((folder / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=rows, hidden_size=32, intermediate_size=32, num_attention_heads=2, num_hidden_layers=1)
    )
    # A folder's name, as lm-eval's command line gives it.
    language_model = QuenchLM(model.eval(), str(folder))
    assert [1, *language_model.texts.ids(["a b"], add_special_tokens=False)[0]] == own_ids(folder, "a b")
    with pytest.raises(InputError, match="holds the token '<image>'"):
        language_model.texts.score_texts(["an <image> here"])


def test_lm_eval_s_folder_names_give_the_file_s_ids(changed: Changed) -> None:
    from harness.score import lm_eval_hooks

    folder = changed("llama-2", config={"model_type": "qwen2"})
    for tokenizer in (named_tokenizer(str(folder)), lm_eval_hooks._tokenizer(None, str(folder))):
        assert ids_of(tokenizer, PROBE) == own_ids(folder, PROBE)


def test_a_tokenizer_may_lack_eos_and_names_and_have_a_chat_template_or_a_cut(changed: Changed) -> None:
    from tokenizers import Tokenizer

    folder = changed("qwen-3", tokenizer_config={"eos_token": None, "pad_token": None})
    core = Tokenizer.from_file(str(folder / "tokenizer.json"))
    expected = own_ids(folder, PROBE)
    core.enable_truncation(8)
    core.enable_padding(length=16)
    core.save(str(folder / "tokenizer.json"))
    tokenizer = load_tokenizer(folder)
    assert tokenizer.eos_token_id is None
    assert ids_of(tokenizer, PROBE) == expected
    (folder / "tokenizer_config.json").unlink()
    assert ids_of(load_tokenizer(folder), PROBE) == expected


def test_code_and_other_files_that_a_config_names_are_never_opened(
    changed: Changed, families: dict[str, Path], tmp_path: Path
) -> None:
    config = {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}, "tokenizer_class": "Evil",
              "fast_tokenizer_files": ["tokenizer.4.0.0.json"], "tokenizer_file": str(families["gemma"]),
              "vocab_file": "/etc/passwd"}  # fmt: skip
    folder = changed("pythia", tokenizer_config=config)
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n", encoding="utf-8")
    shutil.copy(families["qwen-2"] / "tokenizer.json", folder / "tokenizer.4.0.0.json")
    assert ids_of(load_tokenizer(folder), PROBE) == own_ids(folder, PROBE)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("family", ["llama-2", "qwen-2", "gemma", "pythia"])
def test_a_saved_tokenizer_is_the_same_again(families: dict[str, Path], family: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(families[family])
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    assert ids_of(again, PROBE) == ids_of(tokenizer, PROBE) == own_ids(tmp_path, PROBE)
    assert again.eos_token == tokenizer.eos_token


def test_the_probe_holds_what_tokenizers_treat_differently() -> None:
    scripts = {unicodedata.name(letter, "?").split()[0] for letter in PROBE}
    assert {
        "LATIN",
        "GREEK",
        "CYRILLIC",
        "HEBREW",
        "ARABIC",
        "DEVANAGARI",
        "THAI",
        "CJK",
        "KATAKANA",
        "HANGUL",
    } <= scripts
    assert PROBE[0] == PROBE[-1] == " "
    for part in ("\n\n", "\r\n", "\t\t", "   ", "'s", "'LL", "1234567", "e\u0301", "\u200d", "▁"):
        assert part in PROBE


def test_no_other_module_loads_a_tokenizer() -> None:
    loading = re.compile(r"\w*Token\w*\.from_pretrained\(")
    sources = {path: path.read_text(encoding="utf-8") for path in HARNESS.rglob("*.py")}
    code = {path: re.sub(r'""".*?"""', "", source, flags=re.DOTALL) for path, source in sources.items()}
    assert {path.name for path, source in code.items() if loading.search(source)} == {"tokenizer.py"}
    assert (HARNESS / "tokenizer.py").is_file()
