"""Model families: one file each, one line of registration."""

from plansim.errors import UnknownNameError
from plansim.workload.families.base import Family
from plansim.workload.families.cnn import CNN
from plansim.workload.families.decoder import GPT, LLAMA, MOE
from plansim.workload.families.encoder import BERT, VIT
from plansim.workload.families.hybrid import HYBRID
from plansim.workload.families.mlp import MLP
from plansim.workload.families.module import MODULE
from plansim.workload.families.rnn import RNN

FAMILIES: dict[str, Family] = {
    "gpt": GPT,
    "llama": LLAMA,
    "moe": MOE,
    "hybrid": HYBRID,
    "bert": BERT,
    "vit": VIT,
    "cnn": CNN,
    "rnn": RNN,
    "mlp": MLP,
    "module": MODULE,
}


def find_family(name: str) -> Family:
    """Return the family called `name`."""
    try:
        return FAMILIES[name]
    except KeyError:
        raise UnknownNameError("model family", name, FAMILIES) from None


__all__ = ["FAMILIES", "Family", "find_family"]
