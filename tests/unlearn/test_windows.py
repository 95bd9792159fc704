import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import InputError
from harness.unlearn.losses import IGNORED
from harness.unlearn.windows import pair_batches, text_windows

BOS, EOS, PAD = 1, 2, 0


class LetterTokenizer:
    """One token per letter, with or without BOS and EOS."""

    def __init__(self, *, bos: bool = True, eos: int | None = EOS, pad: int | None = PAD) -> None:
        self.bos, self.eos_token_id, self.pad_token_id = bos, eos, pad

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        return {"input_ids": [BOS] * self.bos + [ord(letter) for letter in text]}


def stream_of(windows) -> list[int]:
    return [int(t) for w in windows for t, seen in zip(w["input_ids"], w["attention_mask"], strict=True) if seen]


def tagged(count: int) -> list[dict[str, object]]:
    import torch

    return [{"input_ids": torch.tensor([index])} for index in range(count)]


@settings(deadline=None)
@given(texts=st.lists(st.text("abcxyz", min_size=1, max_size=30), min_size=1, max_size=6), window=st.integers(2, 40))
def test_windows_hold_every_token_of_the_stream_once_and_in_order_but_for_a_lone_last_one(texts, window):
    windows = text_windows(texts, LetterTokenizer(), window)
    stream = [t for text in texts for t in [BOS, *map(ord, text), EOS]]
    assert stream_of(windows) == (stream[:-1] if len(stream) % window == 1 else stream)
    assert [int(item["number"]) for item in windows] == list(range(len(windows)))
    lengths = {len(values) for item in windows for name, values in item.items() if name != "number"}
    assert len(lengths) == 1
    assert lengths.pop() <= window


def test_padding_is_on_the_right_and_counts_for_nothing():
    short = text_windows(["abcde"], LetterTokenizer(), 5)[-1]
    assert short["input_ids"].tolist() == [ord("e"), EOS, PAD, PAD, PAD]
    assert short["attention_mask"].tolist() == [1, 1, 0, 0, 0]
    assert short["labels"].tolist() == [ord("e"), EOS, IGNORED, IGNORED, IGNORED]


def test_labels_of_real_tokens_count_even_where_pad_and_eos_are_one_token():
    tokenizer = LetterTokenizer(bos=False, pad=EOS)
    window = text_windows(["abc"], tokenizer, 8)[0]
    assert window["labels"].tolist() == [*map(ord, "abc"), EOS]


def test_a_tokenizer_without_bos_eos_or_pad_is_taken_as_it_is():
    windows = text_windows(["abc", "de"], LetterTokenizer(bos=False, eos=None, pad=None), 3)
    assert stream_of(windows) == list(map(ord, "abcde"))


def test_pieces_of_longer_texts_follow_each_other_without_an_end():
    windows = text_windows(["abc", "def"], LetterTokenizer(bos=False), 3, end=False)
    assert [item["input_ids"].tolist() for item in windows] == [[*map(ord, "abc")], [*map(ord, "def")]]


@pytest.mark.parametrize("texts", [[], [""]])
def test_no_text_is_an_input_error(texts):
    with pytest.raises(InputError, match="no text"):
        text_windows(texts, LetterTokenizer(bos=False), 8)


def ids(batch: dict[str, object], side: str) -> list[int]:
    return batch[f"{side}_input_ids"].flatten().tolist()  # type: ignore[attr-defined]


def test_an_epoch_passes_each_forget_window_once_and_its_last_batch_may_be_smaller():
    batches = pair_batches(tagged(10), tagged(3), batch_size=4, epochs=2, max_steps=0, seed=0)
    assert [len(ids(batch, "forget")) for batch in batches] == [4, 4, 2, 4, 4, 2]
    first, second = batches[:3], batches[3:]
    for epoch in (first, second):
        assert sorted(i for batch in epoch for i in ids(batch, "forget")) == list(range(10))
    assert [ids(batch, "forget") for batch in first] != [ids(batch, "forget") for batch in second]


def test_retain_windows_pass_by_in_full_cycles():
    batches = pair_batches(tagged(9), tagged(3), batch_size=3, epochs=2, max_steps=0, seed=1)
    seen = [i for batch in batches for i in ids(batch, "retain")]
    assert all(sorted(seen[start : start + 3]) == [0, 1, 2] for start in range(0, 18, 3))


def test_without_retain_windows_batches_have_the_forget_side_only():
    batches = pair_batches(tagged(3), [], batch_size=2, epochs=1, max_steps=0, seed=0)
    assert all(set(batch) == {"forget_input_ids"} for batch in batches)


def test_max_steps_cuts_the_plan_short_without_changing_its_start():
    everything = pair_batches(tagged(10), tagged(3), batch_size=4, epochs=3, max_steps=0, seed=5)
    some = pair_batches(tagged(10), tagged(3), batch_size=4, epochs=3, max_steps=4, seed=5)
    assert len(some) == 4
    assert [ids(a, "forget") for a in some] == [ids(b, "forget") for b in everything[:4]]


def test_the_same_seed_plans_the_same_and_another_seed_does_not():
    def plan(seed: int) -> list[list[int]]:
        return [ids(b, "forget") for b in pair_batches(tagged(20), [], batch_size=4, epochs=1, max_steps=0, seed=seed)]

    assert plan(3) == plan(3)
    assert plan(3) != plan(4)


def test_extra_keys_of_a_window_travel_with_it():
    import torch

    windows = [{"input_ids": torch.tensor([i]), "reference": torch.tensor(10.0 * i)} for i in range(6)]
    for batch in pair_batches(windows, [], batch_size=4, epochs=1, max_steps=0, seed=0):
        assert batch["forget_reference"].tolist() == [10.0 * i for i in ids(batch, "forget")]


def test_a_window_never_grows_beyond_the_text():
    assert len(text_windows(["ab"], LetterTokenizer(), 2048)[0]["input_ids"]) == 4
