"""A small MUSE folder, small random models and a tokenizer, all made on the spot."""

import json
import random
import shutil
from pathlib import Path
from weakref import WeakKeyDictionary

import pytest

WORDS = "the old ferry to orla head leaves at nine and keeper of lamp waits for no one in rain while harbour bells ring"


def sentence(rng, length):
    return " ".join(rng.choice(WORDS.split()) for _ in range(length)).capitalize() + "."


def write_muse_folder(folder, *, seed=0, questions=14, texts=(9, 7)):
    """Writes MUSE's local form: what a user's --data-dir holds."""
    rng = random.Random(seed)

    def pairs(count):
        return [
            {"question": sentence(rng, rng.randint(3, 9))[:-1] + "?", "answer": sentence(rng, rng.randint(1, 4))[:-1]}
            for _ in range(count)
        ]

    files = {
        "knowmem/forget_qa": pairs(questions),
        "knowmem/forget_qa_icl": pairs(10),
        "knowmem/retain_qa": pairs(questions - 3),
        "knowmem/retain_qa_icl": pairs(10),
        "verbmem/forget": [
            {"prompt": sentence(rng, rng.randint(4, 30)) + " ", "gt": sentence(rng, rng.randint(10, 90))}
            for _ in range(6)
        ],
        "privleak/forget": [sentence(rng, rng.randint(4, 60)) for _ in range(texts[0])],
        "privleak/holdout": [sentence(rng, rng.randint(4, 60)) for _ in range(texts[1])],
    }
    for name, items in files.items():
        path = folder / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(items), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def muse_folder(tmp_path_factory):
    return write_muse_folder(tmp_path_factory.mktemp("muse"))


@pytest.fixture
def own_muse_folder(tmp_path):
    return write_muse_folder(tmp_path / "own")


@pytest.fixture
def shipped_tasks(tmp_path, monkeypatch):
    """A copy of tasks/ to change; the miniature gets a reference AUC and loses its pin."""
    from harness.score.corpora import catalogue

    source = catalogue.tasks_dir()
    folder = tmp_path / "tasks"
    shutil.copytree(source, folder)
    change_facts(folder, "mini", reference_auc=0.5, reference_source="a test", data_sha256=None)
    monkeypatch.setattr(catalogue, "content_dir", lambda name: folder)
    return folder


def change_facts(tasks, name, **facts):
    path = tasks / f"muse_{name}" / "corpus.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | facts), encoding="utf-8")


@pytest.fixture
def edit_corpus(shipped_tasks):
    """Changes facts in the copied corpus.json."""
    return lambda name, **facts: change_facts(shipped_tasks, name, **facts)


def make_tokenizer(*, bos):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    rng = random.Random(1)
    lines = [f"Question: {sentence(rng, 6)}\nAnswer: {sentence(rng, 3)}\n\n" for _ in range(80)]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=360,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(lines, trainer)
    if bos:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", clean_up_tokenization_spaces=False
    )


@pytest.fixture(scope="session")
def tokenizer():
    return make_tokenizer(bos=True)


@pytest.fixture(scope="session")
def bare_tokenizer():
    return make_tokenizer(bos=False)


def make_model(kind="llama", *, seed=0, positions=768, **settings):
    import torch
    from transformers import AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig, Qwen2Config

    torch.manual_seed(seed)
    torch.set_num_threads(1)
    common = {
        "vocab_size": 360,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": positions,
        # Wide weights make random models say different things to different prompts.
        "initializer_range": 0.3,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    kinds = {
        "llama": (LlamaConfig, {"num_key_value_heads": 4}),
        "qwen2": (Qwen2Config, {"num_key_value_heads": 2, "tie_word_embeddings": True}),
        "gpt_neox": (GPTNeoXConfig, {}),
    }
    config, extra = kinds[kind]
    return AutoModelForCausalLM.from_config(config(**common | extra | settings)).float().eval()


@pytest.fixture(scope="session")
def models():
    return {kind: make_model(kind, seed=seed) for seed, kind in enumerate(("llama", "qwen2", "gpt_neox"))}


@pytest.fixture
def model():
    return make_model("llama")


@pytest.fixture(scope="session")
def new_model():
    return make_model


@pytest.fixture(scope="session")
def new_muse_folder():
    return write_muse_folder


@pytest.fixture(scope="session")
def plain_greedy():
    """The plain loop: one prompt, no cache, no batch; new ids up to the end token.

    What it has said of a prompt is kept: tests ask the same model for more or fewer steps.
    """
    import torch

    said = WeakKeyDictionary()

    def run(model, ids, steps, end=2):
        new = said.setdefault(model, {}).setdefault(tuple(ids), [])
        with torch.no_grad():
            while len(new) < steps and end not in new:
                new.append(int(model(input_ids=torch.tensor([[*ids, *new]])).logits[0, -1].float().argmax()))
        return new[: new.index(end) if end in new else steps][:steps]

    return run


@pytest.fixture(scope="session")
def plain_logprobs():
    """One text, one full log-softmax: log-probabilities of ids[first:]."""
    import torch

    def run(model, ids, first=1):
        with torch.no_grad():
            table = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0].double(), dim=-1)
        return [float(table[t - 1, ids[t]]) for t in range(first, len(ids))]

    return run


@pytest.fixture(scope="session")
def fixture_file():
    folder = Path(__file__).parents[1] / "fixtures"
    return lambda name: json.loads((folder / f"score_{name}.json").read_text(encoding="utf-8"))
