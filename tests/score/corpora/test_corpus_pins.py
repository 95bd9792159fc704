"""Pinned texts: a wrong, cut or foreign copy is recognised, named with its file, and told what to do about."""

import json
import os
import re
from pathlib import Path

import pytest

from harness.errors import CorpusError
from harness.score.corpora import catalogue
from harness.score.corpora import files as corpus_files
from harness.score.evaluation import evaluate
from harness.score.metrics.formulas import PRIMARY


@pytest.fixture
def hub(monkeypatch, tmp_path, muse_folder):
    """A hub that gives the small MUSE folder's texts, into a cache of its own; returns that cache."""

    def fetch(repo, revision, config, split):
        return corpus_files.read_split(muse_folder, config, split, "")

    monkeypatch.setenv("QUENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(corpus_files, "_fetch", fetch)
    return tmp_path / "cache"


def pins_of(folder):
    names = [f"{config}/{split}" for metric in PRIMARY for config, split in catalogue.SPLITS_OF[metric]]
    return {name: corpus_files.digest(corpus_files.read_split(folder, *name.split("/"), "")) for name in names}


def change(folder, name):
    """Takes the last item away: a cut copy that is still good JSON."""
    path = folder / f"{name}.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8"))[:-1]), encoding="utf-8")


def test_news_pins_every_split_that_its_tasks_read_and_books_says_why_it_can_not():
    news = catalogue.load_corpus("news")
    read = {f"{config}/{split}" for metric in PRIMARY for config, split in catalogue.SPLITS_OF[metric]}
    assert read <= set(news.split_sha256)
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in news.split_sha256.values())
    assert len(set(news.split_sha256.values())) == len(news.split_sha256)
    assert catalogue.load_corpus("books").split_sha256 == {}
    facts = json.loads((catalogue.load_corpus("books").folder / "corpus.json").read_text(encoding="utf-8"))
    assert "not recognised" in facts["data_note"]


def test_a_digest_is_of_the_texts_and_not_of_the_file_s_layout(own_muse_folder):
    before = pins_of(own_muse_folder)
    for path in own_muse_folder.rglob("*.json"):
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")), indent=4), encoding="utf-8")
    assert pins_of(own_muse_folder) == before
    path = own_muse_folder / "privleak" / "forget.json"
    texts = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps([{"text": text} for text in texts]), encoding="utf-8")
    assert pins_of(own_muse_folder) == before
    path.write_text(json.dumps([*texts[1:], texts[0]]), encoding="utf-8")
    assert {name for name, digest in pins_of(own_muse_folder).items() if digest != before[name]} == {"privleak/forget"}


def test_hub_texts_with_the_pinned_digests_are_read(edit_corpus, hub, muse_folder):
    edit_corpus("news", split_sha256=pins_of(muse_folder))
    for metric in PRIMARY:
        catalogue.check_task(f"muse_news_{metric}")


def test_hub_texts_with_another_digest_are_refused_with_file_and_remedy(edit_corpus, hub, muse_folder):
    edit_corpus("news", split_sha256=pins_of(muse_folder) | {"knowmem/retain_qa": "0" * 64})
    catalogue.check_task("muse_news_knowmem_f")
    with pytest.raises(
        CorpusError, match=r"retain_qa\.json does not hold the corpus's texts .* pinned is 0000"
    ) as caught:
        catalogue.check_task("muse_news_knowmem_r")
    assert re.search(r"delete .*news-506bd5b so that it is fetched again\.$", str(caught.value))


def test_a_cached_copy_that_loses_a_document_is_refused(edit_corpus, hub, muse_folder):
    edit_corpus("news", split_sha256=pins_of(muse_folder))
    catalogue.check_task("muse_news_privleak")
    change(next(hub.rglob("privleak")), "holdout")
    with pytest.raises(CorpusError, match=r"privleak/holdout\.json does not hold the corpus's texts \(its 6 items"):
        catalogue.check_task("muse_news_privleak")


def test_shipped_texts_may_be_pinned_by_split_too(edit_corpus):
    edit_corpus("mini", split_sha256={"verbmem/forget": "1" * 64})
    with pytest.raises(CorpusError, match=r"verbmem/forget\.json .* restore .*data or run `quench mini build"):
        catalogue.check_task("muse_mini_verbmem_f")


def test_a_file_that_was_cut_off_is_named_with_the_remedy_of_its_place(hub, own_muse_folder):
    path = own_muse_folder / "verbmem" / "forget.json"
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole[: len(whole) // 2], encoding="utf-8")
    with pytest.raises(CorpusError, match=r"verbmem/forget\.json can't be read as JSON .*: give --data-dir"):
        catalogue.check_task("muse_news_verbmem_f", data_dir=own_muse_folder)
    catalogue.check_task("muse_books_verbmem_f")
    cached = next(hub.rglob("forget.json"))
    cached.write_text(whole[:40], encoding="utf-8")
    with pytest.raises(CorpusError, match=r"can't be read as JSON .*: delete .* so that it is fetched again"):
        catalogue.check_task("muse_books_verbmem_f")


def test_an_empty_split_from_the_hub_is_named_with_its_remedy(hub, monkeypatch):
    monkeypatch.setattr(corpus_files, "_fetch", lambda *_: [])
    with pytest.raises(CorpusError, match=r"forget\.json must be a JSON list with at least one item: delete "):
        catalogue.check_task("muse_books_verbmem_f")


@pytest.fixture
def run(models, tokenizer):
    def call(metric, folder, limit=2):
        return evaluate(models["llama"], tokenizer, f"muse_news_{metric}", data_dir=folder, device="cpu", limit=limit,
                        seed=0)  # fmt: skip

    return call


def test_a_given_folder_with_other_texts_is_scored_and_says_which_splits_differ(
    edit_corpus, run, muse_folder, own_muse_folder
):
    edit_corpus("news", split_sha256=pins_of(muse_folder))
    change(own_muse_folder, "privleak/holdout")
    assert not any("differ" in remark for remark in run("knowmem_f", own_muse_folder).remarks)
    remarks = run("privleak", own_muse_folder, limit=None).remarks
    assert "The given data folder's privleak/holdout differ from the texts that MUSE NEWS pins." in remarks
    assert any("reference AUC was measured on the corpus's own texts" in remark for remark in remarks)
    assert not any("differ" in remark or "own texts" in remark for remark in run("privleak", muse_folder).remarks)


def test_what_is_not_pinned_is_never_called_foreign(edit_corpus, muse_folder):
    edit_corpus("news", split_sha256={"privleak/holdout": "0" * 64})
    corpus = catalogue.load_corpus("news", data_dir=muse_folder)
    assert catalogue.foreign_splits(corpus, "privleak") == ("privleak/holdout",)
    assert catalogue.foreign_splits(corpus, "verbmem_f") == ()
    assert catalogue.foreign_splits(catalogue.load_corpus("books", data_dir=muse_folder), "privleak") == ()
    assert catalogue.foreign_splits(catalogue.load_corpus("news"), "privleak") == ()


def test_under_a_pin_of_the_whole_corpus_a_given_folder_is_its_own_or_foreign_as_a_whole(edit_corpus, muse_folder):
    given = catalogue.load_corpus("mini", data_dir=muse_folder)
    edit_corpus("mini", data_sha256=given.data_sha256)
    assert catalogue.foreign_splits(catalogue.load_corpus("mini", data_dir=muse_folder), "privleak") == ()
    edit_corpus("mini", data_sha256="0" * 64)
    found = catalogue.foreign_splits(catalogue.load_corpus("mini", data_dir=muse_folder), "privleak")
    assert found == ("privleak/forget", "privleak/holdout")


def test_a_document_of_fewer_than_three_tokens_is_named_by_file_place_and_remedy(run, own_muse_folder, edit_corpus):
    path = own_muse_folder / "privleak" / "holdout.json"
    texts = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps([*texts[:3], "a", *texts[3:]]), encoding="utf-8")
    found = run("privleak", own_muse_folder, limit=None)
    (invalid,) = [document for document in found.documents if document.invalid_reason]
    assert re.fullmatch(
        r"item 3 of privleak/holdout\.json has [12] scored tokens, but Min-40% needs at least 3: put a longer text"
        r" there, or leave it out",
        invalid.invalid_reason,
    )
    assert found.scores[0].num_docs == len(found.documents) - 1


def test_real_news_has_the_pinned_digests_where_it_is_there():
    folder = os.environ.get("QUENCH_REAL_DATA")
    if not folder:
        pytest.skip("QUENCH_REAL_DATA names no folder with MUSE NEWS in its local form")
    corpus = catalogue.load_corpus("news", data_dir=Path(folder))
    for metric in PRIMARY:
        assert catalogue.foreign_splits(corpus, metric) == ()


@pytest.mark.parametrize(
    ("name", "column", "metric"),
    [("verbmem/forget", "prompt", "verbmem_f"), ("verbmem/forget", "gt", "verbmem_f"),
     ("knowmem/retain_qa", "answer", "knowmem_r"), ("knowmem/forget_qa_icl", "question", "knowmem_f")],
)  # fmt: skip
@pytest.mark.parametrize("empty", ["", " \n"])
def test_a_document_with_nothing_to_ask_or_to_compare_with_is_named(own_muse_folder, name, column, metric, empty):
    path = own_muse_folder / f"{name}.json"
    items = json.loads(path.read_text(encoding="utf-8"))
    items[2][column] = empty
    path.write_text(json.dumps(items), encoding="utf-8")
    said = rf"Item 2 of .*{name}\.json has an empty {column}: fill it, or take the item out"
    with pytest.raises(CorpusError, match=said):
        catalogue.check_task(f"muse_news_{metric}", data_dir=own_muse_folder)
