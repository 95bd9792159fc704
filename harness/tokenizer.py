"""The tokenizer of a folder: the ids of its tokenizer.json, proved on a fixed text.

transformers chooses a tokenizer's class by the model type and by the class that a config names, and some classes build
their own pre-tokenizer, normalizer and BOS rule in the place of the file's: the same file then gives other ids under
another name. So nothing here depends on a name. docs/decisions/0010-tokenizer-file.md says why.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.errors import InputError, first_line

PROBE = (
    " The widow's 2,048 pale shutters weren't washed; they'LL go HOME again…  Then (again) — naïve Ångström, Gruß, "
    "cafe\u0301 ﬁne ½ №7!\n\n  def f(x_1):\n\t\treturn {'a': x**2}  # TODO\r\n\n   \n"
    "北京大学的学生 東京タワー 한국어 Ελληνικά Привет שלום مرحبًا بالعالم ١٢٣ हिन्दी में नमस्ते ไทย "
    "👩‍👩‍👧 🏳️‍🌈 1234567 3.14e-10 https://example.org/a?b=c&d=%20 \u00a0\u2003\u200b▁ Ġ <0x0A> $€£ ~~~~ ======\t "
)
"""Many scripts, accents in both forms, emoji, code, digits, runs of white space, line ends; no token's own name."""

# Of the reserved tokens that some files list by the thousand, the first stand for the rest.
_MOST_ADDED = 512
_SAVE = "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) writes it"


def check_tokenizer(folder: Path, vocabulary: int | None = None) -> tuple[Any, list[int]]:
    """Reads a folder's tokenizer.json with the tokenizers library alone.

    Args:
        folder: Folder of the tokenizer.
        vocabulary: Rows of the embedding of the model that reads the ids; None where they are not known.

    Returns:
        The ``tokenizers.Tokenizer``, without the truncation and padding of the file, and the ids that it puts before
        each text.

    Raises:
        InputError: There is no such file, or none that can be read; it puts a token behind each text; it has more
            tokens than the embedding has rows.
    """
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        others = [name for name in ("tokenizer.model", "vocab.json") if (folder / name).is_file()]
        instead = f" ({' and '.join(others)} alone do not say how a text is split)" if others else ""
        raise InputError(f"{folder} holds no tokenizer.json{instead}: put it there; transformers' {_SAVE}.")
    try:
        own = Tokenizer.from_file(str(path))
        own.no_truncation()
        own.no_padding()
        whole, text = own.encode(PROBE).ids, own.encode(PROBE, add_special_tokens=False).ids
    # The library raises nothing more special.
    except Exception as error:
        raise InputError(
            f"{path} can't be used ({first_line(error)[:200]}): it must be a tokenizer.json that reads any text."
        ) from error
    before = len(whole) - len(text)
    if whole[max(0, before) :] != text:
        raise InputError(
            f"{path} puts {own.id_to_token(whole[-1])!r} behind each text, so a prompt would have ended before its "
            "answer begins: save the tokenizer with add_eos_token=False."
        )
    count = own.get_vocab_size(with_added_tokens=False)
    if vocabulary is not None and count > vocabulary:
        raise InputError(
            f"{path} has {count:,} tokens and the model's embedding {vocabulary:,} rows (vocab_size in config.json): "
            "give the tokenizer that the model was trained with."
        )
    return own, whole[:before]


def load_tokenizer(folder: str | Path, *, vocabulary: int | None = None) -> Any:
    """Returns the tokenizer of a folder; its ids are those of tokenizer.json, whatever the configs call its class.

    tokenizer.json decides all ids, BOS included. tokenizer_config.json and special_tokens_map.json name the special
    tokens. Where ``add_bos_token`` contradicts the file, the folder is refused: transformers 4 followed the one and
    transformers 5 follows the other, and no file says with which the model was trained.

    Args:
        folder: Folder of the tokenizer; nothing is downloaded and nothing of it is executed.
        vocabulary: Rows of the embedding of the model that reads the ids; None where they are not known.

    Returns:
        A transformers tokenizer. Its pad token is none where the embedding has no row for it.

    Raises:
        InputError: As ``check_tokenizer`` says; the configs can't be read, change ids, or contradict tokenizer.json;
            BOS or EOS has no row in the embedding.
    """
    from transformers import PreTrainedTokenizerFast

    folder = Path(folder)
    own, before = check_tokenizer(folder, vocabulary)
    expected = _probed(own)
    named = folder / "tokenizer_config.json"
    # A large vocabulary takes longer to copy than to read, and nobody else has this one.
    own.__deepcopy__ = lambda memo: own
    try:
        loaded = PreTrainedTokenizerFast.from_pretrained(
            str(folder), tokenizer_object=own, tokenizer_file=str(folder / "tokenizer.json"), local_files_only=True,
            trust_remote_code=False,
        )  # fmt: skip
        config = json.loads(named.read_text(encoding="utf-8")) if named.is_file() else {}
    # Whatever a strange value makes of the library's constructor.
    except Exception as error:
        raise InputError(
            f"{folder}: tokenizer_config.json or special_tokens_map.json can't be used with tokenizer.json: save the "
            f"tokenizer again; transformers' {_SAVE}."
        ) from error
    del own.__deepcopy__
    _compare(expected, loaded, folder)
    _check_beginning(before, loaded, config.get("add_bos_token"), named)
    if vocabulary is not None:
        for name, token in (("bos_token", loaded.bos_token_id), ("eos_token", loaded.eos_token_id)):
            if token is not None and token >= vocabulary:
                raise InputError(
                    f"{folder}: the {name} {getattr(loaded, name)!r} has the id {token:,} and the model's embedding "
                    f"{vocabulary:,} rows (vocab_size in config.json): name a token that the model has."
                )
        if loaded.pad_token_id is not None and loaded.pad_token_id >= vocabulary:
            loaded.pad_token = None
    return loaded


def named_tokenizer(name: str, revision: str | None = None) -> Any:
    """Returns ``load_tokenizer`` of a folder, or of a hub repository, as lm-eval's own command line may name it."""
    if not Path(name).is_dir():
        from huggingface_hub import snapshot_download

        patterns = ["tokenizer*.json", "special_tokens_map.json", "added_tokens.json"]
        name = snapshot_download(name, revision=revision, allow_patterns=patterns)
    return load_tokenizer(name)


def _probed(own: Any) -> dict[tuple[str, bool], list[int]]:
    """Returns the ids of the probe, and of the file's own added tokens, with and without what begins a text."""
    added = list(own.get_added_tokens_decoder().values())[:_MOST_ADDED]
    texts = (PROBE, "".join(f"a {token.content} b{token.content}c\n" for token in added))
    return {
        (text, special): own.encode(text, add_special_tokens=special).ids for text in texts for special in (True, False)
    }


def _compare(expected: dict[tuple[str, bool], list[int]], loaded: Any, folder: Path) -> None:
    """Refuses a tokenizer whose ids are others than ``_probed`` said before the configs were read."""
    for (text, special), own in expected.items():
        ids = loaded(text, add_special_tokens=special, verbose=False)["input_ids"]
        if ids != own:
            raise InputError(
                f"{folder}: tokenizer_config.json, special_tokens_map.json or added_tokens.json changes how a text is "
                f"split: the probe has {len(ids)} ids with them and {len(own)} as tokenizer.json alone says: save the "
                f"tokenizer again, so that they agree; transformers' {_SAVE}."
            )


def _check_beginning(before: Sequence[int], loaded: Any, flag: Any, named: Path) -> None:
    """Refuses a beginning of each text that is neither nothing nor BOS, or that the config contradicts."""
    begin = [] if loaded.bos_token_id is None else [loaded.bos_token_id]
    if before and list(before) != begin:
        raise InputError(
            f"{named.parent}/tokenizer.json puts {''.join(loaded.convert_ids_to_tokens(before))!r} before each text, "
            f"and the bos_token in {named.name} is {loaded.bos_token!r}: name there the one token that begins a text."
        )
    if begin and isinstance(flag, bool) and flag != bool(before):
        says, does = ("true", "no") if flag else ("false", "one")
        raise InputError(
            f"{named} says add_bos_token {says} and tokenizer.json beside it puts {does} {loaded.bos_token!r} before a "
            "text, and releases of transformers differ in which of them they follow: make both say what the model was "
            "trained with."
        )


def check_ids(sequences: Sequence[Sequence[int]], tokenizer: Any, vocabulary: int) -> None:
    """Refuses ids that an embedding has no row for: those of added tokens that a model was never resized for.

    Args:
        sequences: Token ids of some texts.
        tokenizer: What made them.
        vocabulary: Rows of the embedding.

    Raises:
        InputError: There is such an id.
    """
    largest = max((token for ids in sequences for token in ids), default=0)
    if largest >= vocabulary:
        raise InputError(
            f"A text holds the token {tokenizer.convert_ids_to_tokens(largest)!r} with the id {largest:,}, and the "
            f"model's embedding has {vocabulary:,} rows: give the tokenizer that the model was trained with."
        )
