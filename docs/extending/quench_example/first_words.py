"""How an answer begins: a model that forgot may still start like the text it forgot."""


def score(*, prompt: str, reference: str, response: str) -> float:
    """Returns the share of the reference's first five words that the response begins with, in order."""
    wanted, given = reference.lower().split()[:5], response.lower().split()
    if not wanted:
        return 0.0
    right = 0
    for word, other in zip(wanted, given, strict=False):
        if word != other:
            break
        right += 1
    return right / len(wanted)
