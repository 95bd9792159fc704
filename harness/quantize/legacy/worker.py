"""The old environment's side of AutoGPTQ and AutoAWQ: a script that quantizes one checkpoint by a JSON job.

This file is a script for the environment that ``environments.py`` makes. It
imports nothing of Quench, and the libraries only when it works.
"""

import json
import os
import signal
import socket
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

# Windows forwarded at once; it moves no result but by the order of sums.
_BATCH = 8


def end_with_parent() -> None:
    """Has this process and those it started end when whoever holds the other end of standard input is gone."""

    def wait() -> None:
        os.read(0, 1)
        # A group that another program leads is not ours to end.
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def forbid_network() -> None:
    """Makes every connection beyond this machine an error."""
    # Libraries that find out by opening a socket would be ended by the fence around the caller.
    socket.has_ipv6 = False
    connect = socket.socket.connect

    def refuse(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX:
            raise PermissionError(f"the library tried to reach {address!r}, and quantizing runs without network")
        connect(self, address)

    socket.socket.connect = refuse  # type: ignore[method-assign,assignment]


def autogptq(job: dict[str, Any]) -> None:
    """Has AutoGPTQ quantize ``job["model"]`` and save it in ``job["save_in"]``.

    Raises:
        ValueError: A group's zero point is one that its format can't hold.

    Source: ``BaseGPTQForCausalLM.quantize`` of auto-gptq 0.7.1, which does all
        the work.
    Differs from the reference: its class method ``from_pretrained`` demands
        CUDA, so the model is loaded directly; the device that it moves layers
        to is the CPU; layers are packed from float16, as after its default
        loading, though activations are float32.
    """
    import auto_gptq.modeling._base as base
    import torch
    from auto_gptq import BaseQuantizeConfig
    from auto_gptq.modeling.auto import GPTQ_CAUSAL_LM_MODEL_MAP
    from transformers import AutoModelForCausalLM

    base.CUDA_0 = torch.device("cpu")
    torch.cuda.synchronize = lambda *given, **named: None
    pack = base.pack_model

    def pack_in_16_bit(model: Any, quantizers: dict[str, Any], **named: Any) -> None:
        for name, (_, _, zero, _) in quantizers.items():
            if float(zero.min()) < 1:
                # It is stored less one, and -1 spills into the neighbours' bits.
                raise ValueError(f"AutoGPTQ can't store the zero point 0 of a group of {name}; use a symmetric preset")
            model.get_submodule(name).half()
        pack(model=model, quantizers=quantizers, **named)

    base.pack_model = pack_in_16_bit
    model = AutoModelForCausalLM.from_pretrained(
        job["model"], torch_dtype=torch.float32, use_safetensors=True, local_files_only=True
    )
    config = BaseQuantizeConfig(
        bits=job["bits"], group_size=job["group_size"], sym=job["symmetric"], desc_act=job["desc_act"]
    )
    library = GPTQ_CAUSAL_LM_MODEL_MAP[model.config.model_type](model.eval(), False, config)
    examples = [{"input_ids": window, "attention_mask": [1] * len(window)} for window in job["windows"]]
    library.quantize(examples, batch_size=_BATCH, use_triton=False, cache_examples_on_gpu=False)
    library.save_quantized(job["save_in"], use_safetensors=True)


def autoawq(job: dict[str, Any]) -> None:
    """Has AutoAWQ quantize ``job["model"]`` and save it in ``job["save_in"]``.

    Source: ``BaseAWQForCausalLM.quantize`` of autoawq 0.2.9, which does all the
        work.
    Differs from the reference: each search for scales starts from a copy of
        the weights. The library's own "copy" is ``.cpu()``, which on a CPU is
        the weight itself: the first candidate's scales would stay in it.
    """
    import torch
    from awq import AutoAWQForCausalLM
    from awq.quantize.quantizer import AwqQuantizer

    class CopyingQuantizer(AwqQuantizer):  # type: ignore[misc]
        def _compute_best_scale(self, x: Any, w_mean: Any, x_mean: Any, module: Any, *others: Any) -> Any:
            own = module.state_dict
            module.state_dict = lambda: {name: value.clone() for name, value in own().items()}
            try:
                return super()._compute_best_scale(x, w_mean, x_mean, module, *others)
            finally:
                del module.state_dict

    library = AutoAWQForCausalLM.from_pretrained(
        job["model"], torch_dtype=getattr(torch, job["dtype"]), device_map="cpu", trust_remote_code=False
    )
    library.quantize(
        None,
        quant_config={
            "zero_point": True,
            "q_group_size": job["group_size"],
            "w_bit": job["bits"],
            "version": "GEMM",
        },
        calib_data=job["windows"],
        max_calib_samples=len(job["windows"]),
        max_calib_seq_len=max(map(len, job["windows"])),
        n_parallel_calib_samples=_BATCH,
        quantizer_cls=CopyingQuantizer,
    )
    library.save_quantized(job["save_in"])


def check() -> None:
    """Imports what jobs need; the last step of making the environment."""
    import auto_gptq
    import awq

    print(f"auto-gptq {auto_gptq.__version__} and autoawq {awq.__version__} can be imported")


def main(argument: str) -> int:
    """Does the job in a file, or the check; returns the exit code.

    After a failure the last line printed says what failed.
    """
    try:
        if argument == "--check":
            check()
            return 0
        end_with_parent()
        forbid_network()
        job = json.loads(Path(argument).read_text(encoding="utf-8"))
        import torch

        torch.set_num_threads(job["threads"])
        torch.manual_seed(0)
        {"autogptq": autogptq, "autoawq": autoawq}[job["backend"]](job)
    except Exception as error:
        traceback.print_exc()
        said = (str(error).strip().splitlines() or ["no reason given"])[0]
        print(f"{type(error).__name__}: {said}", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
