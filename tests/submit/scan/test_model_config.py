"""config.json: what each architecture's code reads, what is ignored with a note, what is refused."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.errors import UnsafeSubmissionError
from harness.quantize.formats import gguf as packed_gguf
from harness.submit.scan import folder as folder_scan
from harness.submit.scan import model_config
from harness.submit.scan.architectures import (
    ARCHITECTURES,
    COMMON,
    GGUF_TYPES,
    MODEL_TYPES,
    OF_THE_CLASS,
    SHARED,
    ModelConfig,
    name_faults,
)

# Keys of transformers' base class and of older files that change no number of a decoder in float arithmetic.
HARMLESS = {
    "architectures",
    "transformers_version",
    "id2label",
    "label2id",
    "problem_type",
    "name_or_path",
    "num_labels",
}
# What the shared modules read of a config besides: of another kind of model, of training, or set by the library itself.
NOT_A_DECODER_S = {
    "auto_map", "backbone_config", "code_revision", "gradient_checkpointing", "initializer_factor", "init_std",
    "keys_to_ignore_at_inference", "out_features", "quantization_config", "sep_token_id",
    "stage_names", "token_classification_bias", "classifier_dropout", "hidden_dropout", "loss_type",
}  # fmt: skip


@pytest.fixture
def check(model_folder: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """Checks the model's config with changes and returns the notes."""
    tensors = folder_scan.read_tensors(model_folder, "model")
    config = json.loads((model_folder / "config.json").read_text(encoding="utf-8"))

    def run(**changes: Any) -> list[str]:
        notes: list[str] = []
        path = tmp_path / "config.json"
        path.write_text(json.dumps(config | changes), encoding="utf-8")
        model_config.check_model(path, tensors, notes=notes)
        return notes

    return run


def config_class(kind: str) -> Any:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return CONFIG_MAPPING[kind]


@pytest.mark.parametrize("kind", MODEL_TYPES)
def test_a_row_has_every_key_that_the_architecture_s_own_class_knows(kind: str) -> None:
    fields = {field.name for field in dataclasses.fields(config_class(kind))}
    read = COMMON | ARCHITECTURES[kind]
    assert fields - read == set()
    assert read <= set(ModelConfig.model_fields) | {"_sliding_window_pattern"}


def test_gguf_files_are_let_in_of_the_architectures_that_the_reader_knows() -> None:
    assert set(GGUF_TYPES) == set(packed_gguf._ARCHITECTURES)


@pytest.mark.parametrize("kind", MODEL_TYPES)
def test_no_key_replaces_a_method_or_a_setting_of_the_class(kind: str) -> None:
    made = config_class(kind)
    fields = {field.name for field in dataclasses.fields(made)}
    own = {name for name in dir(made) if not name.startswith("_")} - fields
    assert own - OF_THE_CLASS - SHARED - COMMON == {"model_type"}


def test_what_shared_code_reads_of_any_config_is_refused_or_read() -> None:
    import transformers

    root = Path(transformers.__file__).parent
    read: set[str] = set()
    for name in (
        "configuration_utils",
        "masking_utils",
        "cache_utils",
        "modeling_utils",
        "modeling_rope_utils",
        "integrations/sdpa_attention",
    ):
        text = (root / f"{name}.py").read_text(encoding="utf-8")
        read |= set(
            re.findall(r"(?:getattr|hasattr)\((?:self\.|model\.|layer_|text_)?config, *\"([a-z][a-z_]*)\"", text)
        )
    assert len(read) > 12
    assert read - OF_THE_CLASS - SHARED - COMMON - NOT_A_DECODER_S == set()


@pytest.mark.parametrize(
    "changes",
    [
        {"is_llama_config": True, "rope_interleaved": False}, {"unsloth_fixed": True, "unsloth_version": "2026.1"},
        {"neftune_noise_alpha": 5}, {"_model_name_or_path": "models/mistral-7b"}, {"rope_interleaved": None},
        {"temperature": 0.9, "top_p": 0.6}, {"use_mrope": False}, {"torchscript": False}, {"logit_scale": 1.0},
        {"anything": {"at": ["all"]}},
    ],
)  # fmt: skip
def test_a_key_that_no_code_reads_is_ignored_and_noted(
    changes: dict[str, Any], check: Callable[..., list[str]]
) -> None:
    (note,) = check(**changes)
    assert note.startswith("config.json: ignored, since no code of llama models reads them: ")
    assert all(key in note for key in changes)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"quantization_config": None},
        {"_name_or_path": "x/y"},
        {"sliding_window": None},
        {"layer_types": None},
        {"is_causal": True},
        {"use_bidirectional_attention": False},
        {"per_layer_config": None},
    ],
)
def test_what_every_config_has_or_what_is_switched_off_is_no_note(
    changes: dict[str, Any], check: Callable[..., list[str]]
) -> None:
    assert check(**changes) == []


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"rope_interleaved": True}, "`rope_interleaved` is True, and the code of llama models does not compute it"),
        ({"logits_scaling": 8.0}, "`logits_scaling` is 8.0"),
        ({"sliding_window": 16}, "`sliding_window` is 16, which transformers reads of any config"),
        ({"is_causal": False, "use_bidirectional_attention": True}, "`use_bidirectional_attention` is True"),
        ({"per_layer_config": {"0": {"head_dim": 8}}}, "`per_layer_config` is"),
        ({"attribute_map": {"rms_norm_eps": "rope_theta"}}, "`attribute_map` is"),
        ({"layer_types": False}, "`layer_types` is False, which transformers reads of any config"),
        ({"mtp_layer_types": 0}, "`mtp_layer_types` is 0, which transformers reads of any config"),
        ({"to_dict": None}, "`to_dict` is None, which transformers reads of any config"),
        ({"is_causal": None}, "`is_causal` is None"),
        ({"num_labels": 10**9}, "accepted is a whole number from 1 to 10000"),
        ({"pad_token_id": 10**7}, "`pad_token_id` is 10000000, and the vocabulary has"),
        ({"head_dim": None, "model_type": "qwen2"}, "`head_dim` is None, and qwen2 models need a number"),
        ({"transformers_weights": "other.safetensors"}, "`transformers_weights` is 'other.safetensors'"),
        ({"_attn_implementation": None}, "`_attn_implementation` is None"),
        ({"rope_scaling": {"type": "su", "factor": 2.0}}, "`rope_scaling` is of rope_type 'su', and those of llama"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "of rope_type llama3 lacks low_freq_factor"),
        ({"rope_parameters": {"rope_type": "linear", "type": "dynamic", "factor": 2.0}}, "'linear' and 'dynamic'"),
        ({"rope_parameters": {"rope_type": "linear", "factor": "2"}}, "factor is '2', and a number above 0"),
        ({"rope_parameters": {"full_attention": {}}}, "must be one mapping for all layers of a llama model"),
        ({"rope_parameters": {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}}, "hold 8 numbers"),
        ({"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"type": "linear", "factor": 2}}, "contradict"),
        ({"hidden_act": "my_act"}, "`hidden_act` is 'my_act', and accepted is gelu"),
        ({"num_attention_heads": 3}, "hidden_size 64 can't be shared out"),
        ({"num_key_value_heads": 3}, "num_attention_heads 4 can't be shared out"),
        ({"dtype": "bfloat16", "torch_dtype": "float16"}, "`dtype` is 'bfloat16' and `torch_dtype` 'float16'"),
        ({"is_encoder_decoder": True}, "`is_encoder_decoder` is True, and accepted is false"),
    ],
)
def test_what_changes_numbers_and_is_not_computed_is_refused_in_one_sentence(
    changes: dict[str, Any], sentence: str, check: Callable[..., list[str]]
) -> None:
    with pytest.raises(UnsafeSubmissionError) as refused:
        check(**changes)
    assert any(sentence in fault for fault in refused.value.faults), refused.value.faults
    assert "\n" not in str(refused.value)


def test_ignored_keys_change_no_number(model_folder: Path, check: Callable[..., list[str]]) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

    harmless = {"is_llama_config": True, "unsloth_fixed": True, "neftune_noise_alpha": 5, "rope_interleaved": False}
    assert check(**harmless)
    plain = json.loads((model_folder / "config.json").read_text(encoding="utf-8"))
    kind = plain.pop("model_type")
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    other = LlamaForCausalLM(AutoConfig.for_model(kind, **plain, **harmless))
    other.load_state_dict(model.state_dict())
    ids = torch.arange(20)[None]
    assert torch.equal(model(ids).logits, other.float()(ids).logits)


@pytest.mark.parametrize("kind", MODEL_TYPES)
def test_null_is_accepted_where_transformers_makes_a_model_of_it(
    kind: str, model_folder: Path, check: Callable[..., Any]
) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = json.loads((model_folder / "config.json").read_text(encoding="utf-8")) | {"rope_parameters": None}
    config.pop("model_type")
    nulls = dict[str, None]()
    for key in sorted(COMMON | ARCHITECTURES[kind] | SHARED | OF_THE_CLASS):
        try:
            check(**{"model_type": kind, "rope_parameters": None, key: None})
        except UnsafeSubmissionError:
            continue
        AutoConfig.for_model(kind, **{**config, key: None})
        nulls[key] = None
    assert {"layer_types", "rope_scaling", "id2label"} <= set(nulls)
    with torch.device("meta"):
        AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**config, **nulls}))


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 70), st.floats(-2, 2), st.sampled_from(["silu", "gelu", "x", "bfloat16"]),
    st.fixed_dictionaries(
        {"rope_type": st.sampled_from(["default", "linear", "dynamic", "yarn", "llama3", "longrope", "su", None])},
        optional={"factor": st.sampled_from([2.0, 1, 0, "a"]), "low_freq_factor": st.just(1.0),
                  "high_freq_factor": st.just(4.0), "short_factor": st.just([1.0] * 8),
                  "long_factor": st.sampled_from([[1.0] * 8, [1.0], None]), "rope_theta": st.just(500.0)},
    ),
)  # fmt: skip


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(MODEL_TYPES),
    changes=st.dictionaries(
        st.sampled_from(sorted({*ModelConfig.model_fields, *SHARED, *OF_THE_CLASS})), VALUES, min_size=1, max_size=2
    ),
)
def test_what_is_accepted_makes_a_model(
    kind: str, changes: dict[str, Any], model_folder: Path, check: Callable[..., Any]
) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    changes = {"rope_parameters": None} | changes
    try:
        check(model_type=kind, **changes)
    except UnsafeSubmissionError:
        return
    config = json.loads((model_folder / "config.json").read_text(encoding="utf-8")) | changes | {"model_type": kind}
    with torch.device("meta"):
        AutoModelForCausalLM.from_config(AutoConfig.for_model(config.pop("model_type"), **config))


@pytest.mark.parametrize("kind", MODEL_TYPES)
def test_names_of_a_model_s_tensors_are_complete_and_no_other_is_one(kind: str) -> None:
    from tiny_architectures import model_of

    names = sorted(model_of(kind).state_dict())
    assert list(name_faults(names, kind)) == []
    assert any("hold more" in told for told, *_ in name_faults([*names, "more"], kind))
    inner = [name for name in names if ".layers.1." in name]
    norms = [name for name in names if ".layers." not in name and "norm" in name and name.endswith(".weight")]
    for lost in (*inner, *norms):
        wrong = list(name_faults([name for name in names if name != lost and name != lost[:-6] + "bias"], kind))
        assert len(wrong) == 1
        assert wrong[0][0].startswith("the weights lack ")
