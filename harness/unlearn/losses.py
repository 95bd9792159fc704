"""Unlearning losses: pure functions of logits and labels.

Shapes throughout: ``logits`` are floating tensors [batch, length, vocabulary],
``labels`` int64 [batch, length] with -100 where a token counts for nothing.
Position t's logits predict label t + 1, so a sequence's first label has no
prediction. Half-precision logits are raised to float32 before any softmax.
Every loss is a scalar tensor to be minimized.
"""

from __future__ import annotations

from typing import Any

IGNORED = -100


def token_log_probs(logits: Any, labels: Any) -> tuple[Any, Any]:
    """Returns log p(x_t | x_<t) and which of them count, both [batch, length - 1].

    Where nothing counts the log-probability is 0.
    """
    import torch

    targets = labels[:, 1:]
    counted = targets != IGNORED
    log_probs = _log_softmax(logits[:, :-1])
    chosen = log_probs.gather(2, targets.masked_fill(~counted, 0).unsqueeze(2)).squeeze(2)
    return torch.where(counted, chosen, torch.zeros_like(chosen)), counted


def _log_softmax(logits: Any) -> Any:
    import torch

    precise = logits if logits.dtype == torch.float64 else logits.float()
    return torch.log_softmax(precise, dim=-1)


def sequence_log_prob(logits: Any, labels: Any) -> Any:
    """Returns log pi(y | x) for each sequence, [batch]: the sum over its counted tokens."""
    return token_log_probs(logits, labels)[0].sum(dim=1)


def nll(logits: Any, labels: Any) -> Any:
    """Returns the mean negative log-likelihood over all counted tokens of the batch; 0 if none counts."""
    log_probs, counted = token_log_probs(logits, labels)
    return -log_probs.sum() / counted.sum().clamp(min=1)


def ga(logits: Any, labels: Any) -> Any:
    """Gradient ascent on the forget set: ``L = -NLL(forget)``, unbounded below.

    Source: Jang et al., ACL 2023, section 3; MUSE (Shi et al., 2024), section 3.
    """
    return -nll(logits, labels)


def gdr(logits: Any, labels: Any) -> Any:
    """Gradient descent on the retain set: ``L = NLL(retain)``.

    Source: Liu et al., 2022 (gradient difference); MUSE, section 3 ("GDR").
    """
    return nll(logits, labels)


def npo(log_prob: Any, reference_log_prob: Any, beta: float) -> Any:
    """Negative preference optimization on sequence log-probabilities.

    ``L = -(2 / beta) E[log sigmoid(-beta (log pi(y|x) - log pi_ref(y|x)))]``

    Args:
        log_prob: log pi(y|x) of the model, [batch].
        reference_log_prob: The same under the model that unlearning started
            from, [batch], without gradient.
        beta: Inverse temperature, above 0; toward 0 the gradient becomes that
            of gradient ascent.

    Source: Zhang et al., COLM 2024, equation 3.
    Differs from the reference: MUSE's code (``baselines/trainer.py``) puts the
        difference of the two mean cross-entropies into the sigmoid; this is
        the published form with summed log-probabilities.
    """
    from torch.nn.functional import logsigmoid

    return -(2.0 / beta) * logsigmoid(-beta * (log_prob - reference_log_prob)).mean()


def klr(logits: Any, reference_logits: Any, labels: Any) -> Any:
    """Divergence from the starting model on the retain set.

    ``L = mean_t KL(pi_ref(. | x_<t) || pi(. | x_<t))`` over the positions that
    predict a counted token; 0 if none does.

    Source: MUSE, section 3 ("KLR"); Zhang et al., COLM 2024, section 4.
    Differs from the reference: MUSE's code hands raw logits to ``kl_div``;
        here both sides are log-probabilities.
    """
    counted = labels[:, 1:] != IGNORED
    ours, reference = _log_softmax(logits[:, :-1]), _log_softmax(reference_logits[:, :-1])
    divergence = (reference.exp() * (reference - ours)).sum(dim=2)
    return divergence.masked_fill(~counted, 0.0).sum() / counted.sum().clamp(min=1)
