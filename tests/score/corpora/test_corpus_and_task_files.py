"""Corpora that a user adds, texts in odd shapes, the hub's cache, and how task files include each other."""

import json
import shutil
import unicodedata

import pytest

from harness.errors import CorpusError, UnknownNameError
from harness.score.corpora import catalogue, task_files
from harness.score.corpora import files as corpus_files
from harness.score.metrics.formulas import PRIMARY


@pytest.fixture
def own_corpus(shipped_tasks):
    """A sixth folder beside the shipped ones: a user's own corpus, in all but one of the metrics."""
    folder = shipped_tasks / "muse_own"
    shutil.copytree(shipped_tasks / "muse_mini", folder, ignore=shutil.ignore_patterns("data", "knowmem_r.yaml"))
    facts = json.loads((folder / "corpus.json").read_text(encoding="utf-8")) | {"name": "ours", "title": "Our own"}
    (folder / "corpus.json").write_text(json.dumps(facts), encoding="utf-8")
    return folder


def test_a_folder_with_facts_is_a_corpus_with_the_tasks_that_it_has_files_for(own_corpus):
    assert catalogue.corpus_names() == ("books", "mini", "news", "ours", "smol")
    corpus = catalogue.load_corpus("ours")
    assert corpus.tasks == ("muse_own_verbmem_f", "muse_own_knowmem_f", "muse_own_privleak")
    assert (corpus.group, corpus.title, corpus.folder) == ("muse_own", "Our own", own_corpus)
    assert catalogue.resolve_tasks(["muse_own"]) == corpus.tasks
    assert {catalogue.corpus_of(task) for task in corpus.tasks} == {"ours"}
    assert [catalogue.metric_of(task) for task in corpus.tasks] == ["verbmem_f", "knowmem_f", "privleak"]
    with pytest.raises(UnknownNameError, match="did you mean"):
        catalogue.metric_of("muse_own_knowmem_r")


def test_a_corpus_s_name_is_no_group_and_a_group_no_corpus(own_corpus):
    with pytest.raises(UnknownNameError):
        catalogue.resolve_tasks(["ours"])
    with pytest.raises(UnknownNameError):
        catalogue.load_corpus("muse_own")


def test_a_corpus_without_its_texts_says_how_to_restore_them(own_corpus):
    with pytest.raises(CorpusError, match=r"forget\.json is missing: it ships with Quench; restore .*muse_own/data or"):
        catalogue.check_task("muse_own_verbmem_f")


@pytest.mark.parametrize("content", ["[]", "{}", '{"name": 3}', "null"])
def test_facts_without_a_name_stop_everything_and_name_their_file(own_corpus, content):
    (own_corpus / "corpus.json").write_text(content, encoding="utf-8")
    with pytest.raises(CorpusError, match=r"muse_own/corpus\.json must be a JSON object with a 'name'"):
        catalogue.load_corpus("news")


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe{}", b""])
def test_facts_that_are_no_json_name_their_file(own_corpus, content):
    (own_corpus / "corpus.json").write_bytes(content)
    with pytest.raises(CorpusError, match=r"muse_own/corpus\.json can't be read as JSON .*: restore it"):
        catalogue.corpus_names()


@pytest.mark.parametrize("value", [float("nan"), -0.1, [], 1 + 1e-9])
def test_a_reference_outside_its_range_is_no_reference(edit_corpus, value):
    edit_corpus("mini", reference_auc=value)
    with pytest.raises(CorpusError, match="no usable reference AUC"):
        catalogue.reference_auc(catalogue.load_corpus("mini"))


@pytest.mark.parametrize("value", [1, 1.0, 1e-9])
def test_a_reference_at_the_edges_of_its_range_is_a_float(edit_corpus, value):
    edit_corpus("mini", reference_auc=value)
    found = catalogue.reference_auc(catalogue.load_corpus("mini"))
    assert (found, type(found)) == (value, float)


@pytest.mark.parametrize("metric", PRIMARY)
def test_a_task_is_checked_for_every_split_that_it_reads_and_for_no_other(own_muse_folder, metric):
    needed = {"/".join(split) for split in catalogue.SPLITS_OF[metric]}
    for path in own_muse_folder.rglob("*.json"):
        if path.relative_to(own_muse_folder).with_suffix("").as_posix() not in needed:
            path.unlink()
    catalogue.check_task(f"muse_news_{metric}", data_dir=own_muse_folder)
    for name in needed:
        path = own_muse_folder / f"{name}.json"
        content = path.read_bytes()
        path.unlink()
        with pytest.raises(CorpusError, match=f"{name}.json is missing"):
            catalogue.check_task(f"muse_news_{metric}", data_dir=own_muse_folder)
        path.write_bytes(content)


def test_columns_beyond_muse_s_own_are_left_out_and_others_kept_in_order(tmp_path):
    (tmp_path / "knowmem").mkdir()
    item = {"id": 7, "answer": "a", "question": "q", "source": None}
    (tmp_path / "knowmem/forget_qa.json").write_text(json.dumps([item]), encoding="utf-8")
    (found,) = corpus_files.read_split(tmp_path, "knowmem", "forget_qa", "")
    assert list(found.items()) == [("question", "q"), ("answer", "a")]


@pytest.mark.parametrize("config", ["privleak", "raw"])
def test_texts_may_be_strings_or_objects_as_on_the_hub(tmp_path, config):
    (tmp_path / config).mkdir()
    (tmp_path / config / "forget.json").write_text('["one", {"text": "two", "id": 2}, ""]', encoding="utf-8")
    found = corpus_files.read_split(tmp_path, config, "forget", "")
    assert found == [{"text": "one"}, {"text": "two"}, {"text": ""}]


def test_texts_are_taken_letter_by_letter(tmp_path):
    """No normal form, no stripping, no line ends translated: a digest must mean these very texts."""
    texts = [" e\u0301 and \u00e9 ", "a\r\nb\u2028c\u0000", "\U0001f600", unicodedata.normalize("NFD", "Ångström")]
    (tmp_path / "raw").mkdir()
    for ascii_only in (True, False):
        (tmp_path / "raw/forget.json").write_text(json.dumps(texts, ensure_ascii=ascii_only), encoding="utf-8")
        assert [item["text"] for item in corpus_files.read_split(tmp_path, "raw", "forget", "")] == texts


@pytest.mark.parametrize("content", [b"\xff\xfe", b'["\xe9"]', b'\xef\xbb\xbf["a"]'])
def test_texts_in_another_encoding_are_refused_by_the_name_of_their_file(tmp_path, content):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/forget.json").write_bytes(content)
    with pytest.raises(CorpusError, match=r"forget\.json can't be read as JSON"):
        corpus_files.read_split(tmp_path, "raw", "forget", "")


def test_what_the_hub_gives_is_kept_as_muse_s_local_form_with_its_columns_only(monkeypatch, tmp_path):
    rows = [{"question": "Wo läuft sie?", "answer": "Orla", "idx": 3}]
    monkeypatch.setenv("QUENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(corpus_files, "_fetch", lambda *_: rows)
    folder = corpus_files.hub_folder("news", "owner/data", "0123456789abcdef", "knowmem", "forget_qa")
    assert folder.name == "news-0123456789ab"
    text = (folder / "knowmem/forget_qa.json").read_text(encoding="utf-8")
    assert json.loads(text) == [{"question": "Wo läuft sie?", "answer": "Orla"}]
    assert "läuft" in text
    monkeypatch.setattr(corpus_files, "_fetch", lambda *_: pytest.fail("fetched twice"))
    assert corpus_files.hub_folder("news", "owner/data", "0123456789abcdef", "knowmem", "forget_qa") == folder


def test_another_commit_is_fetched_into_a_folder_of_its_own(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setenv("QUENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(corpus_files, "_fetch", lambda *call: asked.append(call[1]) or [{"text": call[1]}])
    for revision in ("a" * 40, "b" * 40):
        folder = corpus_files.hub_folder("news", "owner/data", revision, "raw", "forget")
        assert corpus_files.read_split(folder, "raw", "forget", "") == [{"text": revision}]
    assert asked == ["a" * 40, "b" * 40]


def test_a_damaged_cache_says_what_to_delete(monkeypatch, tmp_path):
    monkeypatch.setenv("QUENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(corpus_files, "_fetch", lambda *_: [{"text": "a"}])
    corpus = catalogue.load_corpus("books")
    catalogue.load_split(corpus, "privleak", "forget")
    path = next(tmp_path.rglob("forget.json"))
    path.write_text("[]", encoding="utf-8")
    with pytest.raises(CorpusError, match=f"at least one item: delete {path.parents[1]} so that it is fetched again"):
        catalogue.load_split(corpus, "privleak", "forget")


def test_an_error_of_the_hub_without_words_is_called_by_its_class(monkeypatch):
    import datasets

    class SilentError(Exception):
        pass

    def load_dataset(*_, **__):
        raise SilentError

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(CorpusError, match=r"raw/forget of owner/data at 0123456 can't be fetched .*\(SilentError\)"):
        corpus_files._fetch("owner/data", "0123456789", "raw", "forget")


def write(folder, **files):
    for name, content in files.items():
        (folder / f"{name}.yaml").write_text(content, encoding="utf-8")
    return folder / "task.yaml"


def test_a_file_stands_above_what_it_includes_and_later_includes_above_earlier_ones(tmp_path):
    path = write(
        tmp_path, task="include: [low.yaml, high.yaml]\na: task\n", low="a: low\nb: low\nc: low\n",
        high="include: deep.yaml\na: high\nb: high\n", deep="b: deep\nd: deep\n",
    )  # fmt: skip
    assert task_files.read_task(path) == {"a": "task", "b": "high", "c": "low", "d": "deep"}


def test_nested_settings_are_replaced_as_a_whole_like_lm_eval_s(tmp_path):
    from lm_eval.tasks._yaml_loader import load_yaml

    path = write(tmp_path, task="include: low.yaml\nkwargs: {a: 1}\n", low="kwargs: {b: 2}\nother: {c: 3}\n")
    assert task_files.read_task(path) == {"kwargs": {"a": 1}, "other": {"c": 3}}
    theirs = load_yaml(path, resolve_func=False)
    assert {key: theirs[key] for key in ("kwargs", "other")} == task_files.read_task(path)


def test_one_template_may_be_reached_by_two_ways_but_not_by_a_circle(tmp_path):
    path = write(
        tmp_path, task="include: [one.yaml, two.yaml]", one="include: low.yaml\na: 1", two="include: low.yaml\nb: 2",
        low="c: 3",
    )  # fmt: skip
    assert task_files.read_task(path) == {"a": 1, "b": 2, "c": 3}
    write(tmp_path, low="include: ../" + tmp_path.name + "/one.yaml")
    with pytest.raises(CorpusError, match=r"one\.yaml includes itself: remove that 'include'"):
        task_files.read_task(path)


def test_a_function_stays_its_name_and_is_not_imported(tmp_path):
    path = write(tmp_path, task="process: !function no_such_module.explode\nlist: [!function a.b]\n")
    assert task_files.read_task(path) == {"process": "!function no_such_module.explode", "list": ["!function a.b"]}


@pytest.mark.parametrize("content", ["a: !function [b]", "a: !function {b: c}", "a: !other b", "a: *gone", "a: \x07"])
def test_yaml_that_is_none_or_unsafe_is_refused_by_the_name_of_its_file(tmp_path, content):
    with pytest.raises(CorpusError, match=r"(?s)task\.yaml can't be read .*: restore it"):
        task_files.read_task(write(tmp_path, task=content))


def test_what_a_reader_does_to_the_settings_is_not_remembered(tmp_path):
    path = write(tmp_path, task="include: low.yaml\na: 1\n", low="b: 2\n")
    task_files.read_task(path).clear()
    assert task_files.read_task(path) == {"a": 1, "b": 2}
