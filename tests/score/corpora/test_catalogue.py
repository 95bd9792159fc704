"""Corpora, their files, their tasks: what is found, what is refused and how it is said."""

import json
import subprocess
import sys

import pytest

from harness.errors import CorpusError, UnknownNameError
from harness.score.corpora import catalogue, task_files
from harness.score.corpora import files as corpus_files
from harness.score.metrics.formulas import PRIMARY

CORPORA = ("books", "mini", "news")


def test_each_corpus_has_the_four_tasks_in_the_order_of_the_metrics():
    assert catalogue.corpus_names() == (*CORPORA, "smol")
    assert catalogue.load_corpus("smol").tasks == tuple(
        f"muse_smol_{metric}" for metric in ("verbmem_f", "knowmem_r", "privleak")
    )
    for name in CORPORA:
        corpus = catalogue.load_corpus(name)
        assert corpus.tasks == tuple(f"muse_{name}_{metric}" for metric in PRIMARY)
        assert [catalogue.metric_of(task) for task in corpus.tasks] == list(PRIMARY)
        assert {catalogue.corpus_of(task) for task in corpus.tasks} == {name}
        assert catalogue.resolve_tasks([corpus.group]) == corpus.tasks


def test_groups_and_tasks_resolve_in_order_and_once():
    found = catalogue.resolve_tasks(["muse_news_privleak", "muse_news", "muse_mini_knowmem_r", "muse_news_privleak"])
    assert found[0] == "muse_news_privleak"
    assert len(found) == 5
    assert found[-1] == "muse_mini_knowmem_r"


def test_unknown_names_come_with_the_nearest_known_ones():
    with pytest.raises(UnknownNameError, match="did you mean muse_mini_verbmem_f"):
        catalogue.resolve_tasks(["muse_mini_vermem_f"])
    with pytest.raises(UnknownNameError, match="did you mean news"):
        catalogue.load_corpus("newss")
    for function in (catalogue.corpus_of, catalogue.metric_of, catalogue.task_digest, catalogue.check_task):
        with pytest.raises(UnknownNameError):
            function("muse_news")


def test_the_reference_values_are_those_of_the_reference_code(fixture_file):
    for name, value in fixture_file("privleak")["auc_retrain_min40"].items():
        corpus = catalogue.load_corpus(name)
        assert catalogue.reference_auc(corpus) == pytest.approx(value, abs=1e-12)
        assert "fcd6651" in corpus.reference_source


def test_hub_corpora_are_pinned_and_ship_no_texts():
    for name in ("news", "books"):
        corpus = catalogue.load_corpus(name)
        assert corpus.revision
        assert corpus.license == "CC-BY-4.0"
        assert corpus.license_note
        assert list(corpus.folder.rglob("*.json")) == [corpus.folder / "corpus.json"]


def test_the_miniatures_label_says_that_it_is_no_evidence():
    label = catalogue.load_corpus("mini").label
    for needed in ("4-bit checkpoint", "by construction", "plain target", "Neither is evidence", "Llama-2-7B"):
        assert needed in label


def test_lengths_and_shots_stand_in_the_yaml():
    for name, tokens, answer_tokens, pairs in (("mini", 64, 20, 5), ("news", 128, 32, 10), ("books", 128, 32, 10)):
        verbmem = catalogue.task_settings(f"muse_{name}_verbmem_f")
        assert verbmem["dataset_kwargs"]["reference_tokens"] == tokens
        assert verbmem["generation_kwargs"] == {"until": [], "max_gen_toks": tokens, "do_sample": False}
        for metric in ("knowmem_f", "knowmem_r"):
            knowmem = catalogue.task_settings(f"muse_{name}_{metric}")
            assert knowmem["dataset_kwargs"]["icl_pairs"] == pairs
            assert knowmem["generation_kwargs"]["max_gen_toks"] == answer_tokens


def test_every_split_of_a_muse_folder_loads_with_its_columns(muse_folder):
    corpus = catalogue.load_corpus("news", data_dir=muse_folder)
    assert set(catalogue.load_split(corpus, "knowmem", "forget_qa")[0]) == {"question", "answer"}
    assert set(catalogue.load_split(corpus, "verbmem", "forget")[0]) == {"prompt", "gt"}
    assert set(catalogue.load_split(corpus, "privleak", "holdout")[0]) == {"text"}
    for task in corpus.tasks:
        catalogue.check_task(task, data_dir=muse_folder)


def test_the_shipped_miniature_is_complete():
    corpus = catalogue.load_corpus("mini")
    assert len(catalogue.load_split(corpus, "verbmem", "forget")) == 32
    assert len(catalogue.load_split(corpus, "privleak", "forget")) == 72
    assert len(catalogue.load_split(corpus, "raw", "forget")) > 100
    assert corpus.data_sha256


def test_the_digest_follows_the_texts_and_nothing_else(own_muse_folder, muse_folder):
    def digest():
        return catalogue.load_corpus("news", data_dir=own_muse_folder).data_sha256

    before = digest()
    assert before == catalogue.load_corpus("books", data_dir=muse_folder).data_sha256
    path = own_muse_folder / "knowmem" / "retain_qa_icl.json"
    items = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(items, indent=3), encoding="utf-8")
    assert digest() == before
    (own_muse_folder / "privleak" / "retain.json").write_text('["unused"]', encoding="utf-8")
    assert digest() == before
    items[0]["answer"] += "x"
    path.write_text(json.dumps(items), encoding="utf-8")
    assert digest() != before


def test_shipped_texts_must_be_those_that_are_pinned(edit_corpus, muse_folder):
    edit_corpus("mini", data_sha256="0" * 64)
    with pytest.raises(CorpusError, match="pins 000"):
        _ = catalogue.load_corpus("mini").data_sha256
    assert catalogue.load_corpus("mini", data_dir=muse_folder).data_sha256


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "is missing: give --data-dir"),
        ("[]", "at least one item"),
        ("{}", "must be a JSON list"),
        ("[{", "can't be read as JSON"),
        ('[{"question": "q"}]', "Item 0 of .* question and answer"),
        ('[{"question": "q", "answer": 3}]', "Item 0 of"),
        ('["q"]', "Item 0 of"),
    ],
)
def test_a_faulty_file_is_named_with_its_remedy(own_muse_folder, content, says):
    path = own_muse_folder / "knowmem" / "forget_qa.json"
    path.unlink()
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(CorpusError, match=says) as caught:
        catalogue.check_task("muse_news_knowmem_f", data_dir=own_muse_folder)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_faulty_text_is_named(own_muse_folder):
    (own_muse_folder / "privleak" / "holdout.json").write_text('["good", 7]', encoding="utf-8")
    with pytest.raises(CorpusError, match=r"Item 1 of .*holdout\.json must be a string"):
        catalogue.check_task("muse_news_privleak", data_dir=own_muse_folder)


def test_a_missing_data_folder_is_refused_before_anything_else(tmp_path):
    with pytest.raises(CorpusError, match=r"nowhere does not exist: give a folder"):
        catalogue.check_task("muse_news_verbmem_f", data_dir=tmp_path / "nowhere")


def test_too_few_in_context_pairs_are_refused(own_muse_folder):
    path = own_muse_folder / "knowmem" / "forget_qa_icl.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8"))[:7]), encoding="utf-8")
    with pytest.raises(CorpusError, match="has 7 pairs, but the task's 'icl_pairs' asks for 10"):
        catalogue.check_task("muse_news_knowmem_f", data_dir=own_muse_folder)
    catalogue.check_task("muse_mini_knowmem_f", data_dir=own_muse_folder)


@pytest.mark.parametrize("value", [None, 0, 1.5, "0.5", True])
def test_privleak_without_a_usable_reference_is_refused(edit_corpus, muse_folder, value):
    edit_corpus("mini", reference_auc=value)
    with pytest.raises(CorpusError, match="no usable reference AUC"):
        catalogue.check_task("muse_mini_privleak", data_dir=muse_folder)
    catalogue.check_task("muse_mini_verbmem_f", data_dir=muse_folder)


@pytest.mark.parametrize("split", ["../../secret", "a/b", "", "forget.json"])
def test_a_split_name_can_not_leave_its_folder(muse_folder, split):
    corpus = catalogue.load_corpus("news", data_dir=muse_folder)
    with pytest.raises(CorpusError, match="no name of a split"):
        catalogue.load_split(corpus, "raw", split)
    with pytest.raises(CorpusError, match="no data config"):
        catalogue.load_split(corpus, "../raw", "forget")


def test_the_hub_is_asked_once_at_the_pinned_commit(monkeypatch, tmp_path):
    import datasets

    calls = []

    def load_dataset(repo, config, *, split, revision):
        calls.append((repo, config, split, revision))
        return datasets.Dataset.from_list([{"text": "one"}, {"text": "two"}])

    monkeypatch.setenv("QUENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    corpus = catalogue.load_corpus("books")
    for _ in range(2):
        assert catalogue.load_split(corpus, "privleak", "forget") == [{"text": "one"}, {"text": "two"}]
    assert calls == [("muse-bench/MUSE-Books", "privleak", "forget", corpus.revision)]
    written = next((tmp_path / "cache").rglob("forget.json"))
    assert json.loads(written.read_text(encoding="utf-8")) == ["one", "two"]
    assert not list((tmp_path / "cache").rglob("*.part"))


def test_an_unreachable_hub_ends_in_one_sentence_with_the_way_out(monkeypatch, tmp_path):
    import datasets

    def load_dataset(*_, **__):
        raise ConnectionError("no route to host\nand a long traceback")

    monkeypatch.setenv("QUENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(CorpusError, match=r"no route to host\): check the network, or give --data-dir") as caught:
        catalogue.check_task("muse_books_verbmem_f")
    assert "\n" not in str(caught.value)


def test_a_tasks_digest_covers_its_own_file_and_its_template(shipped_tasks):
    def digests():
        return [catalogue.task_digest(f"muse_mini_{metric}") for metric in PRIMARY]

    before = digests()
    assert len(set(before)) == 4
    own = shipped_tasks / "muse_mini" / "knowmem_f.yaml"
    own.write_text(own.read_text(encoding="utf-8").replace("max_gen_toks: 20", "max_gen_toks: 21"), encoding="utf-8")
    assert [old == new for old, new in zip(before, digests(), strict=True)] == [True, False, True, True]
    template = shipped_tasks / "_metrics" / "verbmem_f.yaml"
    template.write_text(template.read_text(encoding="utf-8") + "# only words\n", encoding="utf-8")
    assert digests()[0] == before[0]
    template.write_text(template.read_text(encoding="utf-8").replace("version: 1", "version: 2"), encoding="utf-8")
    assert digests()[0] != before[0]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("include: own.yaml", "includes itself"),
        ("include: gone.yaml", "is missing"),
        ("- a list", "must be a mapping"),
        ("task: [", "can't be read"),
        ("task: !!python/object/apply:os.getcwd []", "can't be read"),
    ],
)
def test_a_broken_task_file_is_refused(tmp_path, content, says):
    path = tmp_path / "own.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(CorpusError, match=says):
        task_files.read_task(path)


def test_task_files_read_as_lm_eval_reads_them():
    from lm_eval.tasks._yaml_loader import load_yaml

    for name in CORPORA:
        for task in catalogue.load_corpus(name).tasks:
            theirs = load_yaml(catalogue.task_yaml(task), resolve_func=False)
            ours = catalogue.task_settings(task)
            assert set(theirs) == set(ours)
            for key in ("task", "dataset_kwargs", "generation_kwargs", "num_fewshot", "target_delimiter"):
                assert theirs.get(key) == ours.get(key)


def test_a_corpus_json_without_a_fact_is_refused(shipped_tasks):
    path = shipped_tasks / "muse_mini" / "corpus.json"
    facts = json.loads(path.read_text(encoding="utf-8"))
    del facts["license"]
    path.write_text(json.dumps(facts), encoding="utf-8")
    with pytest.raises(CorpusError, match="has no 'license'"):
        catalogue.load_corpus("mini")
    path.write_text("[]", encoding="utf-8")
    with pytest.raises(CorpusError, match="must be a JSON object"):
        catalogue.corpus_names()


def test_reading_corpora_needs_neither_torch_nor_lm_eval():
    code = (
        "import sys; from harness.score.corpora import catalogue; from harness.score.metrics import formulas;"
        "c = catalogue.load_corpus('mini'); c.data_sha256;"
        "catalogue.check_task('muse_mini_verbmem_f'); catalogue.task_digest('muse_news_privleak');"
        "print([m for m in ('torch', 'lm_eval', 'transformers', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_yaml_is_plain_but_for_functions_of_the_hooks():
    from harness.score import lm_eval_hooks

    for path in catalogue.tasks_dir().rglob("*.yaml"):
        for line in path.read_text(encoding="utf-8").splitlines():
            if "!function" in line:
                module, _, function = line.split("!function")[1].strip().rpartition(".")
                assert module == "harness.score.lm_eval_hooks"
                assert callable(getattr(lm_eval_hooks, function))


def test_columns_of_the_local_form_are_those_of_the_hub():
    assert corpus_files.COLUMNS["knowmem"] == ("question", "answer")
    assert corpus_files.COLUMNS["verbmem"] == ("prompt", "gt")
