"""How far words drawn in S steps of the discrete process are from the language that they are of.

    python benchmarks/discrete.py

Words of four letters, three words in the language, the exact predictor of the clean word, cosine
schedule, T = 200, uniform nodes: total variation between the words drawn and the language, the
table of docs/discrete.md.
"""

from __future__ import annotations

import argparse

import torch

import ddim
from ddim.samplers.discrete import marginal, one_hot, sample_discrete

WORDS = torch.tensor([[0, 0, 0, 0], [1, 1, 1, 0], [0, 1, 2, 2]])
SHARES = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
K, T = 3, 200
STEPS = (1, 2, 3, 5, 10, 25, 50, 100)


def exact(schedule: ddim.Schedule):
    """p(x0 | x_t) of each letter, as logits (N, K, 4) of words (N, 4)."""

    def predict(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        letters = torch.arange(K)
        seen = marginal(one_hot(letters, K), t[:1].expand(K) + 1, schedule)  # clean, seen
        word = seen[WORDS, x[:, None, :]].prod(dim=-1) * SHARES
        word = word / word.sum(dim=-1, keepdim=True)
        return torch.einsum("nw,wlk->nkl", word, one_hot(letters, K)[WORDS]).log()

    return predict


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--words", type=int, default=20_000)
    options = parser.parse_args()
    schedule = ddim.Schedule.cosine(T)
    print("| η | " + " | ".join(f"S = {steps}" for steps in STEPS) + " |")
    print("|---" * (len(STEPS) + 1) + "|")
    for eta in (0.0, 0.3, 1.0):
        row = []
        for steps in STEPS:
            nodes = ddim.make_nodes(schedule, "uniform", steps)
            noise = ddim.Noise(seed=0, images=range(options.words), shape=(WORDS.shape[1],))
            steps_taken = sample_discrete(exact(schedule), schedule, nodes, noise, K, eta=eta)
            drawn = [*steps_taken][-1].x
            found = torch.stack([(drawn == word).all(1).double().mean() for word in WORDS])
            row.append(((found - SHARES).abs().sum() + 1 - found.sum()).item() / 2)
        print(f"| {eta:g} | " + " | ".join(f"{value:.3f}" for value in row) + " |", flush=True)


if __name__ == "__main__":
    main()
